"""Trains the diffusion residual of an interpolation model around a trained flow network, on moved photographs.

The flow network is run once over all clips. The paper's objective then trains the other layers on their latents, and
least squares give the linear map from residual latents to pixels: where the residual tells nothing of the true pixels,
the map that has the smallest error is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..checkpoint import LoadedModel
from ..pipeline import Pipeline
from ..training.objective import Objective
from .config import DemoModelConfig
from .flow_warp import WarpedFrames
from .moved_photographs import Photographs, draw_scene
from .network import DemoUNet

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

    @property
    def residual_std(self) -> float:
        """The standard deviation of the residual latents between the end frames."""
        return (self.latents - self.warped.latents)[:, 1:-1].std().item()


@torch.no_grad()
def draw_clips(network: DemoUNet, photographs: Photographs, seeds: Sequence[int], side: int) -> WarpedClips:
    """Draw clips of the network's length and warp their end frames. Clips that the flow warp takes for a cut are left
    out."""
    frames = network.config.frames
    times, parts = [index / (frames - 1) for index in range(frames)], []
    for start in range(0, len(seeds), BATCH):
        pixels = torch.stack([draw_scene(photographs, seed, times, side)[0] for seed in seeds[start : start + BATCH]])
        flat = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        latents = network.flow_warp.autoencoder.encode(flat).unflatten(0, pixels.shape[:2])
        clips = WarpedClips(pixels, latents, network.flow_warp(pixels[:, [0, -1]], latents[:, [0, -1]], times))
        parts.append(clips.rows(~clips.warped.cut))
    warped = [torch.cat(values) for values in zip(*(vars(part.warped).values() for part in parts), strict=True)]
    pixels, latents = (torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "latents"))
    return WarpedClips(pixels, latents, WarpedFrames(*warped))


class ResidualTraining:
    """The loss of a step of the paper's objective around the warped frames, for Trainer.run."""

    def __init__(self, config: DemoModelConfig, network: DemoUNet, clips: WarpedClips, batch_size: int):
        self.objective, self.network, self.clips, self.batch_size = Objective(config), network, clips, batch_size
        self.lambda_ = config.lambda_

    def loss(self, step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean squared error of the network's output for random clips, backwards in time half of the time."""
        clips = self.clips.rows(torch.randint(len(self.clips), (self.batch_size,), generator=generator))
        if torch.rand((), generator=generator) < 0.5:
            warped = clips.warped
            clips = WarpedClips(
                clips.pixels.flip(1), clips.latents.flip(1),
                replace(warped, latents=warped.latents.flip(1), disagreement=warped.disagreement.flip(1)),
            )  # fmt: skip
        timesteps = (torch.rand(len(clips), generator=generator).sqrt() * 1000).long().clamp(max=999)
        noise = torch.randn(clips.latents.shape, generator=generator)
        noisy, target = self.objective.noisy(clips.latents, timesteps, noise)
        condition = self.network.encode_condition(self.objective.condition(clips.latents), lambda_=self.lambda_)
        condition.warped = clips.warped
        x = noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        out = self.network(x, timesteps, condition=condition, num_video_frames=noisy.shape[1])
        return (out.unflatten(0, noisy.shape[:2]) - target).square().mean(), {}


@torch.no_grad()
def fit_residual_out(model: LoadedModel, clips: WarpedClips) -> tuple[float, float]:
    """Fit the map from sampled residual latents to pixels, in place, on the first three quarters of the clips. Returns
    the mean squared error of the frames of the other clips without and with the residual."""
    network = model.network
    assert isinstance(network, DemoUNet)
    parts = [
        _sampled_residuals(model, network, clips.rows(slice(start, start + BATCH)), start)
        for start in range(0, len(clips), BATCH)
    ]
    train = -(-len(clips) * 3 // 4 // BATCH)
    network.flow_warp.residual_out.weight.copy_(least_squares(parts[:train], network.flow_warp.factor))
    errors = [
        (pixels.square().mean(), (pixels - network.flow_warp.residual(residual)).square().mean())
        for residual, pixels in parts[train:] or parts
    ]
    before, after = torch.tensor(errors).mean(0).tolist()
    return before, after


def _sampled_residuals(model: LoadedModel, network: DemoUNet, clips: WarpedClips, seed: int) -> tuple[Tensor, Tensor]:
    """The residual latents (n, C, h, w) that the model samples for the frames between the end frames, and what these
    lack of their true pixels, (n, 3, H, W)."""
    ends = clips.latents[:, [0, -1]]
    encoded = network.encode_condition(ends, lambda_=model.config.lambda_)
    encoded.warped = clips.warped
    seeds = list(range(seed, seed + len(clips)))
    sampled = Pipeline(model).sample(ends, None, frames=clips.latents.shape[1], seeds=seeds, encoded=encoded)
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
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products))
    weights = torch.linalg.solve(products + ridge, targets).mT
    return weights.reshape(len(weights), -1, 3, 3)
