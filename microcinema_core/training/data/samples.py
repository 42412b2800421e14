"""From clips to batches: which clip a step learns from, with which noise, timestep and text.

Everything random depends on the seed, the step and the clip alone, so that neither the number of processes nor that of
loading workers changes what is learned, and a run can go on from any step.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ...diffusion import NoiseSchedule
from ...errors import MicroCinemaError
from ..objective import Batch
from .clips import Unusable
from .order import Order, generator

TRIES = 20  # clips that are tried in place of one that is unusable
CLIP = 2**62  # added to a visit instead of a step, for the random numbers by which a clip is cut


@dataclass
class Clip:
    """A clip as it is read: pixels (t, 3, H, W) in uint8, or the moments of its latents (t, C, h, w); its caption, and
    the caption's states (L, width) where they were stored."""

    caption: str
    pixels: Tensor | None = None
    mean: Tensor | None = None
    log_variance: Tensor | None = None
    states: Tensor | None = None


class Clips(Protocol):
    """A source of clips.

    identity: a hash of the data. sizes: the widths and heights of its clips, in pixels. buckets (n,): the place in
    `sizes` for each clip.
    """

    identity: str
    sizes: list[tuple[int, int]]
    buckets: np.ndarray

    def name(self, index: int) -> str:
        """The name of a clip's video, for messages."""
        ...

    def captions(self) -> Iterable[str]:
        """The captions of all clips, for a vocabulary."""
        ...

    def read(self, index: int, visit: int) -> Clip:
        """Read a clip; `visit` counts the epochs before. Raises Unusable where that is impossible."""
        ...


@dataclass(frozen=True)
class Sample:
    """A clip with its random numbers, and what was skipped on the way to it: (name, reason)."""

    batch: Batch
    skipped: list[tuple[str, str]]

    def pin_memory(self) -> Sample:
        """The sample in page-locked memory, which is copied to a GPU while that computes; DataLoader calls this."""
        return replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class TextSource:
    """How captions become the text of a batch: by a tokenizer, or by stored states with those of the empty text."""

    tokenizer: Callable[[list[str]], Tensor] | None
    empty: Tensor | None = None

    def text(self, clip: Clip, dropped: bool) -> Tensor | None:
        """Token ids (L,) or states (L, width); None for a model without text."""
        if clip.states is not None:
            return self.empty if dropped else clip.states
        return self.tokenizer(["" if dropped else clip.caption])[0] if self.tokenizer else None


class Samples(Dataset):
    """The clips of `rows` in a source, in the batches of an order, by (step, place in the batch)."""

    def __init__(
        self, clips: Clips, rows: np.ndarray, order: Order, text: TextSource, *, seed: int, variants: int,
        text_drop: float, factor: int, channels: int,
    ):  # fmt: skip
        """variants and text_drop: as in the table [data]; factor: pixels per latent cell along one side; channels: of
        the latents."""
        self.clips, self.rows, self.order, self.text = clips, rows, order, text
        self.seed, self.variants, self.text_drop = seed, variants, text_drop
        self.factor, self.channels = factor, channels

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Raises MicroCinemaError where a clip and all its substitutes are unusable."""
        step, place = key
        clip, skipped = self._read(step, place)
        width, height = self.clips.sizes[int(self.clips.buckets[self.rows[self.order.batch(step)[place]]])]
        first = clip.mean if clip.pixels is None else clip.pixels
        assert first is not None
        shape = (len(first), self.channels, height // self.factor, width // self.factor)
        random = generator(self.seed, step, place)
        timestep = torch.randint(NoiseSchedule.steps, (), generator=random)
        dropped = torch.rand((), generator=random).item() < self.text_drop
        posterior, noise = (torch.randn(shape, generator=random) for _ in range(2))
        text = self.text.text(clip, dropped)
        return Sample(Batch(noise, timestep, posterior, text, clip.pixels, clip.mean, clip.log_variance), skipped)

    def largest(self, count: int) -> Batch:
        """A micro-batch of `count` empty clips of the largest size, as it would be read: for Trainer.rehearse."""
        clip, _ = self._read(0, 0)
        width, height = max(self.clips.sizes, key=lambda size: size[0] * size[1])
        first = clip.mean if clip.pixels is None else clip.pixels
        assert first is not None
        latents = torch.zeros(count, len(first), self.channels, height // self.factor, width // self.factor)
        text = self.text.text(clip, dropped=True)
        text = None if text is None else text.expand(count, *text.shape)
        batch = Batch(latents, torch.full((count,), 500), latents, text)
        if clip.pixels is None:
            return replace(batch, mean=latents, log_variance=latents)
        return replace(batch, pixels=torch.zeros(count, len(first), 3, height, width, dtype=torch.uint8))

    def _read(self, step: int, place: int) -> tuple[Clip, list[tuple[str, str]]]:
        epoch, skipped = self.order.epoch(step), []
        row = self.order.batch(step)[place]
        for attempt in range(1, TRIES + 1):
            index = int(self.rows[row])
            try:
                return self.clips.read(index, epoch % self.variants if self.variants else epoch), skipped
            except Unusable as error:
                skipped.append((self.clips.name(index), str(error)))
            row = self.order.substitute(step, place, attempt)
        name, reason = skipped[0]
        raise MicroCinemaError(
            f"{TRIES} clips one after another are unusable, such as '{name}' ({reason}): check the videos"
        )


def collate(samples: list[Sample]) -> Sample:
    """Samples of one size as one micro-batch."""
    batches = [sample.batch for sample in samples]
    stacked: dict[str, Any] = {}
    for name in Batch.__dataclass_fields__:
        values = [getattr(batch, name) for batch in batches]
        stacked[name] = None if values[0] is None else torch.stack(values)
    return Sample(Batch(**stacked), [entry for sample in samples for entry in sample.skipped])


class _Keys(Sampler):
    """The keys of one process's micro-batches, from a step on."""

    def __init__(self, first: int, rank: int, micro_batches: int, micro_batch: int):
        self.first, self.rank, self.micro_batches, self.micro_batch = first, rank, micro_batches, micro_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.micro_batches * self.micro_batch
        for step in itertools.count(self.first):
            for start in range(self.rank * local, (self.rank + 1) * local, self.micro_batch):
                yield [(step, place) for place in range(start, start + self.micro_batch)]


class Loader:
    """The batches of one process, read ahead by worker processes; callable as Trainer's `batches`."""

    def __init__(self, samples: Samples, rank: int, share: tuple[int, int], workers: int):
        """share: micro-batches in a step, and clips in each."""
        self.samples, self.rank, self.share, self.workers = samples, rank, share, workers
        self.skipped: dict[str, str] = {}  # names of unusable videos, with the reasons

    def __call__(self, first: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step from `first` on."""
        loader = DataLoader(
            self.samples, batch_sampler=_Keys(first, self.rank, *self.share), num_workers=self.workers,
            collate_fn=collate, pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin_worker if self.workers else None,
            multiprocessing_context="spawn" if self.workers else None, prefetch_factor=2 if self.workers else None,
        )  # fmt: skip
        samples, micro_batches = iter(loader), []
        try:
            for sample in samples:
                self.skipped |= dict(sample.skipped)
                micro_batches.append(sample.batch)
                if len(micro_batches) == self.share[0]:
                    yield micro_batches
                    micro_batches = []
        except MicroCinemaError as error:
            raise _sentence(error) from error
        finally:  # an exception that nobody catches would keep them, and they this process from its end
            getattr(samples, "_shutdown_workers", lambda: None)()


def _begin_worker(_: int) -> None:
    """One thread, and no end by a signal: Ctrl-C and torchrun send it to the workers too, whose death would end the run
    before it has saved its state. A worker ends with the process that started it."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _sentence(error: MicroCinemaError) -> MicroCinemaError:
    """The error of a worker without the traceback that DataLoader puts before it."""
    return MicroCinemaError(str(error).strip().splitlines()[-1].rpartition("MicroCinemaError: ")[2])


def split(count: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The clips of `count` that are learned from, and the held-out ones, which the seed chooses."""
    order = torch.randperm(count, generator=generator(seed, CLIP, count)).numpy()
    return np.sort(order[held_out:]), np.sort(order[:held_out])
