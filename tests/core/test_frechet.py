"""The Fréchet distance, against closed forms and against chance."""

import math

import numpy as np
import pytest
import torch

from microcinema_core.errors import MicroCinemaError
from microcinema_core.metrics.frechet import bootstrap_interval, frechet_distance, gaussian_distance


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def normal(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_gaussians_with_the_same_axes(size):
    """Σ (m_a − m_b)² + Σ (s_a − s_b)², whatever the axes are."""
    axes = rotation(size)
    a, b = torch.linspace(0.1, 3, size), torch.linspace(2, 1, size)
    mean_a, mean_b = torch.zeros(size), torch.linspace(-1, 1, size)
    a, b = a.double(), b.double()
    found = gaussian_distance(mean_a, axes @ a.square().diag() @ axes.T, mean_b, axes @ b.square().diag() @ axes.T)
    expected = (mean_a - mean_b).double().square().sum() + (a - b).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-10)


def test_two_dimensions_with_different_axes():
    """tr √M of a 2×2 matrix with positive eigenvalues is √(tr M + 2 √det M)."""
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, -0.4], [-0.4, 3.0]], dtype=torch.float64)
    product = a @ b
    cross = math.sqrt(product.trace() + 2 * math.sqrt(torch.det(product)))
    expected = 5.0 + float(a.trace() + b.trace()) - 2 * cross
    found = gaussian_distance(torch.tensor([1.0, 2.0]), a, torch.tensor([0.0, 0.0]), b)
    assert found == pytest.approx(expected, rel=1e-12)


def test_gaussians_in_different_planes_of_a_larger_space():
    """Covariances of rank 2 in 60 dimensions that share one axis: only that one's deviations are compared."""
    axes = rotation(60)
    a, b = torch.zeros(60, dtype=torch.float64), torch.zeros(60, dtype=torch.float64)
    a[0], a[1], b[1], b[2] = 2.0, 3.0, 5.0, 1.0
    found = gaussian_distance(
        torch.zeros(60), axes @ a.square().diag() @ axes.T, torch.zeros(60), axes @ b.square().diag() @ axes.T
    )
    assert found == pytest.approx(2.0**2 + (3.0 - 5.0) ** 2 + 1.0**2, rel=1e-12)


def test_no_covariance_at_all():
    nothing = torch.zeros(4, 4)
    assert gaussian_distance(torch.zeros(4), nothing, torch.full((4,), 3.0), nothing) == 36.0


@pytest.mark.parametrize("count", [5, 300])
def test_a_sample_is_as_far_as_nothing_from_itself(count):
    """Also where its covariance has the rank 4 in 100 dimensions, and large values."""
    sample = 1000 * normal(count, 100, 1)
    assert frechet_distance(sample, sample) < 1e-12 * float(sample.square().sum())


def test_a_translation_is_its_squared_length():
    sample = normal(40, 7, 2)
    moved = sample + torch.arange(7)
    assert frechet_distance(sample, moved) == pytest.approx(91.0, rel=1e-9)


def test_a_scale_is_the_difference_of_deviations():
    sample = normal(40, 7, 3)
    sample -= sample.mean(0)
    assert frechet_distance(sample, 3 * sample) == pytest.approx(4 * float(sample.var(0).sum()), rel=1e-9)


def test_the_order_of_rows_and_of_sides_does_not_matter():
    a, b = normal(30, 6, 4), 2 * normal(50, 6, 5) + 1
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(a.flip(0), b) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(distance, rel=1e-5)


def test_the_covariance_is_that_of_numpy():
    a, b = normal(30, 6, 4), 2 * normal(50, 6, 5) + 1
    stated = [x for s in (a, b) for x in (s.mean(0), torch.from_numpy(np.cov(s.numpy(), rowvar=False)))]
    assert frechet_distance(a, b) == pytest.approx(gaussian_distance(*stated), rel=1e-12)


def test_the_interval_covers_the_mean_distance_of_such_samples():
    """Of 60 pairs of samples about 57 intervals of 95 % hold the mean over all; and they are no wider than need be."""
    pairs = [(normal(120, 5, 2 * seed), 1.3 * normal(120, 5, 2 * seed + 1) + 0.3) for seed in range(300)]
    distances = torch.tensor([frechet_distance(*pair) for pair in pairs])
    mean = float(distances.mean())
    intervals = [bootstrap_interval(*pair, resamples=100) for pair in pairs[:60]]
    held = sum(low <= mean <= high for low, high in intervals)
    width = sum(high - low for low, high in intervals) / 60
    assert 50 <= held < 60
    assert 2.5 < width / float(distances.std()) < 5.5  # 3.9 for a normal distribution


def test_the_interval_holds_the_figure_and_is_the_same_each_time():
    a, b = normal(50, 30, 8), normal(50, 30, 9)
    low, high = bootstrap_interval(a, b, resamples=50)
    assert low < frechet_distance(a, b) < high
    assert bootstrap_interval(a, b, resamples=50) == (low, high)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.rand(1, 3), torch.rand(5, 3), "two clips or more"),
        (torch.rand(5), torch.rand(5, 3), "two clips or more"),
        (torch.rand(5, 4), torch.rand(5, 3), "4 and 3 numbers"),
        (torch.rand(5, 3), torch.full((5, 3), math.nan), "NaN or infinite"),
    ],
)
def test_samples_that_do_not_compare(a, b, words):
    with pytest.raises(MicroCinemaError, match=words):
        frechet_distance(a, b)
