"""Clips of any length through an interpolation model: batches of windows, one after another, in constant memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .trust import Trust, part_of

Progress = Callable[[int, int], None]  # steps done, steps in total

AT_ONCE = 4  # windows in a batch
PIXELS_AT_ONCE = 2**20  # of the frames of a batch: larger batches are not faster, and need more memory
NAMED_CUTS = 5  # so many are named in a warning


class Interpolator(Protocol):
    """What makes the frames: a Pipeline, or a host's sampler."""

    def between(self, ends: Tensor, seeds: list[int], steps: int, progress: Progress | None, shares: Tensor) -> Tensor:
        """Windows (b, 2, 3, h, w), a seed and a share (b,) of Trust for each → the frames (b, N − 2, 3, h, w) between
        their end frames."""
        ...

    def compare(self, triples: Tensor) -> Tensor:
        """Neighbours (n, 3, 3, h, w) → for Trust, the sums (n, 2) of what is made of the first and the last one."""
        ...


class Windows:
    """Cuts a stream of frames into windows of two neighbours, and gives batches of them to an interpolator.

    When a batch raises `out_of_memory`, the size of this batch and of all later ones is halved. Where the model held
    the end frames at a cut instead of moving them, `warn` is called with a sentence at the end of the clip.
    """

    def __init__(
        self,
        config: ModelConfig,
        interpolator: Interpolator,
        *,
        steps: int,
        progress: Progress | None = None,
        out_of_memory: type[Exception] = torch.cuda.OutOfMemoryError,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.config, self.interpolator, self.steps = config, interpolator, steps
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
        start, trust, buffer = 0, Trust(), [next(frames)]
        yield buffer[0]
        # Up to `at_once` windows, and the frame after them.
        while len(buffer := [*buffer, *islice(frames, self.at_once + 2 - len(buffer))]) > 1:
            ends = torch.stack(buffer[: self.at_once + 1])
            windows = torch.stack((ends[:-1], ends[1:]), 1)
            seeds = [(seed + start + i) % 2**63 for i in range(len(windows))]
            shares = self._shares(trust, buffer, start) if first_pass else torch.ones(len(windows))
            inserted = self._between(windows, seeds, shares[: len(windows)])
            if first_pass:
                self.cuts += [start + i + 1 for i, pair in enumerate(windows) if _is_held(inserted[i], *pair)]
            for between, end in zip(inserted, windows[:, 1], strict=True):
                yield from between
                yield end
            start, buffer = start + len(windows), buffer[len(windows) :]

    def _shares(self, trust: Trust, frames: list[Tensor], number: int) -> Tensor:
        """The shares of the windows between frames, of which the first has this number."""
        triples = [part_of(torch.stack(frames[i : i + 3]), number + i) for i in range(len(frames) - 2)]
        products = self.interpolator.compare(torch.stack(triples)) if triples else ()
        return torch.tensor([*map(trust.after, products), trust.share])  # the last window has no next frame

    def _between(self, windows: Tensor, seeds: list[int], shares: Tensor) -> Tensor:
        """The frames between the end frames of windows."""
        made, done = [], 0
        while done < len(windows):
            rows = slice(done, done + self.at_once)
            batch = windows[rows]
            try:
                progress = self._batch_progress(len(batch))
                made.append(self.interpolator.between(batch, seeds[rows], self.steps, progress, shares[rows]))
            except self.out_of_memory:
                if len(batch) == 1:
                    raise
                self.at_once = len(batch) // 2
                continue
            self.done += len(batch) * self.steps
            done += len(batch)
        return torch.cat(made)

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


def each_once(encode: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """The end frames of windows (b, 2, …), encoded by a function of (n, …); frames that two neighbouring windows share
    are encoded once."""
    if not torch.equal(windows[1:, 0], windows[:-1, 1]):
        return encode(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
    encoded = encode(torch.cat([windows[:1, 0], windows[:, 1]]))
    return torch.stack([encoded[:-1], encoded[1:]], 1)
