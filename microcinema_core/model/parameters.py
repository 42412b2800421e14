"""How large a model is, part by part, without allocating it."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import CLIPTextModel

from ..config import ModelConfig
from .autoencoder import Autoencoder
from .text import clip_config
from .unet import MicroCinemaUNet

_PARTS = {
    "appearance": "appearance network",
    "appearance_injections": "appearance injection",
    "condition_in": "condition input",
    "motion_first": "motion embedding",
    "motion_second": "motion embedding",
    "forward_warp": "forward warp",
    "expected_in": "forward warp",
    "temporal_convs": "temporal convolutions",
    "temporal_transformers": "temporal transformers",
}


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part of the network ("spatial" is what SD has too), of all of it as "network", and of what it
    works with (supplement Table 2). The text tower counts whole, with the last layer and the projection that the
    paper's Table 2 counts and no model reads."""
    table = dict.fromkeys(["spatial", "temporal convolutions", "temporal transformers", "appearance network"], 0)
    table |= dict.fromkeys(["appearance injection", "condition input"], 0)
    for name, parameter in MicroCinemaUNet(config.network, device="meta").named_parameters():
        if name.startswith("forward_warp.autoencoder"):
            continue  # the model's own, counted below
        part = _PARTS.get(name.partition(".")[0], "spatial")
        table[part] = table.get(part, 0) + parameter.numel()
    table["network"] = sum(table.values())
    with torch.device("meta"):
        table["autoencoder"] = _count(Autoencoder(config.autoencoder))
        if config.text:
            tower = CLIPTextModel(clip_config(replace(config.text, skip_last=0)))
            table["text encoder"] = _count(tower) + config.text.projection * config.text.width**2
    return table


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
