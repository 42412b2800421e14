"""ODE samplers in σ-space, all of one signature: x is z_0 + σ·noise, `denoise(x, sigma)` predicts z_0.

Start from x = noise·√(1+σ_max²), the noise shifted by the prior. Deterministic steps need no other change. A step that
adds fresh noise must add the corresponding share of μ, or the samples lose their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
# Called in every step with "i", its index, "x", "sigma" (of the schedule), "sigma_hat" (of x) and "denoised".
Callback = Callable[[dict[str, Any]], None]


def initial(noise: Tensor, sigma_max: Tensor) -> Tensor:
    """The start x = noise·√(1+σ_max²) of a sampler for noise that the prior has shifted, without a start latent."""
    return noise * (1 + sigma_max**2).sqrt()


def churn(
    x: Tensor, sigma: Tensor, gamma: float, noise: Tensor | float, mean: Tensor | float, s_noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Raise x from σ to σ̂ = σ(1+γ†): add fresh noise, and with it (σ̂−σ)·μ of the prior. Returns x and σ̂."""
    sigma_hat = sigma * (1 + gamma)
    x = x + s_noise * noise * (sigma_hat**2 - sigma**2).sqrt() + (sigma_hat - sigma) * mean
    return x, sigma_hat


def churn_rate(sigma: float, steps: int, s_churn: float, s_tmin: float = 0.0, s_tmax: float = math.inf) -> float:
    """γ† = min(s_churn/n, √2−1) within [s_tmin, s_tmax], else 0 (Karras et al. 2022, algorithm 2)."""
    return min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    *,
    mean: Tensor | float = 0.0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Euler's method for the ODE dx/dσ = (x − z_0)/σ, one step for each pair of neighbours in `sigmas`.

    With s_churn above 0 it is the paper's EulerEDM: churn precedes each step (Karras et al. 2022, algorithm 2). `mean`
    is μ = (λ+γ)·z^c of the run, which only churn needs.
    """
    steps = len(sigmas) - 1
    for i in range(steps):
        sigma = sigmas[i]
        gamma = churn_rate(float(sigma), steps, s_churn, s_tmin, s_tmax)
        if gamma > 0:
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            x, sigma = churn(x, sigma, gamma, fresh, mean, s_noise)
        denoised = denoise(x, sigma)
        if callback:
            callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": sigma, "denoised": denoised})
        x = x + (x - denoised) / sigma * (sigmas[i + 1] - sigma)
    return x


def sample_heun(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Heun's second-order method for the same ODE (Karras et al. 2022, algorithm 1); the last step is Euler's."""
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        if callback:
            callback({"i": i, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        slope, step = (x - denoised) / sigmas[i], sigmas[i + 1] - sigmas[i]
        predicted = x + slope * step
        if sigmas[i + 1] > 0:
            slope = (slope + (predicted - denoise(predicted, sigmas[i + 1])) / sigmas[i + 1]) / 2
        x = x + slope * step
    return x
