"""The noise schedule of SD2.1 and of the paper (supplement Table 3), in the two languages samplers speak.

VP:      z_t = √ᾱ_t·z_0 + √(1−ᾱ_t)·noise            t in 0 … 999
σ-space: x   = z_0 + σ·noise,  z_t = x/√(1+σ²),  σ = √((1−ᾱ_t)/ᾱ_t)
"""

from __future__ import annotations

import torch
from torch import Tensor


class NoiseSchedule:
    """β = linspace(√0.00085, √0.012, 1000)², called "linear" in LDM and ComfyUI and `scaled_linear` in diffusers."""

    steps = 1000

    def __init__(self, device: torch.device | str = "cpu"):
        real = torch.float32 if torch.device(device).type == "mps" else torch.float64  # which Apple's GPUs lack
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, self.steps, dtype=real, device=device) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)  # ᾱ, float64
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()  # rising, σ_max = 14.6146

    def vp(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1−ᾱ) in float32 for integer timesteps of any shape."""
        alphas = self.alphas_cumprod[timesteps]
        return alphas.sqrt().float(), (1 - alphas).sqrt().float()

    def noise_level(self, timesteps: Tensor) -> Tensor:
        """√(1−ᾱ) in float32 for timesteps that may be fractional, as samplers give them. All of it is computed on
        their device: a copy of a table would make the host wait for it, and it for the host."""
        sigmas = NoiseSchedule(timesteps.device).sigmas
        below = timesteps.to(sigmas).nan_to_num().clamp(0, self.steps - 1)
        low = below.floor().long().clamp(max=self.steps - 2)
        log_sigma = torch.lerp(sigmas[low].log(), sigmas[low + 1].log(), below - low)
        return (log_sigma.exp() / (1 + (2 * log_sigma).exp()).sqrt()).float()

    def sigmas_for(self, steps: int) -> Tensor:
        """The paper's spacing: σ at `steps` timesteps evenly down from 999, then 0; float32 (steps + 1,)."""
        timesteps = torch.tensor([(self.steps - 1) * (steps - i) // steps for i in range(steps)])
        return torch.cat((self.sigmas[timesteps], torch.zeros(1))).float()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The (fractional) timestep of σ, interpolated in log σ; float32, same shape."""
        table = self.sigmas.log()
        log_sigma = sigma.double().cpu().clamp(self.sigmas[0], self.sigmas[-1]).log()
        above = torch.searchsorted(table, log_sigma.contiguous()).clamp(1, self.steps - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + (log_sigma - low) / (high - low)).float().to(sigma.device)
