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
from .flow import CHANNELS, Estimate, FlowNetwork, blend, warp_pair
from .flow_data import MovedScenes

if TYPE_CHECKING:
    from .recipes import DemoRunConfig

SPEEDS = (0, 2, 8, 20, 1000)  # pixels between the end frames: the log has the flow's error for each of these bands
CROP, FINE_CROP = 192, 128  # sides in pixels, of coarse steps and of the others
COARSE_LEVELS = 3  # of the first steps, which train no level finer than 1/4 of the resolution
FLOW_WEIGHT = 0.02  # of the end-point error in pixels, at each level, relative to the error of colours from 0 to 1
LATE_FLOW_WEIGHT = 0.004  # the same in late steps, when what the frame shows counts more than the flow behind it
LEVEL_WEIGHT = 0.2  # of the blended pictures at each level, relative to the frame


def losses(
    network: FlowNetwork, frames: Tensor, velocity: Tensor, time: float, *, coarse: bool = False,
    flow_weight: float = FLOW_WEIGHT,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The loss for frames (b, 3, 3, H, W), the first, that of `time` and the last, and the velocity (b, 2, H, W) of the
    one between; with figures for the log. `coarse`: only the coarse levels are run."""
    ends = frames[:, ::2].flatten(0, 1).contiguous(memory_format=torch.channels_last)
    pictures, target, details = ends.unflatten(0, (-1, 2)), frames[:, 1], {}
    estimates = network.estimate(network.encode(ends), time, COARSE_LEVELS if coarse else len(CHANNELS))
    flow_loss, loss = torch.zeros(()), torch.zeros(())
    for estimate in estimates:
        velocity_loss, picture_loss = _level_losses(estimate, pictures, target, velocity, time)
        flow_loss, loss = flow_loss + velocity_loss, loss + LEVEL_WEIGHT * picture_loss
    if not coarse:
        result = network.refined(pictures, time, estimates)
        first, last = result.flows.chunk(2, 1)
        frame_loss = charbonnier(result.frame - target)
        warped = result.warped.chunk(2, 1)
        blended = torch.lerp(warped[1], warped[0], result.mask)  # without the residual
        loss = loss + frame_loss + LEVEL_WEIGHT * charbonnier(blended - target)
        flow_loss = flow_loss + (_length(first + time * velocity) + _length(last - (1 - time) * velocity)).mean()
        details["frame"] = frame_loss.item()
    details |= errors_by_speed(estimates[-1].velocity.detach(), velocity)
    return loss + flow_weight * flow_loss, details


def _level_losses(
    estimate: Estimate, pictures: Tensor, target: Tensor, velocity: Tensor, time: float
) -> tuple[Tensor, Tensor]:
    """The losses of one level: of its velocity, and of the pictures blended at its resolution."""
    factor = target.shape[-1] // estimate.velocity.shape[-1]
    small, cells = F.avg_pool2d(pictures.flatten(0, 1), factor).unflatten(0, (-1, 2)), estimate.velocity / factor
    warped = torch.cat(warp_pair(small.unbind(1), cells, time), 1)
    picture_loss = charbonnier(blend(warped, estimate.logit, time) - F.avg_pool2d(target, factor))
    return _length(estimate.velocity - F.avg_pool2d(velocity, factor)).mean(), picture_loss


def charbonnier(difference: Tensor) -> Tensor:
    """The mean of √(x² + 0.001²), a smooth absolute value."""
    return (difference.square() + 1e-6).sqrt().mean()


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
    """Frames (b, 3, 3, H, W), the first, that of `time` and the last, and the velocity (b, 2, H, W) of the one between.
    `coarse` and `flow_weight` as in `losses`."""

    time: float
    frames: Tensor
    velocity: Tensor
    coarse: bool
    flow_weight: float


class FlowObjective(Objective):
    """The losses of a flow network."""

    skips_parameters = True

    def __init__(self, network: FlowNetwork):
        super().__init__()
        self.network = network

    def forward(self, step: int, batch: FlowBatch) -> tuple[Tensor, Figures]:
        """The loss of a batch, and figures for the log."""
        return losses(
            self.network, batch.frames, batch.velocity, batch.time, coarse=batch.coarse, flow_weight=batch.flow_weight
        )


class FlowBatches:
    """The batches of one process, callable as Trainer's `batches`. They depend on the seed and the step alone.

    The first `coarse_steps`, and every second step after them, train only the coarse levels, which are cheap, on crops
    large enough for large motion. The others train all of them on smaller ones: what is fine is local. From step
    `late_steps` on, the flow itself has less weight.
    """

    def __init__(self, config: DemoRunConfig, scenes: MovedScenes, world: Processes):
        self.config, self.scenes, self.world = config, scenes, world

    def __call__(self, first: int) -> Iterator[list[FlowBatch]]:
        """Yield the batch of each step from `first` on."""
        c, table = self.config.train, self.config.demo
        for step in itertools.count(first):
            generator = torch.Generator().manual_seed(sample_seed(c.seed, step, 0))
            coarse = step < table.coarse_steps or step % 2 == 0
            time, *maps = self.scenes.sample(generator, c.batch_size, CROP if coarse else FINE_CROP)
            frames, velocity = (values.tensor_split(self.world.count)[self.world.rank] for values in maps)
            weight = LATE_FLOW_WEIGHT if step >= table.late_steps else FLOW_WEIGHT
            yield [FlowBatch(time, frames, velocity, coarse, weight)]


@torch.no_grad()
def validate(network: nn.Module, held_out: MovedScenes, *, limit: int) -> tuple[dict[str, float], Tensor]:
    """The mean PSNR in dB of the frames and of a linear blend, and the flow's error by speed, on the first `limit`
    scenes of each time. Also rows of pictures: blended, made and true."""
    psnrs, blended, speeds, rows = [], [], [], []
    for time, places in held_out.rows.items():
        for start in range(0, min(limit, len(places)), 8):
            frames, velocity = held_out.batch(time, range(start, min(start + 8, limit, len(places))))
            result = network(frames[:, ::2], time)
            frame, linear = result.frame.clamp(0, 1), torch.lerp(frames[:, 0], frames[:, 2], time)
            psnrs += [psnr(made, true) for made, true in zip(frame, frames[:, 1], strict=True)]
            blended += [psnr(made, true) for made, true in zip(linear, frames[:, 1], strict=True)]
            speeds.append(errors_by_speed(result.estimates[-1].velocity, velocity))
            if start == 0:
                rows += [torch.cat([linear[i], frame[i], frames[i, 1]], -1) for i in range(min(4, len(frame)))]
    names = sorted({name for speed in speeds for name in speed})
    bands = {f"held_out_{name}": [speed[name] for speed in speeds if name in speed] for name in names}
    figures = {name: sum(values) / len(values) for name, values in bands.items()}
    return figures | {"psnr": sum(psnrs) / len(psnrs), "psnr_blend": sum(blended) / len(blended)}, torch.stack(rows)
