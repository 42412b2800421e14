"""Trains the flow network on films of moved photographs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..metrics.quality import psnr
from ..training.data.order import sample_seed
from ..training.distributed import Processes
from ..training.trainer import Figures, Objective
from .flow import FlowNetwork
from .flow_data import MovedScenes

if TYPE_CHECKING:
    from .recipes import DemoRunConfig

BLENDED_WEIGHT = 0.2  # of the candidates' mean, relative to the frame
# The logarithm of the error counts, as in PSNR: what is gained where little moves counts like what is gained where much
# does. Errors far below SMALL_ERROR do not count, and one of USUAL_ERROR is weighted by 1.
SMALL_ERROR, USUAL_ERROR = 0.008, 0.02


@dataclass
class FlowBatch:
    """Frames (b, 3, 3, H, W), the first, that of `time` and the last, and the flows (b, 2, 2, H/2, W/2) between the
    ends."""

    time: float
    frames: Tensor
    flows: Tensor


class FlowObjective(Objective):
    """The loss of a flow network."""

    def __init__(self, network: FlowNetwork):
        super().__init__()
        self.network = network

    def forward(self, step: int, batch: FlowBatch) -> tuple[Tensor, Figures]:
        """The loss of a batch, and figures for the log."""
        target = batch.frames[:, 1]
        made = self.network(batch.frames[:, ::2], batch.time, batch.flows)
        frame, blended = ((maps - target).square().mean((1, 2, 3)) for maps in (made.frame, made.blended))
        loss = _logarithm(frame) + BLENDED_WEIGHT * _logarithm(blended)
        return USUAL_ERROR * loss, {"frame": frame.sqrt().mean().item()}


def _logarithm(squares: Tensor) -> Tensor:
    """The mean logarithm of the errors whose squares (b,) are given."""
    return (SMALL_ERROR**2 + squares).log().mean() / 2


class FlowBatches:
    """The batches of one process, callable as Trainer's `batches`. They depend on the seed and the step alone."""

    def __init__(self, config: DemoRunConfig, scenes: MovedScenes, world: Processes):
        self.config, self.scenes, self.world = config, scenes, world

    def __call__(self, first: int) -> Iterator[list[FlowBatch]]:
        """Yield the batch of each step from `first` on."""
        c = self.config.train
        for step in itertools.count(first):
            generator = torch.Generator().manual_seed(sample_seed(c.seed, step, 0))
            time, *parts = self.scenes.sample(generator, c.batch_size, self.config.demo.crop)
            frames, flows = (part.tensor_split(self.world.count)[self.world.rank] for part in parts)
            yield [FlowBatch(time, frames, flows)]


@torch.no_grad()
def validate(network: nn.Module, held_out: MovedScenes, *, limit: int) -> tuple[dict[str, float], Tensor]:
    """The mean PSNR in dB of the frames and of a linear blend, on the first `limit` scenes. Also rows of pictures:
    blended, made and true."""
    psnrs, blended, rows = [], [], []
    limit = min(limit, len(held_out))
    for start in range(0, limit, 8):
        frames, flows = held_out.batch(range(start, min(start + 8, limit)))
        for between in range(1, frames.shape[1] - 1):
            time, true = between / (frames.shape[1] - 1), frames[:, between]
            frame = network(frames[:, [0, -1]], time, flows).frame.clamp(0, 1)
            linear = torch.lerp(frames[:, 0], frames[:, -1], time)
            psnrs += map(psnr, frame, true)
            blended += map(psnr, linear, true)
            if start == 0:
                rows += [torch.cat(pictures, -1) for pictures in zip(linear[:4], frame[:4], true[:4], strict=True)]
    return {"psnr": sum(psnrs) / len(psnrs), "psnr_blend": sum(blended) / len(blended)}, torch.stack(rows).cpu()
