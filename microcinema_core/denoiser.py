"""From the network's raw output to the prediction of z_0 that samplers ask for, with text guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ModelConfig
from .model import Condition, MicroCinemaUNet
from .schedule import NoiseSchedule


def to_denoised(output: Tensor, x: Tensor, sigma: Tensor, parameterization: str) -> Tensor:
    """z_0 from the raw output at x = z_0 + σ·noise. eps: x − σ·eps. v (v = √ᾱ·noise − √(1−ᾱ)·z_0) is the same
    network preconditioned: eps = √(1−ᾱ)·z_t + √ᾱ·output."""
    if parameterization == "eps":
        return x - sigma * output
    return (x / (1 + sigma**2).sqrt() - sigma * output) / (1 + sigma**2).sqrt()


class Denoiser:
    """`denoise(x, sigma)` for clips (b, t, C, h, w) of one condition, guided by text when cfg is not 1.

    context: (b, L, D); with guidance (2b, L, D), the empty text's half first. The network computes in its condition's
    precision, all else in that of x. With σ (0-dim) on the CPU, a step waits for nothing on another device.
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
        halves = 1 if self.cfg == 1 or self.context is None else 2
        clips, frames = x.shape[:2]
        scaled = (x / (1 + sigma**2).sqrt()).repeat(halves, 1, 1, 1, 1).flatten(0, 1)
        timesteps = torch.full((halves * clips,), self.schedule.timestep(sigma).item(), device=x.device)
        output = self.network(
            scaled.to(self.dtype, memory_format=torch.channels_last), timesteps, self.context,
            condition=self.condition, num_video_frames=frames,
        ).unflatten(0, (halves * clips, frames)).to(x.dtype)  # fmt: skip
        if halves == 2:
            plain, told = output.chunk(2)
            output = plain + self.cfg * (told - plain)
        return to_denoised(output, x, sigma, self.config.parameterization)
