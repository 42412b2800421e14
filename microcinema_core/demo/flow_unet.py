"""The network of the interpolation model: the paper's, preconditioned around frames that a flow network makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Condition
from ..model.clips import Clips
from .config import DemoNetworkConfig
from .flow_warp import FlowWarp, WarpedFrames
from .network import DemoUNet, Prediction, prediction_layer


@dataclass
class FlowCondition(Condition):
    """A Condition with the flow warp's frames, once a clip's length is known."""

    warped: WarpedFrames | None = None


class FlowUNet(DemoUNet):
    """A DemoUNet between two end frames. Its prediction are the latents of the flow warp's frames, and the end frames'
    disagreement is an input beside them; the pixels are the flow warp's, to which the residual is added."""

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        kw = {"operations": operations, "dtype": dtype, "device": device}
        self.flow_warp = FlowWarp(config, **kw)
        self.prediction_in = prediction_layer(config, **kw)

    def encode_condition(self, latents: Tensor, **settings: Any) -> FlowCondition:
        """As MicroCinemaUNet's. Without `pixels`, those that the autoencoder decodes are moved."""
        return FlowCondition(**vars(super().encode_condition(latents, **settings)))

    def predict_latents(self, clips: Clips, static_latent: Tensor, text: Tensor | None, tau: Tensor) -> Prediction:
        """As DemoUNet's, by the flow warp."""
        warped = self._warped(clips.condition, len(tau))
        latents, disagreement = (
            maps.flatten(0, 1).repeat(len(clips.x) // maps.shape[:2].numel(), 1, 1, 1).to(clips.x)
            for maps in (warped.latents, warped.disagreement)
        )
        return Prediction(latents, disagreement, self.is_given(clips, tau))

    def pictures_between(
        self, condition: Condition, sampled: Tensor, decode: Callable[[Tensor], Tensor], shares: Tensor
    ) -> Tensor:
        """As MicroCinemaUNet's, but the flow warp's frames with the residual of the sampled latents; nothing is
        decoded. At a cut they are copies of the end frames. In quiet places they keep a share of what they differ by
        from a blend of the end frames."""
        warped = self._warped(condition, sampled.shape[1])
        residual = self.flow_warp.residual((sampled.to(warped.latents) - warped.latents).flatten(0, 1))
        pixels = warped.pixels + residual.unflatten(0, sampled.shape[:2]) * warped.moving
        given_up = warped.quiet * (1 - shares.to(pixels).view(-1, 1, 1, 1, 1))
        times = torch.linspace(0, 1, pixels.shape[1]).to(pixels).view(-1, 1, 1, 1)
        pixels = torch.lerp(pixels, torch.lerp(pixels[:, :1], pixels[:, -1:], times), given_up)
        return pixels[:, 1:-1].float().cpu().clamp(0, 1)

    def compare(self, triples: Tensor) -> Tensor:
        """As MicroCinemaUNet's, by the flow warp, without the diffusion model's residual."""
        return self.flow_warp.compare(triples)

    def _warped(self, condition: Condition, frames: int) -> WarpedFrames:
        """The flow warp's frames for a clip of this length, made once."""
        assert isinstance(condition, FlowCondition)
        warped = condition.warped
        if warped is None or warped.latents.shape[1] != frames:
            ends = condition.pixels
            if ends is None:
                with torch.no_grad():
                    decoded = self.flow_warp.autoencoder.decode(condition.latents.flatten(0, 1))
                ends = decoded.clamp(0, 1).unflatten(0, condition.latents.shape[:2])
            times = [index / (frames - 1) for index in range(frames)]
            warped = self.flow_warp(ends.to(condition.latents), condition.latents, times)
            condition.warped = warped
        return warped
