"""The number of parameters of each part of a model, without allocating it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import ModelConfig
from ..header import AUTOENCODER, NETWORK, TEXT, part_sizes
from . import build
from .autoencoder import Autoencoder
from .text import ClipText


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """The number of parameters of each part, as part_sizes names the parts (supplement Table 2).

    As in Table 2, the text tower is counted with its last layer and its projection, which no model uses.
    """
    with torch.device("meta"):
        parts = {NETWORK: build(config.network, device="meta"), AUTOENCODER: Autoencoder(config.autoencoder)}
        if config.text:
            parts[TEXT] = ClipText(replace(config.text, skip_last=0))
    sizes = {
        prefix + name: parameter.numel()
        for prefix, module in parts.items()
        for name, parameter in module.named_parameters()
    }
    if config.text:
        sizes[TEXT + "projection"] = config.text.projection * config.text.width**2
    return part_sizes(config, sizes)
