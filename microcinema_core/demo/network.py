"""The network of the bundled models: the paper's network, preconditioned around a forward warp of the condition.

Let z̄ be a prediction of the clip's latents, the warped latents of the condition. The layers learn only the residual
r = z_0 − z̄, so that they need no capacity for what the prediction already contains, such as backgrounds. Each
extension of the paper's network has a field in DemoNetworkConfig:
- `motion_embedding`: τ·A(text) + τ²·B(text) is added to the time embedding, τ the signed time from the centre frame.
- `residual_std`: the output is preconditioned around z̄ (Karras et al. 2022, table 1).
- `forward_warp`: z̄ and its visibility are computed from the picture and the text (warp.py), and are inputs as well.
- `flow_warp`: z̄ is that of the frames that a flow network makes of both end frames (flow_warp.py). It is an input
  together with the end frames' disagreement. The pixels are those of the flow network; the residual is added to them.
- `amplitude_std`: the amplitude of the motion is estimated from the noisy clip by linear regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion import NoiseSchedule
from ..model import Condition, MicroCinemaUNet
from ..model.clips import Clips, over_frames
from .config import DemoNetworkConfig
from .flow_warp import FlowWarp, WarpedFrames
from .warp import ForwardWarp, WarpInputs

_SCHEDULE = NoiseSchedule()
FINITE_DIFFERENCE = 0.1  # the step of the derivative by the amplitude, relative to it
MAX_DEVIATIONS = 3  # of the amplitude from 1, in standard deviations


@dataclass
class DemoCondition(Condition):
    """A Condition with five more values.

    warp_inputs: the result of ForwardWarp.encode, None without a forward warp.
    warped: the result of FlowWarp, None until `warp_ends` is called.
    lambda_: λ of the run, the strength of the prior in training.
    motion: the size of the motion, relative to what the text says.
    overscan: the number of frames of a clip that shows nothing outside of the picture, 0 for one that may.
    """

    warp_inputs: WarpInputs | None = None
    warped: WarpedFrames | None = None
    lambda_: float = 0.0
    motion: float = 1.0
    overscan: int = 0


class DemoUNet(MicroCinemaUNet):
    """MicroCinemaUNet with the extensions of a DemoNetworkConfig. Its methods have the same shapes and errors."""

    config: DemoNetworkConfig

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        plain = {"dtype": dtype, "device": device}
        if config.motion_embedding:
            emb_dim = 4 * config.model_channels
            self.motion_linear = operations.Linear(config.context_dim, emb_dim, bias=False, **plain)
            self.motion_quadratic = operations.Linear(config.context_dim, emb_dim, bias=False, **plain)
            # Not zero, since every branch that it feeds starts at zero already.
            for layer in (self.motion_linear, self.motion_quadratic):
                if layer.weight is not None and not layer.weight.is_meta:  # a host may create it when it loads a file
                    layer.weight.detach().copy_(0.05 * torch.randn(layer.weight.shape, device=device))
        if config.forward_warp:
            self.forward_warp = ForwardWarp(config, operations=operations, **plain)
        if config.flow_warp:
            self.flow_warp = FlowWarp(config, operations=operations, **plain)
        if config.forward_warp or config.flow_warp:
            self.prediction_in = operations.Conv2d(
                config.latent_channels + 1, config.model_channels, 1, bias=False, **plain
            )

    def encode_condition(
        self, latents: Tensor, *, lambda_: float = 0.0, motion: float = 1.0, overscan: int = 0
    ) -> DemoCondition:
        """As MicroCinemaUNet's, with the inputs of the forward warp."""
        encoded = super().encode_condition(latents)
        warp_inputs = self.forward_warp.encode(latents, encoded.features) if self.config.forward_warp else None
        settings = {"lambda_": lambda_, "motion": motion, "overscan": overscan}
        return DemoCondition(**vars(encoded), warp_inputs=warp_inputs, **settings)

    def predict(self, clips: Clips) -> Tensor:
        """As MicroCinemaUNet's, with the condition of this class."""
        config, x, condition, frames = self.config, clips.x, clips.condition, len(clips.offsets)
        text = pooled(clips.context) if clips.context is not None else None
        assert isinstance(condition, DemoCondition)
        tau = (condition.motion * self.tau(clips.offsets)).to(x)
        emb = self.embed_time(clips.timesteps, x.dtype)
        if config.motion_embedding:
            assert text is not None  # as DemoNetworkConfig and `forward` require
            emb = emb + self.embed_motion(text, tau)
        h = self.embed_input(clips)
        if config.residual_std is None:
            return self.out(self.run_layers(h, emb, clips))

        static_latent = over_frames(condition.latents, frames).flatten(0, 1)
        static_latent = static_latent.repeat(x.shape[0] // static_latent.shape[0], 1, 1, 1)
        times = self.time_since_key_frame(tau)
        is_new = (times != 0).all(dim=0).repeat(x.shape[0] // frames).view(-1, 1, 1, 1)  # no frame of the condition
        zoom = self._zoom(condition, text)
        if zoom is not None:
            is_new = is_new | (zoom != 1).repeat_interleave(frames).view(-1, 1, 1, 1)
        predicted = static_latent
        if config.forward_warp:
            warped, visibility = self._warp(clips, static_latent, text, times.float(), zoom)
            predicted = torch.where(is_new, warped, static_latent)
        elif config.flow_warp:
            predicted, visibility = self._warped_latents(clips)
        if config.forward_warp or config.flow_warp:
            h = h + self.prediction_in(torch.cat([predicted - static_latent, visibility], dim=1))
        out = self.out(self.run_layers(h, emb, clips))
        return self._precondition(out, clips, predicted, is_new)

    def embed_motion(self, text: Tensor, tau: Tensor) -> Tensor:
        """τ·A(p) + τ²·B(p), (b·t, E), for times τ (t,) and pooled texts p (b, 1, D).

        It makes the direction of time an input. Without it the network learns the direction late: for a long time,
        'left' and 'right' have the same loss.
        """
        tau = tau[:, None]
        return (tau * self.motion_linear(text) + tau**2 * self.motion_quadratic(text)).flatten(0, 1)

    def _zoom(self, condition: DemoCondition, text: Tensor | None) -> Tensor | None:
        """With overscan: the magnification (b,) at which no frame of the clip shows anything outside of the picture,
        for the largest amplitude of the motion."""
        frames, inputs = condition.overscan, condition.warp_inputs
        if not frames or text is None or inputs is None:
            return None
        offsets = torch.arange(frames, device=text.device) - frames // 2
        times = condition.motion * self.tau(offsets)[None].float()
        reach = MAX_DEVIATIONS * (self.config.amplitude_std or 0)
        times = torch.cat([times, (1 - reach) * times, (1 + reach) * times], dim=1)
        return self.forward_warp.overscan(inputs, text, times)

    def _warp(
        self, batch: Clips, static_latent: Tensor, text: Tensor | None, times: Tensor, zoom: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The warped latents (b·t, C, h, w) and their visibility (b·t, 1, h, w) at times (k, t) from each key frame,
        magnified by `zoom` (b,).

        With `amplitude_std` = s, the motion is the one predicted from the text, times an amplitude a ~ N(1, s²) that is
        estimated from the noisy clip. With z̄(a) ≈ z̄ + (a − 1)·D, the posterior mean of a − 1 is that of a linear
        regression of z_t − √ᾱ·z̄ − √(1−ᾱ)·λ·z^c on √ᾱ·D. Sampling with γ > 0 adds more of z^c to the noise, which has
        the effect of a smaller amplitude.
        """
        x, condition, std = batch.x, batch.condition, self.config.amplitude_std
        assert isinstance(condition, DemoCondition)
        warp, inputs = self.forward_warp, condition.warp_inputs
        if std is None:
            return warp(inputs, text, times, zoom)
        assert text is not None and self.config.residual_std is not None  # as DemoNetworkConfig requires
        clips = len(text)
        pair = warp(inputs, text, torch.cat([times, (1 + FINITE_DIFFERENCE) * times], dim=1), zoom)[0].float()
        predicted, shifted = pair.unflatten(0, (clips, 2, -1)).unbind(1)
        alpha, sigma = _levels(batch.timesteps, x.float())
        residual = x - alpha * predicted.flatten(0, 1) - sigma * condition.lambda_ * static_latent
        slope = alpha * (shifted - predicted).flatten(0, 1) / FINITE_DIFFERENCE
        noise = (sigma**2 + (alpha * self.config.residual_std) ** 2) / std**2
        residual, slope, noise = (values.reshape(clips, -1) for values in (residual, slope, noise))
        amplitude = (slope * residual).sum(1) / (slope.square().sum(1) + noise[:, 0])
        reach = MAX_DEVIATIONS * std
        return warp(inputs, text, times * (1 + amplitude.clamp(-reach, reach)).view(-1, 1, 1), zoom)

    def _precondition(self, out: Tensor, clips: Clips, predicted: Tensor, is_new: Tensor) -> Tensor:
        """Convert the layers' output F to v, for a residual r of standard deviation ρ (Karras et al. in VP form):

        v = √ᾱ·√(1−ᾱ)·(1−ρ²)/q²·(z_t − √ᾱ·z̄) − √(1−ᾱ)·z̄ − ρ/q·F,  q² = ᾱρ² + 1 − ᾱ.

        The frames of the condition have no residual: ρ is 0 where `is_new` (rows, 1, 1, 1) is false.
        """
        alpha, sigma = _levels(clips.timesteps, out)
        assert self.config.residual_std is not None
        rho = self.config.residual_std * is_new.to(out)
        q = (alpha**2 * rho**2 + sigma**2).sqrt()
        skip = alpha * sigma * (1 - rho**2) / q**2
        return skip * (clips.x - alpha * predicted) - sigma * predicted - rho / q * out

    def warp_ends(self, condition: Condition, ends: Tensor, frames: int) -> Tensor:
        """With a flow warp: predict the clips between end frames (b, 2, 3, H, W), which were encoded as `condition`.

        Returns the frames (b, frames, 3, H, W), and keeps them in the condition, as the prediction of its later use.
        """
        assert isinstance(condition, DemoCondition)
        times = [index / (frames - 1) for index in range(frames)]
        warped = self.flow_warp(ends.to(condition.latents), condition.latents, times)
        condition.warped = warped
        return warped.pixels

    def add_residual(self, condition: Condition, sampled: Tensor) -> Tensor:
        """With a flow warp: the frames (b, t, 3, H, W) of sampled latents (b, t, C, h, w): those of `warp_ends`, with
        the residual around them."""
        assert isinstance(condition, DemoCondition) and condition.warped is not None
        warped = condition.warped
        residual = self.flow_warp.residual((sampled.to(warped.latents) - warped.latents).flatten(0, 1))
        residual = residual.unflatten(0, sampled.shape[:2]) * ~warped.cut.view(-1, 1, 1, 1, 1)
        return (warped.pixels + residual).clamp(0, 1)

    def _warped_latents(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """The latents of the flow warp's frames (b·t, C, h, w), and the end frames' disagreement (b·t, 1, h, w).

        Without a call of `warp_ends` before, the pixels are decoded from the condition's latents.
        """
        condition, frames = clips.condition, len(clips.offsets)
        assert isinstance(condition, DemoCondition)
        if condition.warped is None or condition.warped.latents.shape[1] != frames:
            with torch.no_grad():
                ends = self.flow_warp.autoencoder.decode(condition.latents.flatten(0, 1)).clamp(0, 1)
            self.warp_ends(condition, ends.unflatten(0, (-1, 2)), frames)
        assert condition.warped is not None
        latents, disagreement = (
            maps.flatten(0, 1).repeat(clips.x.shape[0] // maps.shape[:2].numel(), 1, 1, 1).to(clips.x)
            for maps in (condition.warped.latents, condition.warped.disagreement)
        )
        return latents, disagreement

    def interpolate_pictures(self, condition: Condition, pictures: Tensor, frames: int) -> Tensor:
        """As MicroCinemaUNet's, but along the paths of the forward warp, if there is one."""
        if not self.config.forward_warp:
            return super().interpolate_pictures(condition, pictures, frames)
        assert isinstance(condition, DemoCondition) and condition.warp_inputs is not None
        warp, tau = self.forward_warp, self.tau(torch.arange(frames, device=pictures.device))
        motion = warp.estimate(condition.warp_inputs, None)
        return warp.render(pictures, motion, None, self.time_since_key_frame(tau))[0]

    def tau(self, offsets: Tensor) -> Tensor:
        """Offsets from the centre frame to times τ: ±1 at the ends of a clip of the length in training."""
        return offsets / (max(self.config.frames - 1, 1) / 2)

    def time_since_key_frame(self, tau: Tensor) -> Tensor:
        """Times τ (t,) of the clip to times relative to each frame of the condition, (k, t)."""
        return tau[None] if self.config.condition == "centre" else torch.stack([tau - tau[0], tau - tau[-1]])


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
