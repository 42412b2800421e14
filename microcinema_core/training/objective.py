"""The paper's objective (supplement B.2): the noise and the target are shifted by μ = λ·[condition] (eq. 15, 22).

The loss is the squared error of the network's output: of eps as in the paper, or of v, which is the eps loss divided by
ᾱ.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..diffusion import NoiseSchedule
from ..model import build
from ..model.autoencoder import Autoencoder
from ..model.text import TextEncoder
from ..prior import prior_mean, shift
from .parameters import parameter_groups
from .trainer import Figures, Objective

BANDS = 4  # the log contains the loss for each of so many ranges of timesteps


class VideoModel(nn.Module):
    """The parts of a model that belong to the diffusion: the network and, for a model with text, its text encoder."""

    def __init__(self, config: ModelConfig, network: nn.Module | None = None, text: TextEncoder | None = None):
        super().__init__()
        self.lambda_ = config.lambda_
        self.network: Any = network or build(config.network)
        self.text = text

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, text: Tensor | None) -> Tensor:
        """Noisy latents (b, t, C, h, w) at integer timesteps (b,), condition latents (b, k, C, h, w), and token ids
        (b, max_tokens) or the text encoder's states (b, max_tokens, width) → the raw output (b, t, C, h, w)."""
        x = noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        encoded = self.network.encode_condition(condition, lambda_=self.lambda_)
        if text is not None and text.is_floating_point():  # a cache holds the states in half precision
            text = text.to(noisy.dtype)
        elif text is not None:
            assert self.text is not None
            text = self.text(text)
        out = self.network(x, timesteps, text, condition=encoded, num_video_frames=noisy.shape[1])
        return out.unflatten(0, noisy.shape[:2])


class DiffusionLoss:
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
        a, s = (x.view(-1, 1, 1, 1, 1).to(latents) for x in self.schedule.vp(timesteps.cpu()))
        noisy = a * latents + s * noise
        return noisy, noise if self.config.parameterization == "eps" else a * noise - s * latents

    def losses(
        self, model: VideoModel, latents: Tensor, timesteps: Tensor, noise: Tensor, text: Tensor | None
    ) -> Tensor:
        """The mean squared error of each clip, (b,), in float32."""
        noisy, target = self.noisy(latents, timesteps, noise)
        output = model(noisy, timesteps, self.condition(latents), text)
        return (output.float() - target).square().mean((1, 2, 3, 4))


@dataclass
class Batch:
    """A micro-batch of n clips of t frames; all random numbers in it depend on the seed, the step and the clip alone.

    pixels (n, t, 3, H, W) in uint8, or the moments of their latents before scaling, mean and log_variance
    (n, t, C, h, w). posterior and noise (n, t, C, h, w): standard normal, of the autoencoder's posterior and of the
    diffusion. timesteps (n,). text: token ids (n, L), or states of a text encoder (n, L, width).
    """

    noise: Tensor
    timesteps: Tensor
    posterior: Tensor
    text: Tensor | None = None
    pixels: Tensor | None = None
    mean: Tensor | None = None
    log_variance: Tensor | None = None

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.pin_memory() for name, value in tensors.items() if value is not None})


def scaled_latents(batch: Batch, autoencoder: Autoencoder) -> Tensor:
    """Sample the scaled latents (n, t, C, h, w) of the clips from the autoencoder's posterior (supplement B.1)."""
    mean, log_variance = batch.mean, batch.log_variance
    if mean is None or log_variance is None:
        assert batch.pixels is not None
        with torch.no_grad(), torch.autocast(batch.pixels.device.type, enabled=False):
            mean, log_variance = moments(batch.pixels, autoencoder)
    return autoencoder.config.scale * (mean.float() + batch.posterior * (log_variance.float() / 2).exp())


def moments(pixels: Tensor, autoencoder: Autoencoder) -> tuple[Tensor, Tensor]:
    """The mean and the log-variance of the latents before scaling, (n, t, C, h, w), of pixels (n, t, 3, H, W) in uint8.

    One frame at a time: the result does not depend on how clips are batched.
    """
    weight = autoencoder.quant_conv.weight
    parts = [autoencoder.moments(frame[None].to(weight.dtype) / 255) for frame in pixels.flatten(0, 1)]
    mean, log_variance = (torch.cat(values).unflatten(0, pixels.shape[:2]) for values in zip(*parts, strict=True))
    return mean, log_variance


class VideoObjective(Objective):
    """The paper's objective for a VideoModel on Batches. The autoencoder is used, and never trained."""

    def __init__(self, config: ModelConfig, model: VideoModel, autoencoder: Autoencoder, spatial_factor: float):
        super().__init__()
        self.diffusion, self.spatial_factor = DiffusionLoss(config), spatial_factor
        self.model = model
        self.autoencoder = [autoencoder.requires_grad_(False).eval()]  # in a list: no part of the objective's state

    def forward(self, step: int, batch: Batch) -> tuple[Tensor, Figures]:
        """The mean loss, and the loss of each quarter of the timesteps that occurs, the least noisy first."""
        latents = scaled_latents(batch, self.autoencoder[0])
        losses = self.diffusion.losses(self.model, latents, batch.timesteps, batch.noise, batch.text)
        return losses.mean(), by_band(losses.detach(), batch.timesteps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The new layers at the full learning rate, those that Stable Diffusion has at a part of it (Table 3)."""
        return parameter_groups(self.model, self.spatial_factor)


def by_band(losses: Tensor, timesteps: Tensor) -> Figures:
    """The mean of the losses (n,) for each of BANDS equal ranges of timesteps that occurs among (n,)."""
    bands = timesteps * BANDS // NoiseSchedule.steps
    return {f"loss_band{band}": losses[bands == band].mean().item() for band in bands.unique().tolist()}
