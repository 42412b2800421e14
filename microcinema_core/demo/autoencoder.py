"""Trains the demo autoencoder on frames of drawn scenes, with an L1 error, a squared error and a small KL term.

At the end, the normalisation of the latents per channel is folded into the 1×1 convolutions. Then the scaled latents
have unit variance, and the scale of the model is a single scalar, as ComfyUI expects.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from .. import images
from ..config import ModelConfig
from ..files import locked
from ..model.autoencoder import Autoencoder
from ..model.layers import channels_last
from ..training.data.order import sample_seed
from ..training.distributed import Processes
from ..training.trainer import Figures, Objective, Trainer
from .shards import draw_pool, load

if TYPE_CHECKING:
    from .recipes import DemoRunConfig


class AutoencoderObjective(Objective):
    """The reconstruction of crops: an L1 error, a squared error and a small KL term."""

    def __init__(self, model: Autoencoder, kl_weight: float):
        super().__init__()
        self.model, self.kl_weight = model, kl_weight

    def forward(self, step: int, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Figures]:
        """batch: pictures (n, 3, h, w), and standard normal noise for their latents (n, C, h/f, w/f)."""
        pictures, noise = batch
        mean, log_variance = self.model.moments(pictures)
        latents = mean + noise * (log_variance / 2).exp()
        decoded = (self.model.decoder(self.model.post_quant_conv(latents)) + 1) / 2
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        l1, mse = F.l1_loss(decoded, pictures), F.mse_loss(decoded, pictures)
        return l1 + 2 * mse + self.kl_weight * kl, {"psnr": -10 * mse.log10().item(), "kl": kl.item()}


def train_autoencoder(
    config: DemoRunConfig, model_config: ModelConfig, folder: Path, scenes: Path, world: Processes
) -> Autoencoder:
    """Train the autoencoder, or resume the run in `folder`. Returns the EMA model with its normalisation folded.

    The clips are drawn into the folder `scenes`. Raises MicroCinemaError as Trainer does.
    """
    c, table = config.train, config.demo
    with world.first_goes_first(), locked(scenes, wait=True):
        paths = draw_pool(scenes, table.shards, 9, model_config.width, c.workers)
    frames = load(paths, "frames")
    torch.manual_seed(c.seed)
    model = Autoencoder(model_config.autoencoder)
    start_as_transform(model, frames[::4, 0].float() / 255)
    objective = AutoencoderObjective(channels_last(model), table.kl_weight)
    trainer = Trainer(objective, config, folder, world, data=paths[0].stem)
    held_out = (frames[-8:, 0].float() / 255).to(world.device)
    frames = frames[:-8]

    def batches(first: int):
        for step in itertools.count(first):
            whole = step >= 0.85 * c.steps  # the last steps use whole pictures, as inference does
            side = frames.shape[-1] if whole else table.crop
            count = max(world.count, c.batch_size // max(1, round(side**2 / table.crop**2)))
            generator = torch.Generator().manual_seed(sample_seed(c.seed, step, 0))
            pictures = augment(sample_crops(frames, count, side, generator), generator)
            cells = side // model_config.autoencoder.factor
            noise = torch.randn(count, model_config.autoencoder.latent_channels, cells, cells, generator=generator)
            yield [tuple(values.tensor_split(world.count)[world.rank] for values in (pictures, noise))]

    def show(folder: Path, stem: str) -> Figures:
        decoded = model.decode(model.encode(held_out)).clamp(0, 1)
        if world.first:
            images.contact_sheet(torch.cat((held_out, decoded), -2), folder / f"{stem}.png")
        return {"held_out_psnr": -10 * F.mse_loss(decoded, held_out).log10().item()}

    trainer.run(batches, show)
    fold_normalisation(model, (frames[:: max(1, len(frames) // 256), 0].float() / 255).to(world.device))
    return model


def sample_crops(frames: torch.Tensor, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Random square crops (count, 3, side, side) in [0, 1] from random frames of clips (n, t, 3, h, w) in uint8."""
    n, t, _, h, w = frames.shape
    crops = []
    for _ in range(count):
        i, j, y, x = (int(torch.randint(high, (), generator=generator)) for high in (n, t, h - side + 1, w - side + 1))
        crops.append(frames[i, j, :, y : y + side, x : x + side])
    return torch.stack(crops).float().div_(255)


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip pictures (n, 3, h, w), permute their colour channels and reduce their contrast, at random for each."""
    out = []
    for picture in pictures:
        flip = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
        picture = picture.flip(flip)[torch.randperm(3, generator=generator)]
        gain = 1 - 0.4 * torch.rand((), generator=generator)
        out.append(picture * gain + (1 - gain) * torch.rand((), generator=generator))
    return torch.stack(out).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def start_as_transform(model: Autoencoder, pictures: torch.Tensor) -> None:
    """Initialise a small autoencoder as a linear block transform of the pictures (n, 3, h, w), in place.

    From a random initialisation, these deep and narrow networks need thousands of steps to reconstruct even the means
    of 8×8 blocks. This initialisation encodes each 8×8 block by its principal components, in three 2×2 stages: pixels →
    12 channels → at most the width of the level → `latent_channels`. Residual branches start at zero. The group-norm
    and the SiLU before each output convolution preserve a linear value as a pair ±x, since silu(x) − silu(−x) = x; a
    large constant in another channel makes the gain of the norm almost independent of x.
    """
    channels = model.config.latent_channels
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            module.weight *= 0.1
            nn.init.zeros_(_bias(module))
            if name.endswith(("conv2", "proj_out")):
                nn.init.zeros_(module.weight)
    encoder, decoder = model.encoder, model.decoder
    down = [level.downsample.conv for level in encoder.levels if level.downsample is not None]
    up = {index: level.upsample.conv for index, level in enumerate(decoder.levels) if level.upsample is not None}
    rgb = pictures * 2 - 1
    first = F.pixel_unshuffle(rgb, 2)
    second_basis = _principal(first, down[1].in_channels - 1)
    second = F.conv2d(first, second_basis, stride=2)
    third_basis = _principal(second, channels)

    _place(encoder.conv_in, torch.eye(3))
    _place(down[0], _unshuffle_basis(3))
    _place(encoder.levels[1].first_shortcut, torch.eye(12))
    _place(down[1], second_basis)
    _place(encoder.levels[2].first_shortcut, torch.eye(len(second_basis)))
    _place(down[2], torch.cat((third_basis, -third_basis)))
    _linear_output(down[2], encoder.norm_out, encoder.conv_out, channels, 40.0)
    _place(model.quant_conv, torch.eye(2 * channels))
    model.quant_conv.bias[channels:] = -8.0

    _place(model.post_quant_conv, torch.eye(channels))
    _place(decoder.conv_in, torch.eye(channels))
    _place(up[3], _shuffled(third_basis))
    _place(up[2], _shuffled(second_basis))
    _place(decoder.levels[1].first_shortcut, torch.eye(12))
    _place(up[1], _shuffled(_unshuffle_basis(3)))
    shortcut = decoder.levels[0].first_shortcut
    _place(shortcut, torch.cat((torch.eye(3), -torch.eye(3))))
    _linear_output(shortcut, decoder.norm_out, decoder.conv_out, 3, 20.0)


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    """The bias, which every convolution of the autoencoder has."""
    assert layer.bias is not None
    return layer.bias


def _principal(features: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` principal components of 2×2 blocks of features (n, c, h, w), as the kernel of a convolution,
    (count, c, 2, 2)."""
    c = features.shape[1]
    blocks = F.unfold(features, 2, stride=2).transpose(1, 2).flatten(0, 1)
    blocks = blocks - blocks.mean(0)
    basis = torch.linalg.eigh(blocks.T @ blocks)[1].flip(1)[:, :count]
    return basis.T.reshape(-1, c, 2, 2)


def _unshuffle_basis(c: int) -> torch.Tensor:
    """pixel_unshuffle by 2 as the kernel of a convolution of stride 2, (4c, c, 2, 2)."""
    return torch.eye(4 * c).reshape(4 * c, c, 2, 2)


def _shuffled(basis: torch.Tensor) -> torch.Tensor:
    """The transpose of a block transform (n, c, 2, 2), as the matrix (4c, n) of a 1×1 convolution before
    pixel_shuffle."""
    return basis.permute(1, 2, 3, 0).flatten(0, 2)


def _place(conv: nn.Conv2d, weights: torch.Tensor) -> None:
    """Set the first output channels of a convolution, in place.

    A matrix (n, m) is written to the centre of the kernel, a 2×2 kernel (n, m, 2, 2) to its corner, which fits SD's
    downsampling with padding on the right and at the bottom. The other weights of these output channels become zero.
    """
    n, m = weights.shape[:2]
    conv.weight[:n] = 0
    if weights.dim() == 4:
        conv.weight[:n, :m, :2, :2] = weights
    else:
        middle = conv.kernel_size[0] // 2
        conv.weight[:n, :m, middle, middle] = weights


def _linear_output(before: nn.Conv2d, norm: nn.GroupNorm, conv: nn.Conv2d, count: int, constant: float) -> None:
    """Set `conv`, which follows norm and SiLU, to the difference of the pairs (i, count + i) in the output of `before`,
    and another output channel of `before` to `constant`, in place."""
    width = norm.num_channels
    before.weight[2 * count :] = 0
    _bias(before)[2 * count] = constant
    mean = constant / width
    std = (constant**2 / width - mean**2) ** 0.5
    norm.bias.fill_(mean / std)
    _place(conv, torch.cat((torch.eye(count), -torch.eye(count)), 1) * std)
    conv.weight[count:] = 0


@torch.no_grad()
def fold_normalisation(model: Autoencoder, pictures: torch.Tensor) -> None:
    """Change the 1×1 convolutions, in place, so that the scaled latents of these pictures (n, 3, h, w) have zero mean
    and unit variance per channel. The reconstruction does not change."""
    means = torch.cat([model.moments(batch)[0] for batch in pictures.split(32)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    gain, c = 1 / (std * model.config.scale), model.config.latent_channels
    q, p = model.quant_conv, model.post_quant_conv
    q.weight[:c] *= gain[:, None, None, None]
    q.bias[:c] = (q.bias[:c] - mean) * gain
    q.bias[c:] += 2 * gain.log()
    p.bias += p.weight[:, :, 0, 0] @ mean
    p.weight /= gain[None, :, None, None]
