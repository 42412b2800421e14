"""How far a mean over clips would move with other clips of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch

RESAMPLES = 2000
LEVEL = 0.95


def mean_interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile bootstrap interval (Efron 1979) of the mean of independent values; None for fewer than two.

    It is of the values alone: a model that is trained or sampled with another seed may give others.
    """
    if len(values) < 2:
        return None
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = sample[torch.randint(len(sample), (resamples, len(sample)), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
