"""Clips of any length through an interpolation model: window after window, a few of them held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig

Progress = Callable[[int, int], None]  # steps done, steps in all
# Windows (b, 2, 3, h, w), a seed for each, steps, progress → the frames (b, N − 2, 3, h, w) between their two.
Between = Callable[[Tensor, list[int], int, Progress | None], Tensor]

AT_ONCE = 4  # windows in a batch


class Windows:
    """`between` makes the frames inside a batch of windows; here it is fed. A batch that raises `out_of_memory` is
    halved, and so are those after it."""

    def __init__(
        self,
        config: ModelConfig,
        between: Between,
        *,
        steps: int,
        progress: Progress | None = None,
        out_of_memory: type[Exception] = torch.cuda.OutOfMemoryError,
    ):
        self.config, self.between, self.steps = config, between, steps
        self.progress, self.out_of_memory = progress, out_of_memory
        self.at_once, self.done, self.total = AT_ONCE, 0, 0

    def interpolated(self, frames: Iterable[Tensor], count: int, passes: int, seed: int) -> Iterator[Tensor]:
        """Frames (3, h, w) of any size, about `count` of them, → those, unchanged, and N − 2 new ones between any two,
        in each pass; made as they are asked for.

        Each window has a seed of its own, so that the result does not depend on how windows are batched.
        """
        inner = self.config.network.frames - 1
        self.done, self.total = 0, sum((count - 1) * inner**i for i in range(passes)) * self.steps
        frames = iter(frames)
        first = next(frames)
        height, width = first.shape[1:]
        out = map(self._padded, chain([first], frames))
        for index in range(passes):
            out = self._pass(out, (seed * 1_000_003 + index) * 1_000_003)
        return (frame[:, :height, :width] for frame in out)

    def _pass(self, frames: Iterator[Tensor], seed: int) -> Iterator[Tensor]:
        """Frames and what comes between them; window i has the seed `seed` + i."""
        last, start = next(frames), 0
        yield last
        while len(ahead := [last, *islice(frames, self.at_once)]) > 1:
            ends = torch.stack((torch.stack(ahead[:-1]), torch.stack(ahead[1:])), 1)
            while len(ends):
                now = ends[: self.at_once]
                seeds = [(seed + start + i) % 2**63 for i in range(len(now))]
                try:
                    made = self.between(now, seeds, self.steps, self.progress and self._report(len(now)))
                except self.out_of_memory:
                    if len(now) == 1:
                        raise
                    self.at_once = len(now) // 2
                    continue
                self.done += len(now) * self.steps
                start, ends = start + len(now), ends[len(now) :]
                for between, end in zip(made, now[:, 1], strict=True):
                    yield from between
                    yield end
            last = ahead[-1]

    def _report(self, windows: int) -> Progress:
        """Progress of one batch of windows, told as progress of the whole."""
        return lambda step, _: self.progress(self.done + step * windows, self.total)

    def _padded(self, frame: Tensor) -> Tensor:
        """Last lines repeated until the sides are whole latent cells, and enough for the network's coarsest level."""
        factor, least = self.config.autoencoder.factor, least_side(self.config)
        rows, columns = (max(least, -(-side // factor) * factor) - side for side in frame.shape[1:])
        return F.pad(frame[None], (0, columns, 0, rows), mode="replicate")[0] if rows or columns else frame


def least_side(config: ModelConfig) -> int:
    """One cell at the network's coarsest level, in pixels."""
    return config.autoencoder.factor * 2 ** (len(config.network.channel_multipliers) - 1)
