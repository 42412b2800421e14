"""The paper's objective (supplement B.2): the noise and the target are shifted by μ = λ·[condition] (eq. 15, 22).

The loss is the squared error of the network's output: of eps as in the paper, or of v, which is the eps loss divided by
ᾱ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..diffusion import NoiseSchedule
from ..model import build
from ..model.text import TextEncoder
from ..prior import prior_mean, shift


class VideoModel(nn.Module):
    """The parts that are trained: the network and, for a model with text, its text encoder."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.lambda_ = config.lambda_
        self.network = build(config.network)
        self.text = TextEncoder(config.text) if config.text else None

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, tokens: Tensor | None) -> Tensor:
        """Noisy latents (b, t, C, h, w) at integer timesteps (b,), condition latents (b, k, C, h, w) and token ids
        (b, max_tokens) → the network's raw output (b, t, C, h, w)."""
        x = noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        encoded = self.network.encode_condition(condition, lambda_=self.lambda_)
        context = self.text(tokens) if self.text else None
        out = self.network(x, timesteps, context, condition=encoded, num_video_frames=noisy.shape[1])
        return out.unflatten(0, noisy.shape[:2])


class Objective:
    """The loss for a batch of clean latents at given timesteps and noise."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.schedule = NoiseSchedule()

    def condition(self, latents: Tensor) -> Tensor:
        """The frames of latents (b, t, …) that condition a clip: the centre (b, 1, …), or both ends (b, 2, …)."""
        return latents[:, [latents.shape[1] // 2] if self.config.network.condition == "centre" else [0, -1]]

    def noisy(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z_t of eq. (15), and the target for the network's output, both (b, t, C, h, w)."""
        condition = self.condition(latents)
        noise = shift(noise, prior_mean(condition, latents.shape[1], self.config.lambda_))
        a, s = (x.view(-1, 1, 1, 1, 1) for x in self.schedule.vp(timesteps))
        noisy = a * latents + s * noise
        return noisy, noise if self.config.parameterization == "eps" else a * noise - s * latents

    def losses(
        self, model: VideoModel, latents: Tensor, timesteps: Tensor, noise: Tensor, tokens: Tensor | None
    ) -> Tensor:
        """The mean squared error of each clip, (b,)."""
        noisy, target = self.noisy(latents, timesteps, noise)
        output = model(noisy, timesteps, self.condition(latents), tokens)
        return (output - target).square().mean((1, 2, 3, 4))
