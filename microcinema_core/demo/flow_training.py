"""Trains the flow network on moved photographs, whose velocity is known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..metrics.quality import psnr
from ..training.data.order import sample_seed
from ..training.distributed import Processes
from ..training.trainer import Figures, Objective
from .flow import Estimate, FlowNetwork, blend, warp_pair
from .flow_data import MovedScenes

if TYPE_CHECKING:
    from .recipes import DemoRunConfig

SPEEDS = (0, 2, 8, 20, 1000)  # pixels between the end frames: the log has the flow's error for each of these bands
FLOW_WEIGHT = 0.004  # of the end-point error in pixels, at each level, relative to the error of colours from 0 to 1
LEVEL_WEIGHT = 0.2  # of the blended pictures at each level, relative to the frame
# Of frames at full resolution the logarithm of the error counts, as in PSNR: what is gained where little moves counts
# like what is gained where much does. Errors far below SMALL_ERROR do not, and one of USUAL_ERROR is weighted by 1.
SMALL_ERROR, USUAL_ERROR = 0.005, 0.015


def losses(network: FlowNetwork, frames: Tensor, velocity: Tensor, time: float) -> tuple[Tensor, dict[str, float]]:
    """The loss for frames (b, 3, 3, H, W), the first, that of `time` and the last, and the velocity (b, 2, H, W) of the
    one between; with figures for the log."""
    ends = frames[:, ::2].flatten(0, 1).contiguous(memory_format=torch.channels_last)
    pictures, target = ends.unflatten(0, (-1, 2)), frames[:, 1]
    result = network(pictures, time)
    first, last = result.flows.chunk(2, 1)
    flow_loss = (_length(first + time * velocity) + _length(last - (1 - time) * velocity)).mean()
    warped = result.warped.chunk(2, 1)
    blended = torch.lerp(warped[1], warped[0], result.mask)  # without the residual
    loss = _logarithm(result.frame - target) + LEVEL_WEIGHT * _logarithm(blended - target)
    for estimate in result.estimates:
        velocity_loss, picture_loss = _level_losses(estimate, pictures, target, velocity, time)
        flow_loss, loss = flow_loss + velocity_loss, loss + LEVEL_WEIGHT * picture_loss
    details = errors_by_speed(result.estimates[-1].velocity.detach(), velocity)
    return loss + FLOW_WEIGHT * flow_loss, details | {"frame": charbonnier(result.frame - target).mean().item()}


def _level_losses(
    estimate: Estimate, pictures: Tensor, target: Tensor, velocity: Tensor, time: float
) -> tuple[Tensor, Tensor]:
    """The losses of one level: of its velocity, and of the pictures blended at its resolution."""
    factor = target.shape[-1] // estimate.velocity.shape[-1]
    small, cells = F.avg_pool2d(pictures.flatten(0, 1), factor).unflatten(0, (-1, 2)), estimate.velocity / factor
    warped = torch.cat(warp_pair(small.unbind(1), cells, time), 1)
    picture_loss = charbonnier(blend(warped, estimate.logit, time) - F.avg_pool2d(target, factor)).mean()
    return _length(estimate.velocity - F.avg_pool2d(velocity, factor)).mean(), picture_loss


def charbonnier(difference: Tensor) -> Tensor:
    """The means of √(x² + 0.001²), a smooth absolute value, of each of the maps (b, C, H, W)."""
    return (difference.square() + 1e-6).sqrt().mean((1, 2, 3))


def _logarithm(difference: Tensor) -> Tensor:
    """The loss of the differences (b, 3, H, W) of frames; its gradient is `charbonnier`'s where the error is usual."""
    return (SMALL_ERROR + USUAL_ERROR) * (SMALL_ERROR + charbonnier(difference)).log().mean()


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(1) + 1e-4).sqrt()


def errors_by_speed(predicted: Tensor, velocity: Tensor) -> dict[str, float]:
    """The mean end-point error in pixels of a velocity (b, 2, h, w) for each band of the true speeds (b, 2, H, W)."""
    velocity = F.avg_pool2d(velocity, velocity.shape[-1] // predicted.shape[-1])
    speed, error = velocity.norm(dim=1), (predicted - velocity).norm(dim=1)
    bands = {f"flow_{low}px": error[(speed >= low) & (speed < high)] for low, high in pairwise(SPEEDS)}
    return {name: values.mean().item() for name, values in bands.items() if len(values)}


@dataclass
class FlowBatch:
    """Frames (b, 3, 3, H, W), the first, that of `time` and the last, and its velocity (b, 2, H, W)."""

    time: float
    frames: Tensor
    velocity: Tensor


class FlowObjective(Objective):
    """The loss of a flow network."""

    def __init__(self, network: FlowNetwork):
        super().__init__()
        self.network = network

    def forward(self, step: int, batch: FlowBatch) -> tuple[Tensor, Figures]:
        """The loss of a batch, and figures for the log."""
        return losses(self.network, batch.frames, batch.velocity, batch.time)


class FlowBatches:
    """The batches of one process, callable as Trainer's `batches`. They depend on the seed and the step alone."""

    def __init__(self, config: DemoRunConfig, scenes: MovedScenes, world: Processes):
        self.config, self.scenes, self.world = config, scenes, world

    def __call__(self, first: int) -> Iterator[list[FlowBatch]]:
        """Yield the batch of each step from `first` on."""
        c = self.config.train
        for step in itertools.count(first):
            generator = torch.Generator().manual_seed(sample_seed(c.seed, step, 0))
            time, *maps = self.scenes.sample(generator, c.batch_size, self.config.demo.crop)
            frames, velocity = (values.tensor_split(self.world.count)[self.world.rank] for values in maps)
            yield [FlowBatch(time, frames, velocity)]


@torch.no_grad()
def validate(network: nn.Module, held_out: MovedScenes, *, limit: int) -> tuple[dict[str, float], Tensor]:
    """The mean PSNR in dB of the frames and of a linear blend, and the flow's error by speed, on the first `limit`
    scenes. Also rows of pictures: blended, made and true."""
    psnrs, blended, speeds, rows = [], [], [], []
    for start in range(0, min(limit, len(held_out.rows)), 8):
        frames, velocity = held_out.batch(range(start, min(start + 8, limit, len(held_out.rows))))
        for between in range(1, frames.shape[1] - 1):
            time, true = between / (frames.shape[1] - 1), frames[:, between]
            result = network(frames[:, [0, -1]], time)
            frame, linear = result.frame.clamp(0, 1), torch.lerp(frames[:, 0], frames[:, -1], time)
            psnrs += map(psnr, frame, true)
            blended += map(psnr, linear, true)
            speeds.append(errors_by_speed(result.estimates[-1].velocity, velocity[:, between - 1]))
            if start == 0:
                rows += [torch.cat(pictures, -1) for pictures in zip(linear[:4], frame[:4], true[:4], strict=True)]
    names = sorted({name for speed in speeds for name in speed})
    bands = {f"held_out_{name}": [speed[name] for speed in speeds if name in speed] for name in names}
    figures = {name: sum(values) / len(values) for name, values in bands.items()}
    figures |= {"psnr": sum(psnrs) / len(psnrs), "psnr_blend": sum(blended) / len(blended)}
    return figures, torch.stack(rows).cpu()
