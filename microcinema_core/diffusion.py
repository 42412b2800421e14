"""The diffusion process of SD2.1 and of the paper (supplement Table 3): noise schedule, parameterisations, guidance.

VP:      z_t = √ᾱ_t·z_0 + √(1−ᾱ_t)·noise            t in 0 … 999
σ-space: x   = z_0 + σ·noise,  z_t = x/√(1+σ²),  σ = √((1−ᾱ_t)/ᾱ_t)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import ModelConfig

if TYPE_CHECKING:
    from .model import Condition, MicroCinemaUNet


class NoiseSchedule:
    """β = linspace(√0.00085, √0.012, 1000)², the schedule that LDM and ComfyUI call "linear", diffusers
    `scaled_linear`."""

    steps = 1000

    def __init__(self, device: torch.device | str = "cpu"):
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64  # Apple's GPUs lack float64
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, self.steps, dtype=dtype, device=device) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)  # ᾱ, float64
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()  # rising, σ_max = 14.6146

    def vp(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1−ᾱ) in float32 for integer timesteps of any shape."""
        alphas = self.alphas_cumprod[timesteps]
        return alphas.sqrt().float(), (1 - alphas).sqrt().float()

    def noise_level(self, timesteps: Tensor) -> Tensor:
        """√(1−ᾱ) in float32 for timesteps that may be fractional, as those of samplers. Everything is computed on
        the timesteps' device, because a copy of a table would synchronise it with the host."""
        sigmas = NoiseSchedule(timesteps.device).sigmas
        t = timesteps.to(sigmas).nan_to_num().clamp(0, self.steps - 1)
        low = t.floor().long().clamp(max=self.steps - 2)
        log_sigma = torch.lerp(sigmas[low].log(), sigmas[low + 1].log(), t - low)
        return (log_sigma.exp() / (1 + (2 * log_sigma).exp()).sqrt()).float()

    def sigmas_for(self, steps: int) -> Tensor:
        """The paper's spacing: σ at `steps` timesteps evenly down from 999, then 0; float32 (steps + 1,)."""
        timesteps = torch.tensor([(self.steps - 1) * (steps - i) // steps for i in range(steps)])
        return torch.cat((self.sigmas[timesteps], torch.zeros(1))).float()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of σ, fractional, interpolated in log σ; float32, of the same shape."""
        table = self.sigmas.log()
        log_sigma = sigma.double().cpu().clamp(self.sigmas[0], self.sigmas[-1]).log()
        above = torch.searchsorted(table, log_sigma.contiguous()).clamp(1, self.steps - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + (log_sigma - low) / (high - low)).float().to(sigma.device)


def to_denoised(output: Tensor, x: Tensor, sigma: Tensor, parameterization: str) -> Tensor:
    """z_0 from the network's raw output at x = z_0 + σ·noise.

    With "eps" it is x − σ·eps. With "v" (v = √ᾱ·noise − √(1−ᾱ)·z_0) it follows from eps = √(1−ᾱ)·z_t + √ᾱ·v.
    """
    if parameterization == "eps":
        return x - sigma * output
    return (x / (1 + sigma**2).sqrt() - sigma * output) / (1 + sigma**2).sqrt()


class Denoiser:
    """`denoise(x, sigma)` for clips x (b, t, C, h, w) of one condition, with text guidance when cfg is not 1.

    context: (b, L, D); with guidance (2b, L, D), the half of the empty text first. The network computes in the
    condition's dtype, everything else in that of x. With σ (0-dim) on the CPU, a step never synchronises the device of
    x with the host.
    """

    def __init__(
        self,
        network: MicroCinemaUNet,
        config: ModelConfig,
        condition: Condition,
        context: Tensor | None,
        cfg: float = 1.0,
    ):
        self.network, self.config, self.condition, self.cfg = network, config, condition, cfg
        self.dtype = condition.planes.dtype
        self.context = None if context is None else context.to(self.dtype)
        self.schedule = NoiseSchedule()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Predict z_0 (b, t, C, h, w) from x at a 0-dim σ."""
        halves = 1 if self.cfg == 1 or self.context is None else 2
        clips, frames = x.shape[:2]
        scaled = (x / (1 + sigma**2).sqrt()).repeat(halves, 1, 1, 1, 1).flatten(0, 1)
        timesteps = torch.full((halves * clips,), self.schedule.timestep(sigma).item(), device=x.device)
        output = self.network(
            scaled.to(self.dtype, memory_format=torch.channels_last), timesteps, self.context,
            condition=self.condition, num_video_frames=frames,
        ).unflatten(0, (halves * clips, frames)).to(x.dtype)  # fmt: skip
        if halves == 2:
            empty, prompted = output.chunk(2)
            output = empty + self.cfg * (prompted - empty)
        return to_denoised(output, x, sigma, self.config.parameterization)
