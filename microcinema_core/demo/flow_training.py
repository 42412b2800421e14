"""Trains the flow network on moved photographs, whose velocity is known exactly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..images import contact_sheet
from ..metrics.quality import psnr
from .flow import CHANNELS, Estimate, FlowNetwork, blend, warp_pair
from .flow_data import MovedScenes

SPEEDS = (0, 2, 8, 20, 1000)  # pixels between the end frames: the log has the flow's error for each of these bands
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


class FlowTraining:
    """The loss of a step and the validation, for Trainer.run."""

    def __init__(
        self, network: FlowNetwork, scenes: MovedScenes, held_out: MovedScenes | None, *, batch_size: int, crop: int,
        fine_crop: int, coarse_steps: int, late_steps: int,
    ):  # fmt: skip
        self.network, self.scenes, self.held_out, self.batch_size = network, scenes, held_out, batch_size
        self.crop, self.fine_crop, self.coarse_steps, self.late_steps = crop, fine_crop, coarse_steps, late_steps

    def loss(self, step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and figures for the log.

        The first `coarse_steps`, and every second step after them, train only the coarse levels, which are cheap, on
        crops large enough for large motion. The others train all of them on smaller ones: what is fine is local. From
        step `late_steps` on, the flow itself has less weight.
        """
        coarse = step < self.coarse_steps or step % 2 == 0
        time, frames, velocity = self.scenes.sample(generator, self.batch_size, self.crop if coarse else self.fine_crop)
        weight = LATE_FLOW_WEIGHT if step >= self.late_steps else FLOW_WEIGHT
        return losses(self.network, frames, velocity, time, coarse=coarse, flow_weight=weight)

    def show(self, ema: FlowNetwork, path: Path) -> dict[str, float]:
        """Validate the EMA network on the held-out scenes, and write some of its frames to an image file."""
        if self.held_out is None:
            return {}
        figures, sheet = validate(ema, self.held_out, limit=96)
        contact_sheet(sheet, path)
        return figures


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
                rows += [torch.cat([linear[i], frame[i], frames[i, 1]], -1) for i in range(4)]
    names = sorted({name for speed in speeds for name in speed})
    bands = {f"held_out_{name}": [speed[name] for speed in speeds if name in speed] for name in names}
    figures = {name: sum(values) / len(values) for name, values in bands.items()}
    return figures | {"psnr": sum(psnrs) / len(psnrs), "psnr_blend": sum(blended) / len(blended)}, torch.stack(rows)
