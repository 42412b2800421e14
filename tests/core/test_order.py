"""The batches of a run are functions of the seed and the step; every sample comes once in an epoch."""

import time

import numpy as np
import pytest
import torch

from microcinema_core.errors import MicroCinemaError
from microcinema_core.training.data.order import Order, generator, sample_seed


def order(count: int = 103, buckets: int = 3, batch_size: int = 4, seed: int = 5) -> Order:
    return Order(np.random.default_rng(1).integers(0, buckets, count), batch_size, seed)


def test_a_seed_is_the_same_on_every_machine():
    """Computed with a second implementation of SplitMix64 below."""
    assert sample_seed(0, 0, 0) == 0x238275BC38FCBE91
    assert sample_seed(1, 2, 3) == reference(1, 2, 3)
    assert 0 <= sample_seed(-1, 2**70, 5) < 2**64


def reference(*values: int) -> int:
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for value in values:
            z = state + np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))
    return int(state)


def test_seeds_of_neighbours_have_nothing_in_common():
    seeds = [sample_seed(seed, step, sample) for seed in range(20) for step in range(50) for sample in range(20)]
    assert len(set(seeds)) == 20_000
    bits = np.array([[seed >> bit & 1 for bit in range(64)] for seed in seeds[:4000]])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.05
    flips = [bin(sample_seed(1, 2, s) ^ sample_seed(1, 2, s + 1)).count("1") for s in range(500)]
    assert 30 < np.mean(flips) < 34


def test_the_numbers_of_a_sample_depend_on_it_alone():
    drawn = [torch.randn(4, generator=generator(3, 10, sample)) for sample in (0, 1, 2)]
    assert torch.equal(drawn[1], torch.randn(4, generator=generator(3, 10, 1)))
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_an_epoch_has_every_sample_at_most_once_and_full_batches_of_one_bucket():
    buckets = np.random.default_rng(1).integers(0, 3, 103)
    batches = Order(buckets, 4, 5)
    counts = np.bincount(buckets)
    assert batches.steps_per_epoch == sum(counts // 4)
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        found = [batches.batch(step) for step in steps]
        assert {batches.epoch(step) for step in steps} == {epoch}
        assert all(len(batch) == 4 and len(set(buckets[batch])) == 1 for batch in found)
        assert all(buckets[batch[0]] == batches.bucket(step) for batch, step in zip(found, steps, strict=True))
        samples = [sample for batch in found for sample in batch]
        assert len(set(samples)) == len(samples) == sum(counts // 4 * 4)


def test_a_batch_is_a_function_of_seed_and_step():
    one, other = order(), order()
    steps = [70, 3, 40, 3, 0, 99]
    assert [one.batch(step) for step in steps] == [order().batch(step) for step in steps]
    assert [one.batch(step) for step in sorted(steps)] == [other.batch(step) for step in sorted(steps)]
    assert order(seed=6).batch(0) != one.batch(0)


def test_epochs_differ_and_leave_out_others():
    batches = order(10, 1, 4)
    left = set()
    orders = set()
    for epoch in range(30):
        samples = batches.batch(2 * epoch) + batches.batch(2 * epoch + 1)
        orders.add(tuple(samples))
        left |= set(range(10)) - set(samples)
    assert len(orders) == 30 and left == set(range(10))


def test_every_sample_is_as_likely_anywhere():
    """Chi-square of where a sample comes in 4000 epochs of 8: 49 degrees of freedom, 99.9 % below 86."""
    batches = order(8, 1, 1)
    table = np.zeros((8, 8))
    for epoch in range(4000):
        for place in range(8):
            table[batches.batch(8 * epoch + place)[0], place] += 1
    assert ((table - 500) ** 2 / 500).sum() < 86


def test_batches_of_the_buckets_are_mixed():
    batches = Order(np.repeat([0, 1], 400), 4, 0)
    buckets = [batches.bucket(step) for step in range(200)]
    changes = sum(a != b for a, b in zip(buckets[:-1], buckets[1:], strict=True))
    assert 70 < changes < 130


def test_a_bucket_below_a_batch_is_reported_and_none_at_all_refused():
    batches = Order(np.array([0] * 9 + [2] * 3), 4, 0)
    assert batches.too_small == {2: 3} and batches.steps_per_epoch == 2
    with pytest.raises(MicroCinemaError, match="no size has the 4 videos that a batch needs, of 6"):
        Order(np.array([0] * 3 + [1] * 3), 4, 0)
    with pytest.raises(MicroCinemaError, match="of 0"):
        Order(np.empty(0, int), 4, 0)


def test_a_substitute_is_of_the_same_bucket_and_another_for_every_attempt():
    buckets = np.random.default_rng(1).integers(0, 3, 200)
    batches = Order(buckets, 4, 5)
    found = [batches.substitute(7, 2, attempt) for attempt in range(1, 20)]
    assert set(buckets[found]) == {batches.bucket(7)} and len(set(found)) > 10
    assert found == [Order(buckets, 4, 5).substitute(7, 2, attempt) for attempt in range(1, 20)]
    assert found != [batches.substitute(7, 3, attempt) for attempt in range(1, 20)]


def test_ten_million_samples_take_seconds():
    before = time.process_time()
    batches = Order(np.arange(10**7) % 5, 16, 0)
    batches.batch(0)
    assert time.process_time() - before < 30  # 3.5 s here
    before = time.process_time()
    for step in range(1000):
        batches.batch(step)
    assert time.process_time() - before < 1
