"""Networks of the bundled models' kind, in small."""

from __future__ import annotations

from dataclasses import fields, replace

from networks import ENDS, TINY
from tiny import tiny_base, tiny_between

from microcinema_core.config import AutoencoderConfig, ModelConfig, NetworkConfig
from microcinema_core.demo.captions import all_words
from microcinema_core.demo.config import DemoModelConfig, DemoNetworkConfig
from microcinema_core.model.text import word_tokenizer

PIXELS = AutoencoderConfig(channels=4, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=2)


def demo_network(config: NetworkConfig, **added) -> DemoNetworkConfig:
    """The paper's network of a configuration, with what is added."""
    return DemoNetworkConfig(**{field.name: getattr(config, field.name) for field in fields(NetworkConfig)} | added)


VARIANTS = {
    "none": demo_network(TINY),
    "residual": demo_network(TINY, residual_std=0.5),
    "warp": demo_network(TINY, forward_warp=PIXELS, residual_std=0.5),
    "flow between ends": demo_network(ENDS, context_dim=None, flow_warp=PIXELS, residual_std=0.5),
    "like the demo": demo_network(
        TINY, scale_shift_norm=True, residual_std=0.5, latent_channels=16, amplitude_std=0.05,
        forward_warp=replace(PIXELS, latent_channels=16),
    ),
}  # fmt: skip


def demo_model(config: ModelConfig, **added) -> DemoModelConfig:
    """The paper's model of a configuration, its network with what is added, and the bundled models' words."""
    values = {field.name: getattr(config, field.name) for field in fields(ModelConfig)}
    text = config.text and replace(config.text, tokenizer=word_tokenizer(all_words()))
    return DemoModelConfig(**values | {"network": demo_network(config.network, **added), "text": text})


def tiny_demo_base(**added) -> DemoModelConfig:
    return demo_model(tiny_base(), **added)


def tiny_demo_between(**added) -> DemoModelConfig:
    return demo_model(tiny_between(), **added)
