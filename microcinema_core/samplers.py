"""ODE samplers in σ-space, all of one signature: x is z_0 + σ·noise, `denoise(x, sigma)` predicts z_0.

Start from x = noise·√(1+σ_max²), the noise shifted by the prior. Deterministic steps need no other change; a step that
adds fresh noise must give it its share of μ, or the mean of what is sampled is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, Tensor], None]  # step index, denoised


def initial(noise: Tensor, sigma_max: Tensor) -> Tensor:
    """Noise (shifted by the prior) to the sampler's start at σ_max, for an empty start latent."""
    return noise * (1 + sigma_max**2).sqrt()


def churn(
    x: Tensor, sigma: Tensor, gamma: float, noise: Tensor | float, mean: Tensor | float, s_noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Raise x from σ to σ̂ = σ(1+γ†) with fresh noise that carries its share (σ̂−σ)·μ of the prior."""
    sigma_hat = sigma * (1 + gamma)
    x = x + s_noise * noise * (sigma_hat**2 - sigma**2).sqrt() + (sigma_hat - sigma) * mean
    return x, sigma_hat


def churn_rate(sigma: float, steps: int, s_churn: float, s_tmin: float = 0.0, s_tmax: float = math.inf) -> float:
    """γ† = min(s_churn/n, √2−1) within [s_tmin, s_tmax], else 0 (Karras et al. 2022, algorithm 2)."""
    return min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0


def sample_euler(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        if callback:
            callback(i, denoised)
    return x


def sample_heun(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        slope, width = (x - denoised) / sigmas[i], sigmas[i + 1] - sigmas[i]
        ahead = x + slope * width
        if sigmas[i + 1] > 0:
            slope = (slope + (ahead - denoise(ahead, sigmas[i + 1])) / sigmas[i + 1]) / 2
        x = x + slope * width
        if callback:
            callback(i, denoised)
    return x


def sample_euler_edm(
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
    """The paper's EulerEDM. `mean` is the run's μ = (λ+γ)·z^c, needed only by churn; γ† = 0 is plain Euler."""
    steps = len(sigmas) - 1
    for i in range(steps):
        sigma = sigmas[i]
        gamma = churn_rate(float(sigma), steps, s_churn, s_tmin, s_tmax)
        if gamma > 0:
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            x, sigma = churn(x, sigma, gamma, fresh, mean, s_noise)
        denoised = denoise(x, sigma)
        x = x + (x - denoised) / sigma * (sigmas[i + 1] - sigma)
        if callback:
            callback(i, denoised)
    return x
