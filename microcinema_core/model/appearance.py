"""AppearNet and what it hands to the video network: the appearance of the given picture, once per clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import LAMBDA, NetworkConfig
from .spatial import SpatialUNet


@dataclass
class Condition:
    """A condition of k pictures (1: the centre frame; 2: first and last frame), encoded for every step of a run.

    latents: (clips, k, C, h, w), what was encoded.
    planes: (clips, k, C, h, w), the condition's share of the first convolution's output.
    modulations: for each ResBlock, in the order they run, scale = 1 + γ(f) and shift = β(f), each (clips, k, C, h, w).
    seen: what ForwardWarp.look gives, for a network with one.
    lambda_: the run's λ, the prior's strength in training.
    """

    latents: Tensor
    planes: Tensor
    modulations: list[tuple[Tensor, Tensor]]
    seen: tuple[Tensor, Tensor] | None = None
    lambda_: float = LAMBDA

    @property
    def clips(self) -> int:
        return self.planes.shape[0]


def spread(encoded: Tensor, frames: int) -> Tensor:
    """(clips, k, C, h, w) to (clips, frames, C, h, w): one picture is expanded without a copy, two are interpolated.

    Interpolating after a 1×1 convolution (or any convolution without activation) is the same as before it, so that
    the convolution runs on two pictures and not on every frame.
    """
    if encoded.shape[1] == 1:
        return encoded.expand(-1, frames, -1, -1, -1)
    weights = torch.linspace(0, 1, frames, dtype=encoded.dtype, device=encoded.device)
    return torch.lerp(encoded[:, :1], encoded[:, 1:], weights.view(-1, 1, 1, 1))


class AppearNet(SpatialUNet):
    """The spatial network without text and without head, run on the condition's latents alone, at t = 0.

    Its features are those that leave each ResBlock, by way of the transformer if one follows, so that no weight of the
    copy lies idle. They are of the shape that the same ResBlock has in the main network.
    """

    def __init__(self, config: NetworkConfig, **kw):
        super().__init__(replace(config, context_dim=None), head=False, **kw)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Latents (n, C, h, w), free of noise, to one feature (n, C', h', w') per ResBlock."""
        features: list[Tensor] = []
        emb = self.embed_time(torch.zeros(1, device=latents.device), latents.dtype)
        self.walk(self.input_blocks[0][0](latents), emb, state=features)
        return features

    def run_res(self, layer, h, emb, features):
        features.append(layer(h, emb))
        return features[-1]

    def run_transformer(self, layer, h, context, features, patches):
        features[-1] = layer(h)
        return features[-1]
