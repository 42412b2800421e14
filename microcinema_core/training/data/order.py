"""Which samples make a batch, and the random numbers of a sample: functions of the seed and the step alone.

So neither the number of processes nor that of the loader's workers changes what is learned, and a run that is resumed
goes on with the batches that it would have had. The numbers come from SplitMix64 (Steele, Lea, Flood 2014), not from a
library whose streams may change with a version.
"""

from __future__ import annotations

import numpy as np
import torch

from ...errors import MicroCinemaError

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def sample_seed(seed: int, step: int, sample: int) -> int:
    """A number of 64 bits for the sample at place `sample` of a step's batch. Each is mixed in by itself, so that
    neighbouring seeds, steps and samples have nothing in common."""
    state = 0
    for value in (seed, step, sample):
        state = _mix((state + _GOLDEN + (value & _MASK)) & _MASK)
    return state


def generator(seed: int, step: int, sample: int) -> torch.Generator:
    """A generator for all random numbers of a sample: its start, crop, noise, timestep and text drop."""
    return torch.Generator().manual_seed(sample_seed(seed, step, sample))


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _permutation(count: int, seed: int) -> np.ndarray:
    """The numbers below `count`, in the order of their hashes."""
    value = np.arange(1, count + 1, dtype=np.uint64)
    value = value * np.uint64(_GOLDEN) + np.uint64(seed)  # both wrap around
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(value ^ (value >> np.uint64(31)), kind="stable")


class Order:
    """The batches of a run, each of samples from one bucket.

    An epoch takes every sample at most once: those that fill no batch of their bucket are left out, others in the next
    epoch. `buckets` (n,) holds the number of each sample's bucket.
    """

    def __init__(self, buckets: np.ndarray, batch_size: int, seed: int):
        buckets = np.asarray(buckets)
        self.batch_size, self.seed = batch_size, seed
        self._members = [np.flatnonzero(buckets == bucket) for bucket in range(int(buckets.max(initial=-1)) + 1)]
        counts = [len(members) // batch_size for members in self._members]
        self._bucket_of_batch = np.repeat(np.arange(len(counts)), counts)
        self._first = np.cumsum([0, *counts])  # the first batch of each bucket
        self.too_small = {
            bucket: len(members) for bucket, members in enumerate(self._members) if 0 < len(members) < batch_size
        }
        self._shuffled: tuple[int, np.ndarray, list[np.ndarray]] | None = None
        if not self.steps_per_epoch:
            raise MicroCinemaError(
                f"no size has the {batch_size} videos that a batch needs, of {len(buckets)}: give more videos or a "
                "smaller batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self._bucket_of_batch)

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """The samples of the batch of a step, all of one bucket."""
        batches, members = self._epoch(self.epoch(step))
        batch = int(batches[step % self.steps_per_epoch])
        bucket = int(self._bucket_of_batch[batch])
        first = (batch - int(self._first[bucket])) * self.batch_size
        return self._members[bucket][members[bucket][first : first + self.batch_size]].tolist()

    def bucket(self, step: int) -> int:
        """The bucket of a step's batch."""
        batches, _ = self._epoch(self.epoch(step))
        return int(self._bucket_of_batch[batches[step % self.steps_per_epoch]])

    def substitute(self, step: int, place: int, attempt: int) -> int:
        """Another sample of the same bucket for the one at `place` of a batch that turned out to be unusable: with
        `attempt` 1, 2, … a sequence of its own for every place."""
        members = self._members[self.bucket(step)]
        return int(members[sample_seed(sample_seed(self.seed, step, place), attempt, 1) % len(members)])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        if self._shuffled is None or self._shuffled[0] != epoch:
            seeds = [sample_seed(self.seed, epoch, index) for index in range(len(self._members) + 1)]
            members = [_permutation(len(found), seed) for found, seed in zip(self._members, seeds, strict=False)]
            self._shuffled = epoch, _permutation(self.steps_per_epoch, seeds[-1]), members
        return self._shuffled[1:]
