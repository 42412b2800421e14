"""Moving averages of the weights, which are sampled from and saved instead of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """A moving average, in float32, of those parameters of a module that are trained.

    With a `decay` β it is exponential: average ← β·average + (1−β)·weights, from the weights after the first step on.
    With `std` it is the power-function average of Karras et al. 2023 (arXiv 2312.02696, eq. 121 to 127), whose width
    is that share of the time that the training has taken: β = (1 − 1/t)^(γ+1) at step t.
    """

    def __init__(self, module: nn.Module, decay: float = 0.0, std: float | None = None):
        self.decay = decay
        self.exponent = None if std is None else power_exponent(std)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after `step` steps, the first of which is 1."""
        decay = self.decay if self.exponent is None else (1 - 1 / step) ** (self.exponent + 1)
        weights = [_local(p.detach()).float() for p in self.parameters.values()]
        averages = [_local(average) for average in self.averages.values()]
        if step == 1:
            torch._foreach_copy_(averages, weights)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Exchange weights and averages during the block, without the memory for another copy of the model."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange weights and averages."""
        for name, parameter in self.parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(weights)


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP2 has divided; else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def power_exponent(std: float) -> float:
    """γ of the power-function average with the relative width `std` (arXiv 2312.02696, eq. 127): the positive root of
    (γ+1)/((γ+2)²·(γ+3)) = std².

    The left side falls from 1/12 at γ = 0, so `std` is at most 0.2886.
    """
    low, high = 0.0, 1.0
    while (high + 1) / ((high + 2) ** 2 * (high + 3)) > std**2:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > std**2:
            low = middle
        else:
            high = middle
    return (low + high) / 2
