"""AppearNet (MicroCinema, section 3.3): features of the condition pictures, computed once per clip."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..config import NetworkConfig
from .layers import ResBlock, SpatialTransformer
from .spatial import Patches, SpatialUNet


class AppearNet(SpatialUNet):
    """The spatial network without text and without head, applied to the condition's latents alone, at t = 0.

    It returns one feature per ResBlock: the output of the ResBlock, or of the transformer that follows it, so that
    every weight of the network has an effect. The feature has the shape of the same ResBlock in the main network.
    """

    def __init__(self, config: NetworkConfig, **kw):
        values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(NetworkConfig)}
        values["context_dim"] = None
        super().__init__(NetworkConfig(**values), head=False, **kw)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Latents (n, C, h, w) without noise to one feature (n, C', h', w') per ResBlock."""
        features: list[Tensor] = []
        emb = self.embed_time(torch.zeros(1, device=latents.device), latents.dtype)
        self.forward_blocks(self.first_conv(latents), emb, state=features)
        return features

    def run_res(self, layer: ResBlock, h: Tensor, emb: Tensor, state: list[Tensor]) -> Tensor:
        """Append the ResBlock's output to the features."""
        state.append(layer(h, emb))
        return state[-1]

    def run_transformer(
        self, layer: SpatialTransformer, h: Tensor, context: Tensor | None, state: list[Tensor], patches: Patches
    ) -> Tensor:
        """Replace the last feature by the transformer's output."""
        state[-1] = layer(h)
        return state[-1]
