"""Train the demo autoencoder on frames of drawn scenes: L1 + squared error + a light KL term.

At the end the latents' per-channel normalisation is folded into the 1×1 convolutions, so that scaled latents have unit
variance and one scalar scale is all anybody needs to know.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import images
from ..config import ModelConfig
from ..model.autoencoder import Autoencoder
from .data import draw_pool, load
from .files import locked
from .loop import Trainer, TrainingConfig, first_process_first


def train_autoencoder(config: TrainingConfig, model_config: ModelConfig, folder: Path, scenes: Path) -> Autoencoder:
    """Train to the end, resuming where `folder` holds a state; returns the EMA autoencoder, folded."""
    with first_process_first(), locked(scenes, wait=True):
        paths = draw_pool(scenes, config.shards, 9, model_config.width, False, config.workers)
    frames = load(paths, "frames")
    torch.manual_seed(config.seed)
    model = Autoencoder(model_config.autoencoder)
    start_as_transform(model, frames[::4, 0].float() / 255)
    model.to(memory_format=torch.channels_last)
    trainer = Trainer(model, config, folder, data=paths[0].stem)
    held_out = frames[-8:, 0].float() / 255
    frames = frames[:-8]

    def loss(step, generator):
        whole = step >= 0.85 * config.steps  # the last steps see whole pictures, as they are used
        side = frames.shape[-1] if whole else config.crop
        count = max(1, trainer.batch_size * config.crop**2 // side**2)
        pictures = augment(sample_crops(frames, count, side, generator), generator)
        mean, log_variance = model.moments(pictures)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = (model.decoder(model.post_quant_conv(mean + noise * (log_variance / 2).exp())) + 1) / 2
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        l1, mse = F.l1_loss(decoded, pictures), F.mse_loss(decoded, pictures)
        return l1 + 2 * mse + config.kl_weight * kl, {"psnr": -10 * mse.log10().item(), "kl": kl.item()}

    @torch.no_grad()
    def sheet(ema, path):
        decoded = ema.decode(ema.encode(held_out)).clamp(0, 1)
        images.sheet(torch.cat((held_out, decoded), -2), path)
        return {"held_out_psnr": -10 * F.mse_loss(decoded, held_out).log10().item()}

    ema = trainer.run(loss, sheet)
    _fold(ema, frames)
    return ema


def sample_crops(frames: torch.Tensor, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Random square crops (count, 3, side, side) in [0, 1] of random frames of (n, t, 3, h, w) uint8."""
    n, t, _, h, w = frames.shape
    crops = []
    for _ in range(count):
        i, j, y, x = (int(torch.randint(high, (), generator=generator)) for high in (n, t, h - side + 1, w - side + 1))
        crops.append(frames[i, j, :, y : y + side, x : x + side])
    return torch.stack(crops).float().div_(255)


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flips, swapped colour channels and contrast, a draw for each picture."""
    out = []
    for picture in pictures:
        flip = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
        picture = picture.flip(flip)[torch.randperm(3, generator=generator)]
        gain = 1 - 0.4 * torch.rand((), generator=generator)
        out.append(picture * gain + (1 - gain) * torch.rand((), generator=generator))
    return torch.stack(out).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def start_as_transform(model: Autoencoder, pictures: torch.Tensor) -> None:
    """Set a small autoencoder to a linear block transform, from where training learns the rest.

    From a random start these deep, narrow stacks take thousands of steps to pass even a picture's 8×8 means. The start
    here codes each 8×8 block by its first principal components, in three 2×2 stages: pixels → 12 → at most `width` →
    `latent_channels`. Residual branches begin at zero. A linear value passes the group-norm and SiLU before each output
    convolution as a ± pair (silu(x) − silu(−x) = x), beside a large constant that holds the norm's gain still.
    """
    channels = model.config.latent_channels
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            module.weight *= 0.1
            nn.init.zeros_(module.bias)
    for name, module in model.named_modules():
        if name.endswith(("conv2", "proj_out")):
            nn.init.zeros_(module.weight)
    encoder, decoder = model.encoder, model.decoder
    rgb = pictures * 2 - 1
    first = F.pixel_unshuffle(rgb, 2)
    second_basis = _principal(first, encoder.down[1].downsample.conv.in_channels - 1)
    second = F.conv2d(first, second_basis, stride=2)
    third_basis = _principal(second, channels)

    _place(encoder.conv_in, torch.eye(3))
    _place(encoder.down[0].downsample.conv, _unshuffle_basis(3))
    _place(encoder.down[1].block[0].nin_shortcut, torch.eye(12))
    _place(encoder.down[1].downsample.conv, second_basis)
    _place(encoder.down[2].block[0].nin_shortcut, torch.eye(len(second_basis)))
    _place(encoder.down[2].downsample.conv, torch.cat((third_basis, -third_basis)))
    _linear_output(encoder.down[2].downsample.conv, encoder.norm_out, encoder.conv_out, channels, 40.0)
    _place(model.quant_conv, torch.eye(2 * channels))
    model.quant_conv.bias[channels:] = -8.0

    _place(model.post_quant_conv, torch.eye(channels))
    _place(decoder.conv_in, torch.eye(channels))
    _place(decoder.up[3].upsample.conv, _shuffled(third_basis))
    _place(decoder.up[2].upsample.conv, _shuffled(second_basis))
    _place(decoder.up[1].block[0].nin_shortcut, torch.eye(12))
    _place(decoder.up[1].upsample.conv, _shuffled(_unshuffle_basis(3)))
    shortcut = decoder.up[0].block[0].nin_shortcut
    _place(shortcut, torch.cat((torch.eye(3), -torch.eye(3))))
    _linear_output(shortcut, decoder.norm_out, decoder.conv_out, 3, 20.0)


def _principal(features: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` principal directions of 2×2 blocks of features, as a convolution (count, c, 2, 2)."""
    c = features.shape[1]
    blocks = F.unfold(features, 2, stride=2).transpose(1, 2).flatten(0, 1)
    blocks = blocks - blocks.mean(0)
    basis = torch.linalg.eigh(blocks.T @ blocks)[1].flip(1)[:, :count]
    return basis.T.reshape(-1, c, 2, 2)


def _unshuffle_basis(c: int) -> torch.Tensor:
    """pixel_unshuffle by 2 as a convolution (4c, c, 2, 2)."""
    return torch.eye(4 * c).reshape(4 * c, c, 2, 2)


def _shuffled(basis: torch.Tensor) -> torch.Tensor:
    """The transpose of a block transform (n, c, 2, 2), for a 1×1 convolution before pixel_shuffle: (4c, n)."""
    return basis.permute(1, 2, 3, 0).flatten(0, 2)


def _place(conv: nn.Conv2d, weights: torch.Tensor) -> None:
    """Write a matrix (at the kernel's centre) or 2×2 block weights (at its corner, as SD's stride 2 sees them) into the
    first channels of a convolution; what leads from other inputs to these outputs starts at zero."""
    n, m = weights.shape[:2]
    conv.weight[:n] = 0
    if weights.dim() == 4:
        conv.weight[:n, :m, :2, :2] = weights
    else:
        middle = conv.kernel_size[0] // 2
        conv.weight[:n, :m, middle, middle] = weights


def _linear_output(before: nn.Conv2d, norm: nn.GroupNorm, conv: nn.Conv2d, count: int, constant: float) -> None:
    """Let `conv` after norm and SiLU give the difference of the ± pairs (i, count + i) that `before` puts out."""
    width = norm.num_channels
    before.weight[2 * count :] = 0
    before.bias[2 * count] = constant
    mean = constant / width
    std = (constant**2 / width - mean**2) ** 0.5
    norm.bias.fill_(mean / std)
    _place(conv, torch.cat((torch.eye(count), -torch.eye(count)), 1) * std)
    conv.weight[count:] = 0


@torch.no_grad()
def _fold(model: Autoencoder, frames: torch.Tensor) -> None:
    sample = frames[:: max(1, len(frames) // 256), 0].float() / 255
    means = torch.cat([model.moments(batch)[0] for batch in sample.split(32)])
    model.fold_normalisation(means.mean((0, 2, 3)), means.std((0, 2, 3)))
