"""Models of the paper, small enough to build and run, with no parameter left at zero."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.config import AutoencoderConfig, ModelConfig, NetworkConfig, TextConfig
from microcinema_core.model import build
from microcinema_core.model.autoencoder import Autoencoder
from microcinema_core.model.text import TextEncoder, word_tokenizer

WORDS = [
    "a", "and", "blue", "camera", "disc", "down", "in", "left", "moves", "out", "pan", "pans", "purple", "quickly",
    "red", "right", "slowly", "square", "star", "stays", "the", "up", "zooms",
]  # fmt: skip


def tiny_base() -> ModelConfig:
    """A base model of 5 frames of 32×32 pixels, 8×8 latents."""
    return ModelConfig(
        name="tiny-base",
        network=NetworkConfig(
            model_channels=16, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_channels=8,
            norm_groups=4, context_dim=64, frames=5,
        ),
        autoencoder=AutoencoderConfig(channels=8, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=4),
        text=TextConfig(
            width=64, layers=1, heads=2, vocabulary_size=128, max_tokens=24, skip_last=0, projection=False,
            tokenizer=word_tokenizer(WORDS),
        ),
        parameterization="v", width=32, height=32, steps=3, cfg=2.0,
    )  # fmt: skip


def tiny_between() -> ModelConfig:
    """An interpolation model of the same size."""
    network = replace(tiny_base().network, context_dim=None, condition="ends")
    return replace(tiny_base(), name="tiny-interpolation", network=network, text=None, cfg=1.0)


def random_model(config: ModelConfig) -> LoadedModel:
    torch.manual_seed(0)
    network, autoencoder = build(config.network), Autoencoder(config.autoencoder)
    text = TextEncoder(config.text) if config.text else None
    for module in filter(None, (network, autoencoder, text)):
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return LoadedModel(config, network, autoencoder, text)
