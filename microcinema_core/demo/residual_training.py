"""Trains the diffusion residual of an interpolation model around a trained flow network, on moved photographs.

The flow network is run once over all clips. The paper's objective then trains the other layers on their latents, and
least squares give the linear map from residual latents to pixels: where the residual tells nothing of the true pixels,
the map that has the smallest error is zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import LoadedModel
from ..pipeline import Pipeline
from ..training.config import RunConfig
from ..training.data.order import sample_seed
from ..training.distributed import Processes
from ..training.objective import DiffusionLoss
from ..training.trainer import Figures, Objective
from .config import DemoModelConfig
from .film import draw_film
from .flow_unet import FlowUNet
from .flow_warp import WarpedFrames
from .moved_photographs import Photographs

RIDGE = 1e-3  # of the least squares, relative to the mean variance of the residual latents
BATCH = 8  # clips that are encoded or sampled at a time


@dataclass
class WarpedClips:
    """Clips with the flow warp's prediction of them: true pixels (n, t, 3, H, W) and latents (n, t, C, h, w)."""

    pixels: Tensor
    latents: Tensor
    warped: WarpedFrames

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, rows: Tensor | slice) -> WarpedClips:
        """Some of the clips."""
        warped = WarpedFrames(*(values[rows] for values in vars(self.warped).values()))
        return WarpedClips(self.pixels[rows], self.latents[rows], warped)

    def backwards(self) -> WarpedClips:
        """The clips backwards in time."""
        warped = replace(
            self.warped, pixels=self.warped.pixels.flip(1), latents=self.warped.latents.flip(1),
            disagreement=self.warped.disagreement.flip(1), moving=self.warped.moving.flip(1),
            quiet=self.warped.quiet.flip(1),
        )  # fmt: skip
        return WarpedClips(self.pixels.flip(1), self.latents.flip(1), warped)

    @property
    def residual_std(self) -> float:
        """The standard deviation of the residual latents between the end frames."""
        return (self.latents - self.warped.latents)[:, 1:-1].std().item()


@torch.no_grad()
def draw_clips(network: FlowUNet, photographs: Photographs, seeds: Sequence[int], side: int) -> WarpedClips:
    """Draw clips of the network's length and warp their end frames. Clips that the flow warp takes for a cut are left
    out."""
    frames = network.config.frames
    times, parts = [index / (frames - 1) for index in range(frames)], []
    for start in range(0, len(seeds), BATCH):
        pixels = torch.stack([draw_film(photographs, seed, side) for seed in seeds[start : start + BATCH]])
        pixels = pixels.to(network.flow_warp.residual_out.weight.device)
        flat = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        latents = network.flow_warp.autoencoder.encode(flat).unflatten(0, pixels.shape[:2])
        clips = WarpedClips(pixels, latents, network.flow_warp(pixels[:, [0, -1]], latents[:, [0, -1]], times))
        parts.append(clips.rows(~clips.warped.is_cut))
    warped = [torch.cat(values) for values in zip(*(vars(part.warped).values() for part in parts), strict=True)]
    pixels, latents = (torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "latents"))
    return WarpedClips(pixels, latents, WarpedFrames(*warped))


@dataclass
class ResidualBatch:
    """Clips, with timesteps (b,) and noise (b, t, C, h, w) in latents."""

    clips: WarpedClips
    timesteps: Tensor
    noise: Tensor


class ResidualObjective(Objective):
    """The paper's objective around the warped frames."""

    def __init__(self, config: DemoModelConfig, network: FlowUNet):
        super().__init__()
        self.losses, self.lambda_ = DiffusionLoss(config), config.lambda_
        self.network = network

    def forward(self, step: int, batch: ResidualBatch) -> tuple[Tensor, Figures]:
        """The mean squared error of the network's output."""
        noisy, target = self.losses.noisy(batch.clips.latents, batch.timesteps, batch.noise)
        condition = self.network.encode_condition(self.losses.condition(batch.clips.latents), lambda_=self.lambda_)
        condition.warped = batch.clips.warped
        x = noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        out = self.network(x, batch.timesteps, condition=condition, num_video_frames=noisy.shape[1])
        return (out.unflatten(0, noisy.shape[:2]) - target).square().mean(), {}


class ResidualBatches:
    """The batches of one process, callable as Trainer's `batches`: random clips, backwards in time in half of the
    steps. They depend on the seed and the step alone."""

    def __init__(self, config: RunConfig, clips: WarpedClips, world: Processes):
        self.config, self.clips, self.world = config, clips, world

    def __call__(self, first: int) -> Iterator[list[ResidualBatch]]:
        """Yield the batch of each step from `first` on."""
        c = self.config.train
        for step in itertools.count(first):
            generator = torch.Generator().manual_seed(sample_seed(c.seed, step, 0))
            rows = torch.randint(len(self.clips), (c.batch_size,), generator=generator)
            backwards = bool(torch.rand((), generator=generator) < 0.5)
            timesteps = (torch.rand(c.batch_size, generator=generator).sqrt() * 1000).long().clamp(max=999)
            noise = torch.randn(c.batch_size, *self.clips.latents.shape[1:], generator=generator)
            rows, timesteps, noise = (
                values.tensor_split(self.world.count)[self.world.rank] for values in (rows, timesteps, noise)
            )
            clips = self.clips.rows(rows)
            yield [ResidualBatch(clips.backwards() if backwards else clips, timesteps, noise)]


@torch.no_grad()
def fit_residual_out(model: LoadedModel, clips: WarpedClips) -> tuple[float, float]:
    """Fit the map from sampled residual latents to pixels, in place, on the first three quarters of the clips, and
    shrink it by the factor from 0 to 1 that is best for the others. Returns the mean squared error of the frames of
    these without and with the residual."""
    network = model.network
    assert isinstance(network, FlowUNet)
    parts = [
        _sampled_residuals(model, network, clips.rows(slice(start, start + BATCH)), start)
        for start in range(0, len(clips), BATCH)
    ]
    train = -(-len(clips) * 3 // 4 // BATCH)
    others, weight = parts[train:] or parts, network.flow_warp.residual_out.weight
    weight.copy_(least_squares(parts[:train], network.flow_warp.factor))
    made = [(pixels, network.flow_warp.residual(residual)) for residual, pixels in others]
    product = torch.stack([(pixels * residual).sum() for pixels, residual in made]).sum()
    square = torch.stack([residual.square().sum() for _, residual in made]).sum()
    weight.mul_((product / square).clamp(0, 1))
    errors = [
        (pixels.square().mean(), (pixels - network.flow_warp.residual(residual)).square().mean())
        for residual, pixels in others
    ]
    before, after = torch.tensor(errors).mean(0).tolist()
    return before, after


def _sampled_residuals(model: LoadedModel, network: FlowUNet, clips: WarpedClips, seed: int) -> tuple[Tensor, Tensor]:
    """The residual latents (n, C, h, w) that the model samples for the frames between the end frames, and what these
    lack of their true pixels, (n, 3, H, W)."""
    ends = clips.latents[:, [0, -1]]
    encoded = network.encode_condition(ends, lambda_=model.config.lambda_)
    encoded.warped = clips.warped
    seeds = list(range(seed, seed + len(clips)))
    sampled = Pipeline(model, clips.latents.device).sample(
        ends, None, frames=clips.latents.shape[1], seeds=seeds, encoded=encoded
    )
    residual, pixels = sampled - clips.warped.latents, clips.pixels - clips.warped.pixels
    return residual[:, 1:-1].flatten(0, 1), pixels[:, 1:-1].flatten(0, 1)


def least_squares(parts: Sequence[tuple[Tensor, Tensor]], factor: int) -> Tensor:
    """The weights (3·factor², C, 3, 3) of the convolution of residuals (n, C, h, w) that comes nearest to the pixels
    (n, 3, factor·h, factor·w), unshuffled, over all parts."""
    products, targets = torch.zeros(()), torch.zeros(())
    for residual, pixels in parts:
        inputs = F.unfold(residual, 3, padding=1).movedim(1, 0).flatten(1)
        outputs = F.pixel_unshuffle(pixels, factor).movedim(1, 0).flatten(1)
        products, targets = products + inputs @ inputs.mT, targets + inputs @ outputs.mT
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products)).to(products)
    weights = torch.linalg.solve(products + ridge, targets).mT
    return weights.reshape(len(weights), -1, 3, 3)
