"""The image-and-text-to-video network: SD2.1's UNet, inflated (MicroCinema, section 3.3 and supplement Table 2).

Frames travel folded into the batch, (clips · frames, C, h, w). In order of use:
- AppearNet sees the condition once per clip; its features scale and shift the second group-norm of every ResBlock.
- A temporal convolution follows every ResBlock, a temporal transformer every spatial transformer.
- All that is new starts at zero: an untrained network is SD2.1 frame by frame, to the bit, and SD2.1's checkpoint keys
  are a strict subset of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import LAMBDA, NetworkConfig
from ..errors import MicroCinemaError
from ..schedule import NoiseSchedule
from .appearance import AppearNet, Condition, spread
from .layers import zero
from .spatial import Control, Patches, SpatialUNet, heads_of
from .temporal import TemporalConv, TemporalTransformer
from .warp import ForwardWarp

_SCHEDULE = NoiseSchedule()
FURTHER = 0.1  # of a motion: the step of its finite difference


@dataclass
class _Clips:
    """What every layer of one forward pass needs to know of the clips."""

    offsets: Tensor  # (frames,): their places, counted from the clip's middle
    modulations: list[tuple[Tensor, Tensor]]  # scale and shift, each (condition's clips, frames, C, h, w)


class MicroCinemaUNet(SpatialUNet):
    """The paper's 8-channel input (noisy latent ⊕ condition latent, the 4 new planes at zero) is two convolutions here:
    SD2.1's own on the noisy latent, and `condition_in` on the condition, their outputs added. That is the same function
    (a convolution is linear in its input planes), but it leaves `input_blocks.0.0.weight` at SD2.1's shape, starts
    exact to the bit, and the condition's half runs once per clip.
    """

    def __init__(self, config: NetworkConfig, *, operations=nn, dtype=None, device=None):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        kw = {"operations": operations, "dtype": dtype, "device": device}
        plain = {"dtype": dtype, "device": device}
        groups = config.norm_groups

        self.condition_in = zero(
            operations.Conv2d(config.latent_channels, config.model_channels, 3, padding=1, bias=False, **plain)
        )
        self.appearance = AppearNet(config, **kw)
        # γ and β of one ResBlock are the two halves of one convolution's output.
        self.appearance_injections = nn.ModuleList(
            zero(operations.Conv2d(channels, 2 * channels, 1, **plain)) for channels in self.res_channels
        )
        self.temporal_convs = nn.ModuleList(
            TemporalConv(channels, groups, config.temporal_conv_depth, **kw) for channels in self.res_channels
        )
        self.temporal_transformers = nn.ModuleList(
            TemporalTransformer(
                channels,
                heads_of(channels, config),
                groups,
                config.temporal_attentions,
                config.temporal_positions,
                **kw,
            )
            for channels in self.transformer_channels
        )
        if config.motion_embedding:
            emb_dim = 4 * config.model_channels
            self.motion_first = operations.Linear(config.context_dim, emb_dim, bias=False, **plain)
            self.motion_second = operations.Linear(config.context_dim, emb_dim, bias=False, **plain)
            for layer in (self.motion_first, self.motion_second):  # not at zero: behind it, every branch already is
                if layer.weight is not None and not layer.weight.is_meta:  # a host may leave it to the file
                    layer.weight.detach().copy_(0.05 * torch.randn(layer.weight.shape, device=device))
        if config.forward_warp:
            self.forward_warp = ForwardWarp(config, **kw)
            self.expected_in = operations.Conv2d(
                config.latent_channels + 1, config.model_channels, 1, bias=False, **plain
            )

    def encode_condition(self, latents: Tensor, lambda_: float = LAMBDA) -> Condition:
        """Latents (clips, k, C, h, w), scaled, free of noise: k = 1, the centre frame, or k = 2, first and last frame,
        as the configuration says; `lambda_` is the run's λ, the prior's strength in training. The result serves all
        steps, and both halves of a guided batch."""
        clips, k = latents.shape[:2]
        expected = 1 if self.config.condition == "centre" else 2
        if k != expected:
            raise MicroCinemaError(
                f"This model is conditioned on {expected} picture(s) per clip but was given {k}: pass the "
                f"{'centre frame' if expected == 1 else 'first and the last frame'}."
            )
        pictures = latents.flatten(0, 1)
        features = self.appearance(pictures)
        modulations = []
        for injection, feature in zip(self.appearance_injections, features, strict=True):
            gamma, beta = injection(feature).unflatten(0, (clips, k)).chunk(2, dim=2)
            modulations.append((1 + gamma, beta))
        seen = None
        if self.config.forward_warp:
            seen = self.forward_warp.look(latents, features[-1].unflatten(0, (clips, k)))
        return Condition(latents, self.condition_in(pictures).unflatten(0, (clips, k)), modulations, seen, lambda_)

    def look(self, latents: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward_warp` sees of condition latents (clips, k, C, h, w) of known pixels (clips, k, 3, H, W)."""
        features = self.appearance(latents.flatten(0, 1))[-1]
        return self.forward_warp.look(latents, features.unflatten(0, latents.shape[:2]), pixels)

    def carry(self, condition: Condition, pictures: Tensor, frames: int) -> Tensor:
        """Pictures (clips, 2, 3, H, W) of the ends of clips to (clips, frames, 3, H, W): along the paths of a forward
        warp, else blended."""
        if not self.config.forward_warp:
            return spread(pictures, frames)
        warp, tau = self.forward_warp, self.tau(torch.arange(frames, device=pictures.device))
        return warp.render(pictures, warp.read(condition.seen, None), None, self.since(tau))[0]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        *,
        condition: Condition,
        num_video_frames: int,
        control: Control | None = None,
        offsets: Tensor | None = None,
        patches: Patches | None = None,
    ) -> Tensor:
        """x (b·t, C, h, w), timesteps (b·t,) or (b,), context (b, L, D) once per clip, condition of b or fewer clips:
        a batch of two guidance halves [half 0's clips …, half 1's clips …] shares one. control: a ControlNet's
        residuals, used up. offsets (t,): the frames' places from the clip's middle, frame n // 2 of n; by default the
        clip is whole. patches: what a host changes on the way.

        Returns (b·t, C, h, w), the raw output in the model's parameterisation. Raises MicroCinemaError when a batch
        cannot be divided into clips, or clips among conditions.
        """
        rows, frames = x.shape[0], num_video_frames
        clips, rest = divmod(rows, frames)
        if rest or clips % condition.clips:
            raise MicroCinemaError(
                f"A batch of {rows} frames cannot be divided into clips of {frames} frames for {condition.clips} "
                "condition picture(s): make the batch a multiple of their product."
            )
        if context is None and self.config.context_dim is not None:
            raise MicroCinemaError("This model needs a text: pass the text encoder's tokens as the context.")

        emb = self.embed_time(timesteps.repeat_interleave(rows // timesteps.shape[0]), x.dtype)
        planes = spread(condition.planes, frames)
        h = self.input_blocks[0][0](x)
        h = (h.view(-1, *planes.shape) + planes).flatten(0, 2)
        if offsets is None:
            offsets = torch.arange(frames, device=x.device, dtype=torch.float32) - frames // 2
        text, tau = pooled(context) if context is not None else None, self.tau(offsets).to(x)
        since = self.since(tau)
        if self.config.motion_embedding:
            emb = emb + self._embed_motion(text, tau)
        if self.config.residual_std is not None:
            still = spread(condition.latents, frames).flatten(0, 1)
            expected = still = still.repeat(rows // still.shape[0], 1, 1, 1)
            unknown = (since != 0).all(dim=0).repeat(clips).view(-1, 1, 1, 1)
        if self.config.forward_warp:
            since = since.float()
            if self.config.amplitude_std is None:
                moved, known = self.forward_warp(condition.seen, text, since)
            else:
                moved, known = self._moved(x, timesteps, still, condition, text, since)
            expected = torch.where(unknown, moved, still)
            h = h + self.expected_in(torch.cat([expected - still, known], dim=1))
        modulations = [(spread(scale, frames), spread(shift, frames)) for scale, shift in condition.modulations]
        out = self.out(self.walk(h, emb, context, _Clips(offsets, modulations), control, patches))
        if self.config.residual_std is not None:
            out = self._around(out, x, timesteps, expected, unknown)
        return out

    def _moved(self, x: Tensor, timesteps: Tensor, still: Tensor, condition: Condition, text: Tensor, since: Tensor):
        """What the forward warp gives at times (k, t) since each picture's frame, of a motion as large as the noisy
        clips show: a ~ N(1, `amplitude_std`²) times what is told.

        By z̄(a) ≈ z̄ + (a − 1)·D, the mean of a − 1 given z_t is that of a linear regression on √ᾱ·D of
        z_t − √ᾱ·z̄ − √(1−ᾱ)·λ·z^c. Noise with more of z^c in it, γ > 0, looks like a clip that moves less.
        """
        warp, seen, std, clips = self.forward_warp, condition.seen, self.config.amplitude_std, len(text)
        both = warp(seen, text, torch.cat([since, (1 + FURTHER) * since], dim=1))[0].float()
        told, further = both.unflatten(0, (clips, 2, -1)).unbind(1)
        alpha, sigma = _levels(timesteps, x.float())
        missed = x - alpha * told.flatten(0, 1) - sigma * condition.lambda_ * still
        slope = alpha * (further - told).flatten(0, 1) / FURTHER
        noise = (sigma**2 + (alpha * self.config.residual_std) ** 2) / std**2
        missed, slope, noise = (values.reshape(clips, -1) for values in (missed, slope, noise))
        more = (slope * missed).sum(1) / (slope.square().sum(1) + noise[:, 0])
        return warp(seen, text, since * (1 + more.clamp(-3 * std, 3 * std)).view(-1, 1, 1))

    def _around(self, out: Tensor, x: Tensor, timesteps: Tensor, expected: Tensor, unknown: Tensor) -> Tensor:
        """The layers' output F as v of the clip, F being the residual r = z_0 − z̄ of std ρ, preconditioned after Karras
        et al. (2022, table 1) in VP form; z̄ is the condition spread over the frames, and moved by a forward warp:

        v = √ᾱ·√(1−ᾱ)·(1−ρ²)/q²·(z_t − √ᾱ·z̄) − √(1−ᾱ)·z̄ − ρ/q·F,  q² = ᾱρ² + 1 − ᾱ.

        An untrained network so predicts a clip that stands still (or a blend of its ends), and backgrounds cost the
        training nothing. Frames that the condition shows have no residual: where not `unknown` (rows, 1, 1, 1), ρ is 0.
        """
        alpha, sigma = _levels(timesteps, out)
        rho = self.config.residual_std * unknown.to(out)
        q = (alpha**2 * rho**2 + sigma**2).sqrt()
        skip = alpha * sigma * (1 - rho**2) / q**2
        return skip * (x - alpha * expected) - sigma * expected - rho / q * out

    def run_res(self, layer, h, emb, clips):
        return self.temporal_convs[layer.index](layer(h, emb, clips.modulations[layer.index]), len(clips.offsets))

    def run_transformer(self, layer, h, context, clips, patches):
        return self.temporal_transformers[layer.index](patches.transform(layer, h, context), clips.offsets)

    def tau(self, offsets: Tensor) -> Tensor:
        """Offsets from the centre, in frames, to τ: ±1 at the ends of a clip of the trained length."""
        return offsets / (max(self.config.frames - 1, 1) / 2)

    def since(self, tau: Tensor) -> Tensor:
        """The clip's times to those since each picture's frame, (k, t)."""
        return tau[None] if self.config.condition == "centre" else torch.stack([tau - tau[0], tau - tau[-1]])

    def _embed_motion(self, text: Tensor, tau: Tensor) -> Tensor:
        """τ·A(p) + τ²·B(p), (b·t, E), for pooled texts p (b, 1, D). It hands the network the sign of time, which it
        otherwise learns late: without it, 'left' and 'right' cost the same loss for long."""
        tau = tau[:, None]
        return (tau * self.motion_first(text) + tau**2 * self.motion_second(text)).flatten(0, 1)


def _levels(timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1−ᾱ) for the rows of x, (rows, 1, 1, 1), from timesteps for the rows or for every so many of them."""
    sigma = _SCHEDULE.noise_level(timesteps).to(x)
    sigma = sigma.repeat_interleave(x.shape[0] // sigma.shape[0]).view(-1, 1, 1, 1)
    return (1 - sigma**2).sqrt(), sigma


def pooled(context: Tensor) -> Tensor:
    """Text states (b, L, D) to (b, 1, D): their sum over √L, the last one's taken off each. That one is padding in all
    but the longest sentences, and what it shares with the others would drown the few words that name a motion."""
    return (context - context[:, -1:]).sum(dim=1, keepdim=True) / context.shape[1] ** 0.5
