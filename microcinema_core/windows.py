"""Clips of any length through an interpolation model: batches of windows, one after another, in constant memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig

Progress = Callable[[int, int], None]  # steps done, steps in total
# Windows (b, 2, 3, h, w), a seed for each, steps, progress → the frames (b, N − 2, 3, h, w) between their end frames.
Between = Callable[[Tensor, list[int], int, Progress | None], Tensor]

AT_ONCE = 4  # windows in a batch
PIXELS_AT_ONCE = 2**20  # of the frames of a batch: larger batches are not faster, and need more memory
NAMED_CUTS = 5  # so many are named in a warning


class Windows:
    """Cuts a stream of frames into windows of two neighbours, and calls `between` with batches of them.

    When a batch raises `out_of_memory`, the size of this batch and of all later ones is halved. Where the model held
    the end frames at a cut instead of moving them, `warn` is called with a sentence at the end of the clip.
    """

    def __init__(
        self,
        config: ModelConfig,
        between: Between,
        *,
        steps: int,
        progress: Progress | None = None,
        out_of_memory: type[Exception] = torch.cuda.OutOfMemoryError,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.config, self.between, self.steps = config, between, steps
        self.progress, self.out_of_memory, self.warn = progress, out_of_memory, warn
        self.at_once, self.done, self.total = AT_ONCE, 0, 0
        self.cuts: list[int] = []  # the numbers of the frames before a cut, in the first pass

    def interpolated(self, frames: Iterable[Tensor], count: int, passes: int, seed: int) -> Iterator[Tensor]:
        """Frames (3, h, w) of any size, about `count` of them → the same frames with N − 2 new ones between any two, in
        each of the `passes`. The iterator computes the frames when they are needed.

        Each window has a seed of its own, so that the result does not depend on the size of the batches.
        """
        inner = self.config.network.frames - 1
        self.done, self.total = 0, sum((count - 1) * inner**i for i in range(passes)) * self.steps
        frames = iter(frames)
        first = next(frames)
        height, width = first.shape[1:]
        self.at_once = min(self.at_once, max(1, PIXELS_AT_ONCE // (height * width)))
        out = map(self._padded, chain([first], frames))
        for index in range(passes):
            out = self._pass(out, (seed * 1_000_003 + index) * 1_000_003, first_pass=index == 0)
        return chain((frame[:, :height, :width] for frame in out), self._report())

    def _report(self) -> Iterator[Tensor]:
        """No frames: warns of the cuts that were found, when it is read."""
        if self.cuts:
            named = ", ".join(str(number) for number in self.cuts[:NAMED_CUTS])
            more = f" and {len(self.cuts) - NAMED_CUTS} more" if len(self.cuts) > NAMED_CUTS else ""
            self.warn(
                f"the scene changes after given frame{'s' * (len(self.cuts) > 1)} {named}{more}: the frames there are "
                "copies of their neighbours, since there is no motion between two scenes"
            )
        yield from ()

    def _pass(self, frames: Iterator[Tensor], seed: int, first_pass: bool) -> Iterator[Tensor]:
        """One pass over the frames: each frame, then the new ones between it and the next. Window i has the seed
        `seed` + i."""
        last, start = next(frames), 0
        yield last
        while len(buffer := [last, *islice(frames, self.at_once)]) > 1:
            windows = torch.stack((torch.stack(buffer[:-1]), torch.stack(buffer[1:])), 1)
            while len(windows):
                batch = windows[: self.at_once]
                seeds = [(seed + start + i) % 2**63 for i in range(len(batch))]
                try:
                    inserted = self.between(batch, seeds, self.steps, self._batch_progress(len(batch)))
                except self.out_of_memory:
                    if len(batch) == 1:
                        raise
                    self.at_once = len(batch) // 2
                    continue
                self.done += len(batch) * self.steps
                if first_pass:
                    self.cuts += [start + i + 1 for i, pair in enumerate(batch) if _is_held(inserted[i], *pair)]
                start, windows = start + len(batch), windows[len(batch) :]
                for between, end in zip(inserted, batch[:, 1], strict=True):
                    yield from between
                    yield end
            last = buffer[-1]

    def _batch_progress(self, windows: int) -> Progress | None:
        """The `progress` of one batch of windows, which reports the steps of all batches."""
        if (report := self.progress) is None:
            return None
        return lambda step, _: report(self.done + step * windows, self.total)

    def _padded(self, frame: Tensor) -> Tensor:
        """Repeat the last row and column until both sides are whole latent cells and at least `minimum_side`."""
        factor, minimum = self.config.autoencoder.factor, minimum_side(self.config)
        rows, columns = (max(minimum, -(-side // factor) * factor) - side for side in frame.shape[1:])
        return F.pad(frame[None], (0, columns, 0, rows), mode="replicate")[0] if rows or columns else frame


def _is_held(inserted: Tensor, first: Tensor, last: Tensor) -> bool:
    """Whether frames (n, 3, h, w) between two different ones are copies of them, as the model makes them at a cut."""
    return torch.equal(inserted[0], first) and torch.equal(inserted[-1], last) and not torch.equal(first, last)


def minimum_side(config: ModelConfig) -> int:
    """The smallest side of a clip, in pixels: one cell at the network's coarsest level."""
    return config.autoencoder.factor * 2 ** (len(config.network.channel_multipliers) - 1)
