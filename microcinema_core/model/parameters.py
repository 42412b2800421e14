"""How large a model is, part by part, without allocating it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import ModelConfig
from ..header import network_parts
from .autoencoder import Autoencoder
from .text import ClipText
from .unet import MicroCinemaUNet


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part of the network ("spatial" is what SD has too), of all of it as "network", and of what it
    works with (supplement Table 2). The text tower counts whole, with the last layer and the projection that the
    paper's Table 2 counts and no model reads."""
    network = MicroCinemaUNet(config.network, device="meta")
    table = network_parts((name, parameter.numel()) for name, parameter in network.named_parameters())
    with torch.device("meta"):
        table["autoencoder"] = _count(Autoencoder(config.autoencoder))
        if config.text:
            tower = ClipText(replace(config.text, skip_last=0))
            table["text encoder"] = _count(tower) + config.text.projection * config.text.width**2
    return table


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
