"""The Appearance Noise Prior (supplement B.2, B.3): noise with the given picture as its mean.

Latents here are scaled for the model. μ = strength·z^c for every frame (base model), or strength times the
interpolation from z^1 to z^N (interpolation model). Training shifts noise and target by λ·…, sampling starts from
(λ+γ)·…; nothing else of an ODE sampler changes (eq. 24).
"""

from __future__ import annotations

import torch
from torch import Tensor


def prior_mean(condition: Tensor, frames: int, strength: float | Tensor) -> Tensor:
    """μ for latents `condition` (b, k, C, h, w), k = 1 centre frame or k = 2 end frames → (b, frames, C, h, w).

    `strength` is λ in training, λ+γ in sampling; a tensor (frames,) has one strength for each frame.
    """
    if condition.shape[1] == 1:
        mean = condition.expand(-1, frames, -1, -1, -1)
    else:
        weights = torch.linspace(0, 1, frames, dtype=condition.dtype, device=condition.device)
        mean = torch.lerp(condition[:, :1], condition[:, 1:], weights.view(-1, 1, 1, 1))
    if isinstance(strength, Tensor):
        strength = strength.to(condition).view(-1, 1, 1, 1)
    return strength * mean


def shift(noise: Tensor, mean: Tensor) -> Tensor:
    """ε + μ: the noise of eq. (15), the target of eq. (22), the start of sampling in B.3. A mean of zero is exact: the
    noise stays equal to the bit."""
    return noise + mean
