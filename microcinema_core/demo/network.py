"""The networks of the bundled models: the paper's network, preconditioned around a prediction of the clip.

Let z̄ be a prediction of the clip's latents, by default the condition's. The layers learn only the residual
r = z_0 − z̄, so that they need no capacity for what the prediction already contains, such as backgrounds. Each
extension of the paper's network has a field in DemoNetworkConfig:
- `residual_std`: the output is preconditioned around z̄ (Karras et al. 2022, table 1).
- `forward_warp`: WarpUNet, the base model. z̄ is the picture, moved as the text says (warp.py).
- `amplitude_std`: the amplitude of this motion is estimated from the noisy clip by linear regression.
- `flow_warp`: FlowUNet (flow_unet.py), the interpolation model. z̄ is made of both end frames by a flow network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion import NoiseSchedule
from ..model import Condition, MicroCinemaUNet
from ..model.clips import Clips, over_frames
from .config import DemoNetworkConfig
from .warp import ForwardWarp

_SCHEDULE = NoiseSchedule()
FINITE_DIFFERENCE = 0.1  # the step of the derivative by the amplitude, relative to it
MAX_DEVIATIONS = 3  # of the amplitude from 1, in standard deviations


def network_class(config: DemoNetworkConfig) -> type[DemoUNet]:
    """The class of the network that a configuration describes."""
    if config.flow_warp:
        from .flow_unet import FlowUNet

        return FlowUNet
    return WarpUNet if config.forward_warp else DemoUNet


@dataclass
class Prediction:
    """A prediction of a clip's latents: z̄ (b·t, C, h, w) and, as an input of the layers beside it, how visible what it
    shows is, (b·t, 1, h, w); None where z̄ is the condition itself. is_given (rows, 1, 1, 1): frames without a residual.
    """

    latents: Tensor
    visibility: Tensor | None
    is_given: Tensor


class DemoUNet(MicroCinemaUNet):
    """MicroCinemaUNet with the extensions of a DemoNetworkConfig. Its methods have the same shapes and errors."""

    config: DemoNetworkConfig
    prediction_in: nn.Module  # of subclasses whose prediction has a visibility

    def predict(self, clips: Clips) -> Tensor:
        """As MicroCinemaUNet's, around the prediction of `predict_latents`."""
        config, x, frames = self.config, clips.x, len(clips.offsets)
        text = pooled(clips.context) if clips.context is not None else None
        tau = self.times(clips).to(x)
        emb = self.embed_time(clips.timesteps, x.dtype)
        h = self.embed_input(clips)
        if config.residual_std is None:
            return self.out(self.run_layers(h, emb, clips))

        static_latent = over_frames(clips.condition.latents, frames).flatten(0, 1)
        static_latent = static_latent.repeat(x.shape[0] // static_latent.shape[0], 1, 1, 1)
        prediction = self.predict_latents(clips, static_latent, text, tau)
        if prediction.visibility is not None:
            inputs = torch.cat([prediction.latents - static_latent, prediction.visibility], dim=1)
            h = h + self.prediction_in(inputs)
        return self._precondition(self.out(self.run_layers(h, emb, clips)), clips, prediction)

    def predict_latents(self, clips: Clips, static_latent: Tensor, text: Tensor | None, tau: Tensor) -> Prediction:
        """Predict the latents of clips: here those of the condition, static_latent (b·t, C, h, w).

        text: (b, 1, D), pooled. tau: (t,), the times of the frames.
        """
        return Prediction(static_latent, None, self.is_given(clips, tau))

    def is_given(self, clips: Clips, tau: Tensor) -> Tensor:
        """Whether a frame of the clips, at times tau (t,), is one of the condition, (b·t, 1, 1, 1)."""
        given = tau == 0 if self.config.condition == "centre" else (tau == tau[0]) | (tau == tau[-1])
        return given.repeat(len(clips.x) // len(tau)).view(-1, 1, 1, 1)

    def times(self, clips: Clips) -> Tensor:
        """The times τ (t,) of the frames."""
        return self.tau(clips.offsets)

    def _precondition(self, out: Tensor, clips: Clips, prediction: Prediction) -> Tensor:
        """Convert the layers' output F to v, for a residual r of standard deviation ρ (Karras et al. in VP form):

        v = √ᾱ·√(1−ᾱ)·(1−ρ²)/q²·(z_t − √ᾱ·z̄) − √(1−ᾱ)·z̄ − ρ/q·F,  q² = ᾱρ² + 1 − ᾱ.

        The frames of the condition have no residual: ρ is 0 there.
        """
        alpha, sigma = _levels(clips.timesteps, out)
        assert self.config.residual_std is not None
        rho = self.config.residual_std * (~prediction.is_given).to(out)
        q = (alpha**2 * rho**2 + sigma**2).sqrt()
        skip = alpha * sigma * (1 - rho**2) / q**2
        return skip * (clips.x - alpha * prediction.latents) - sigma * prediction.latents - rho / q * out

    def tau(self, offsets: Tensor) -> Tensor:
        """Offsets from the centre frame to times τ: ±1 at the ends of a clip of the length in training."""
        return offsets / (max(self.config.frames - 1, 1) / 2)


@dataclass
class WarpCondition(Condition):
    """A Condition with four more values.

    picture: its pixels (clips, 3, H, W), as the autoencoder decodes them.
    lambda_: λ of the run, the strength of the prior in training.
    motion: the size of the motion, relative to what the text says.
    overscan: the number of frames of a clip that shows nothing outside of the picture, 0 for one that may.
    """

    picture: Tensor | None = None
    lambda_: float = 0.0
    motion: float = 1.0
    overscan: int = 0


class WarpUNet(DemoUNet):
    """The network of the base model: its prediction is the condition's picture, moved as the text says."""

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        kw = {"operations": operations, "dtype": dtype, "device": device}
        self.forward_warp = ForwardWarp(config, **kw)
        self.prediction_in = prediction_layer(config, **kw)

    def encode_condition(
        self, latents: Tensor, *, pixels: Tensor | None = None, lambda_: float = 0.0, motion: float = 1.0,
        overscan: int = 0,
    ) -> WarpCondition:  # fmt: skip
        """As MicroCinemaUNet's, with what the forward warp needs."""
        encoded = super().encode_condition(latents, pixels=pixels)
        decoded = self.forward_warp.decode(latents[:, 0])
        return WarpCondition(**vars(encoded), picture=decoded, lambda_=lambda_, motion=motion, overscan=overscan)

    def times(self, clips: Clips) -> Tensor:
        """The times τ (t,) of the frames, as the size of the motion has them."""
        assert isinstance(clips.condition, WarpCondition)
        return clips.condition.motion * super().times(clips)

    def predict_latents(self, clips: Clips, static_latent: Tensor, text: Tensor | None, tau: Tensor) -> Prediction:
        """As DemoUNet's, by the forward warp."""
        assert text is not None  # as DemoNetworkConfig and `forward` require
        text = text[:, 0]
        is_given, zoom = self.is_given(clips, tau), self._zoom(clips.condition, text)
        if zoom is not None:
            is_given = is_given & (zoom == 1).repeat_interleave(len(tau)).view(-1, 1, 1, 1)
        warped, visibility = self._warp(clips, static_latent, text, tau.float(), zoom)
        return Prediction(torch.where(is_given, static_latent, warped), visibility, is_given)

    def _zoom(self, condition: Condition, text: Tensor) -> Tensor | None:
        """With overscan: the magnification (b,) at which no frame of the clip shows anything outside of the picture,
        for pooled texts (b, D) and the largest amplitude of the motion."""
        assert isinstance(condition, WarpCondition) and condition.picture is not None
        frames = condition.overscan
        if not frames:
            return None
        offsets = torch.arange(frames, device=text.device) - frames // 2
        times = condition.motion * self.tau(offsets).float()
        reach = MAX_DEVIATIONS * (self.config.amplitude_std or 0)
        times = torch.cat([times, (1 - reach) * times, (1 + reach) * times])
        return self.forward_warp.overscan(text, times, *condition.picture.shape[-2:])

    def _warp(
        self, batch: Clips, static_latent: Tensor, text: Tensor, times: Tensor, zoom: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The warped latents (b·t, C, h, w) and their visibility (b·t, 1, h, w) for pooled texts (b, D) at times
        (t,), magnified by `zoom` (b,).

        With `amplitude_std` = s, the motion is the one predicted from the text, times an amplitude a ~ N(1, s²) that is
        estimated from the noisy clip (1 in training, where clips move exactly as their text says). With
        z̄(a) ≈ z̄ + (a − 1)·D, the posterior mean of a − 1 is that of a linear regression of
        z_t − √ᾱ·z̄ − √(1−ᾱ)·λ·z^c on √ᾱ·D. Sampling with γ > 0 adds more of z^c to the noise, which has the effect of a
        smaller amplitude.
        """
        x, condition, std = batch.x, batch.condition, self.config.amplitude_std
        assert isinstance(condition, WarpCondition) and condition.picture is not None
        warp = partial(self.forward_warp, condition.picture, self.forward_warp.estimate(condition.picture, text), text)
        if std is None or self.training:
            return warp(times, zoom)
        assert self.config.residual_std is not None  # as DemoNetworkConfig requires
        clips = len(text)
        pair = warp(torch.cat([times, (1 + FINITE_DIFFERENCE) * times]), zoom)[0].float()
        predicted, shifted = pair.unflatten(0, (clips, 2, -1)).unbind(1)
        alpha, sigma = _levels(batch.timesteps, x.float())
        residual = x - alpha * predicted.flatten(0, 1) - sigma * condition.lambda_ * static_latent
        slope = alpha * (shifted - predicted).flatten(0, 1) / FINITE_DIFFERENCE
        noise = (sigma**2 + (alpha * self.config.residual_std) ** 2) / std**2
        residual, slope, noise = (values.reshape(clips, -1) for values in (residual, slope, noise))
        amplitude = (slope * residual).sum(1) / (slope.square().sum(1) + noise[:, 0])
        reach = MAX_DEVIATIONS * std
        return warp(times * (1 + amplitude.clamp(-reach, reach))[:, None], zoom)


def prediction_layer(config: DemoNetworkConfig, *, operations: Any, **kw) -> nn.Module:
    """The layer that reads a Prediction."""
    return operations.Conv2d(config.latent_channels + 1, config.model_channels, 1, bias=False, **kw)


def _levels(timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1−ᾱ) of timesteps (rows,), each (rows, 1, 1, 1), in the dtype and on the device of x."""
    sigma = _SCHEDULE.noise_level(timesteps).to(x).view(-1, 1, 1, 1)
    return (1 - sigma**2).sqrt(), sigma


def pooled(context: Tensor) -> Tensor:
    """Pool text states (b, L, D) to (b, 1, D): the sum of their differences from the last state, divided by √L.

    The last state is that of a padding token, except in the longest sentences. What it has in common with the other
    states would otherwise dominate the few words that describe the motion.
    """
    return (context - context[:, -1:]).sum(dim=1, keepdim=True) / context.shape[1] ** 0.5
