"""The image-and-text-to-video network: SD2.1's UNet, inflated (MicroCinema, section 3.3 and supplement Table 2).

Frames are folded into the batch, (clips · frames, C, h, w).
- AppearNet encodes the condition once per clip; its features scale and shift the output of the second group-norm of
  every ResBlock.
- A temporal convolution follows every ResBlock, a temporal transformer every spatial transformer, and if wanted
  (public video models have it) the first convolution.
- Every new layer starts at zero: an untrained network equals SD2.1 frame by frame, to the bit, and SD2.1's checkpoint
  keys are a strict subset of its own.

`predict` consists of `embed_time`, `embed_input`, `run_layers` and `out`. A subclass extends the paper's network by
overriding `predict`, `encode_condition`, `pictures_between` or `compare` (see docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TEMPORAL_INPUT_HEADS, NetworkConfig
from ..errors import MicroCinemaError
from .appearance import AppearNet
from .clips import Clips, Condition, check_batch, over_frames
from .layers import ResBlock, SpatialTransformer, zero
from .spatial import Control, Patches, SpatialUNet, heads_of
from .temporal import TemporalConv, TemporalTransformer


class MicroCinemaUNet(SpatialUNet):
    """The network of the paper.

    The paper's first convolution has 8 input channels, the noisy latent and the condition's latent, with the weights of
    the 4 new ones at zero. Here it is the sum of two convolutions: SD2.1's own on the noisy latent, and `condition_in`
    on the condition. This is the same function, since a convolution is linear in its input channels. But
    `input_blocks.0.0.weight` keeps SD2.1's shape, the initial network equals SD2.1 to the bit, and the condition's
    part runs once per clip.
    """

    def __init__(self, config: NetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        plain = {"dtype": dtype, "device": device}
        kw = {"operations": operations, **plain}
        groups, depth = config.norm_groups, config.temporal_conv_depth
        mixing = (groups, config.temporal_attentions, config.temporal_positions)

        self.condition_in = zero(
            operations.Conv2d(config.latent_channels, config.model_channels, 3, padding=1, bias=False, **plain)
        )
        self.appearance = AppearNet(config, **kw)
        self.appearance_injections = nn.ModuleList(  # γ and β are the two halves of one convolution's output
            zero(operations.Conv2d(channels, 2 * channels, 1, **plain)) for channels in self.res_channels
        )
        self.temporal_convs = nn.ModuleList(TemporalConv(width, groups, depth, **kw) for width in self.res_channels)
        self.temporal_transformers = nn.ModuleList(
            TemporalTransformer(width, heads_of(width, config), *mixing, **kw) for width in self.transformer_channels
        )
        if config.temporal_input:
            width, inner = config.model_channels, config.temporal_input_width
            self.temporal_input = TemporalTransformer(width, TEMPORAL_INPUT_HEADS, *mixing, inner, **kw)

    def encode_condition(
        self, latents: Tensor, *, pixels: Tensor | None = None, lambda_: float = 0.0, **moves: float
    ) -> Condition:
        """Run AppearNet on the condition: once per clip, for all steps and for both halves of a batch with guidance.

        latents: (clips, k, C, h, w), scaled and without noise, of the centre frame (k = 1) or of the first and the last
        frame (k = 2), as the configuration says. pixels: (clips, k, 3, H, W), for `pictures_between`. For subclasses
        whose prediction depends on them: lambda_, λ of the run, and moves, the settings of ModelConfig.moves_pixels.
        Raises MicroCinemaError for another k.
        """
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
        planes = self.condition_in(pictures).unflatten(0, (clips, k))
        return Condition(latents, planes, modulations, pixels)

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
        """Predict from noisy latents: the raw output (b·t, C, h, w) in the model's parameterisation.

        x: (b·t, C, h, w).
        timesteps: (b·t,) or (b,).
        context: (b, L, D), the text of each clip.
        condition: of b clips, or of a divisor of b. With guidance, the batch is the clips with the empty text, then the
            same clips with the prompt, and both halves share the condition.
        control: a ControlNet's residuals; the lists are emptied.
        offsets: (t,), the frames' offsets from the centre frame, n // 2 of n; by default those of a whole clip.
        patches: a host's hooks.

        Raises MicroCinemaError where the batch is not a whole number of clips, or b no multiple of the condition's.
        """
        if context is None and self.config.context_dim is not None:
            raise MicroCinemaError("This model needs a text: pass the text encoder's tokens as the context.")
        check_batch(x, condition, num_video_frames)
        if offsets is None:
            offsets = torch.arange(num_video_frames, device=x.device, dtype=torch.float32) - num_video_frames // 2
        timesteps = timesteps.repeat_interleave(x.shape[0] // timesteps.shape[0])
        return self.predict(Clips(x, timesteps, context, condition, offsets, control, patches))

    def predict(self, clips: Clips) -> Tensor:
        """The raw output (b·t, C, h, w) for a batch that `forward` has checked."""
        emb = self.embed_time(clips.timesteps, clips.x.dtype)
        return self.out(self.run_layers(self.embed_input(clips), emb, clips))

    def embed_input(self, clips: Clips) -> Tensor:
        """The first convolution's output for noisy and condition latents together, (b·t, model_channels, h, w)."""
        planes = over_frames(clips.condition.planes, len(clips.offsets))
        h = (self.first_conv(clips.x).view(-1, *planes.shape) + planes).flatten(0, 2)
        return self.temporal_input(h, clips.offsets) if self.config.temporal_input else h

    def run_layers(self, h: Tensor, emb: Tensor, clips: Clips) -> Tensor:
        """All layers between the first convolution and `out`, with AppearNet's features injected."""
        return self.forward_blocks(h, emb, clips.context, clips, clips.control, clips.patches)

    def run_res(self, layer: ResBlock, h: Tensor, emb: Tensor, state: Clips) -> Tensor:
        """A ResBlock with its modulation, then its temporal convolution."""
        frames = len(state.offsets)
        scale, shift = (over_frames(values, frames) for values in state.condition.modulations[layer.index])
        return self.temporal_convs[layer.index](layer(h, emb, (scale, shift)), frames)

    def run_transformer(
        self, layer: SpatialTransformer, h: Tensor, context: Tensor | None, state: Clips, patches: Patches
    ) -> Tensor:
        """A spatial transformer, then its temporal transformer."""
        return self.temporal_transformers[layer.index](patches.transform(layer, h, context), state.offsets)

    def pictures_between(
        self, condition: Condition, sampled: Tensor, decode: Callable[[Tensor], Tensor], shares: Tensor
    ) -> Tensor:
        """Sampled latents (clips, t, C, h, w) to the pictures (clips, t − 2, 3, H, W) between the end frames: those of
        `decode`, (n, C, h, w) → (n, 3, H, W), plus a blend of what the autoencoder lost of the end frames. `shares`
        (clips,) are those of Trust, which subclasses with `compare` use."""
        made, ends = (decode(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (sampled[:, 1:-1], condition.latents))
        assert condition.pixels is not None
        return (made + over_frames(condition.pixels - ends, sampled.shape[1])[:, 1:-1]).clamp(0, 1)

    def compare(self, triples: Tensor) -> Tensor:
        """The sums (n, 2) for Trust of neighbours (n, 3, 3, H, W): here 0, which trusts the model."""
        return torch.zeros(len(triples), 2)
