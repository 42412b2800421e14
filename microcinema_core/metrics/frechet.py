"""The Fréchet distance between two samples of features, and what chance does to it.

Each sample (n, d) is described by a Gaussian, its mean m and covariance C. The squared distance between two Gaussians,
which the literature calls FID or FVD depending on the features (Heusel et al. 2017, Unterthiner et al. 2018), is
|m_a − m_b|² + tr C_a + tr C_b − 2 tr (C_a^½ C_b C_a^½)^½.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MicroCinemaError

RESAMPLES = 200
LEVEL = 0.95


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between the Gaussians of two samples of features, (n, d) and (m, d).

    Covariances are unbiased (n − 1) and all is computed in float64. Raises MicroCinemaError for samples of fewer than
    two rows, of different d, and with numbers that are not finite.
    """
    for sample in (a, b):
        if sample.ndim != 2 or len(sample) < 2:
            raise MicroCinemaError("a distance needs the features of two clips or more on each side: give more samples")
        if not torch.isfinite(sample).all():
            raise MicroCinemaError("the features hold NaN or infinite numbers: make them anew, with float32")
    if a.shape[1] != b.shape[1]:
        raise MicroCinemaError(f"features of {a.shape[1]} and {b.shape[1]} numbers do not compare: use one network")
    return gaussian_distance(*_gaussian(a), *_gaussian(b))


def gaussian_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """The squared Fréchet distance between two Gaussians with means (d) and covariances (d, d), of any rank.

    tr (C_a^½ C_b C_a^½)^½ is the sum of the singular values of C_a^½ C_b^½, which need not be squared first: rounding
    then costs about 1e-16 of the largest, where the root of the product's eigenvalues would cost 1e-8.
    """
    cross = torch.linalg.svdvals(_root(covariance_a) @ _root(covariance_b)).sum()
    difference = mean_a.double() - mean_b.double()
    distance = difference.square().sum() + covariance_a.double().trace() + covariance_b.double().trace() - 2 * cross
    return max(0.0, distance.item())  # equal Gaussians may give −1e-14


def bootstrap_interval(
    a: Tensor, b: Tensor, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The interval in which the distance of two samples, (n, d) and (m, d), would lie for other samples of these sizes.

    Both samples are drawn anew with replacement `resamples` times. A sample with repeated rows lies farther from the
    other one than the sample itself, by about the bias that n rows have already; so the resampled distances are moved
    to have the measured one as their mean. The interval is of the distance at these n and m, not of its limit.
    Raises MicroCinemaError as frechet_distance does.
    """
    measured = frechet_distance(a, b)
    a, b = a.double(), b.double()
    generator = torch.Generator().manual_seed(seed)

    def resampled(sample: Tensor) -> Tensor:
        return sample[torch.randint(len(sample), (len(sample),), generator=generator)]

    distances = torch.tensor(
        [gaussian_distance(*_gaussian(resampled(a)), *_gaussian(resampled(b))) for _ in range(resamples)],
        dtype=torch.float64,
    )
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (distances.quantile(tails) - distances.mean() + measured).tolist()
    return max(0.0, low), high


def _gaussian(sample: Tensor) -> tuple[Tensor, Tensor]:
    sample = sample.double()
    return sample.mean(0), torch.cov(sample.T).reshape(sample.shape[1], -1)  # cov of one row is 0-dimensional


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix. Eigenvalues within rounding of zero are zero, for
    the root of 1e-16 would be 1e-8."""
    values, vectors = torch.linalg.eigh(covariance.double())
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return (vectors * torch.where(values > rounding, values, 0.0).clamp(min=0).sqrt()) @ vectors.T
