"""The bootstrap interval of a mean."""

import pytest
import torch

from microcinema_core.metrics.intervals import mean_interval


@pytest.mark.parametrize("count", [20, 400])
def test_the_interval_of_many_values_is_that_of_the_normal_distribution(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 10
    low, high = mean_interval(values.tolist())
    mean, error = values.mean().item(), 1.96 * values.std().item() / count**0.5
    assert low == pytest.approx(mean - error, abs=0.12 * error)
    assert high == pytest.approx(mean + error, abs=0.12 * error)


def test_the_interval_holds_the_mean_about_as_often_as_it_says():
    random = torch.Generator().manual_seed(0)
    samples = torch.rand(300, 40, generator=random, dtype=torch.float64)
    intervals = [mean_interval(sample.tolist(), resamples=400) for sample in samples]
    assert 0.91 < sum(low < 0.5 < high for low, high in intervals) / 300 < 0.98


def test_of_one_value_nothing_is_known_and_of_equal_ones_all():
    assert mean_interval([3.0]) is None and mean_interval([]) is None
    assert mean_interval([3.0, 3.0, 3.0]) == (3.0, 3.0)


def test_the_same_values_give_the_same_interval():
    values = [float(number) for number in range(20)]
    assert mean_interval(values) == mean_interval(values)
