"""What tests share: models small enough to build and run, with no parameter left at zero, and a real ComfyUI."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from host import HOST, Server
from torch import nn

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.config import AutoencoderConfig, ModelConfig, NetworkConfig, TextConfig
from microcinema_core.model import MicroCinemaUNet
from microcinema_core.model.autoencoder import Autoencoder
from microcinema_core.model.text import TextEncoder, word_tokenizer
from microcinema_core.training.captions import all_words
from microcinema_core.training.scenes import Clip, draw_clip


def tiny_base() -> ModelConfig:
    """A base model of 5 frames of 32×32 pixels, 8×8 latents."""
    return ModelConfig(
        name="tiny-base",
        network=NetworkConfig(
            model_channels=16, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_channels=8,
            norm_groups=4, context_dim=64, frames=5, motion_embedding=True,
        ),
        autoencoder=AutoencoderConfig(channels=8, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=4),
        text=TextConfig(
            width=64, layers=1, heads=2, vocabulary_size=128, max_tokens=24, skip_last=0, projection=False,
            tokenizer=word_tokenizer(all_words()),
        ),
        parameterization="v", width=32, height=32, steps=3, cfg=2.0,
    )  # fmt: skip


def tiny_between() -> ModelConfig:
    """An interpolation model of the same size."""
    network = replace(tiny_base().network, context_dim=None, motion_embedding=False, condition="ends")
    return replace(tiny_base(), name="tiny-interpolation", network=network, text=None, cfg=1.0)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return tiny_base()


@pytest.fixture(scope="session")
def tiny_ends_config() -> ModelConfig:
    return tiny_between()


def random_model(config: ModelConfig) -> LoadedModel:
    torch.manual_seed(0)
    network, autoencoder = MicroCinemaUNet(config.network), Autoencoder(config.autoencoder)
    text = TextEncoder(config.text) if config.text else None
    for module in filter(None, (network, autoencoder, text)):
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return LoadedModel(config, network, autoencoder, text)


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> LoadedModel:
    return random_model(tiny_config)


@pytest.fixture(scope="session")
def tiny_ends_model(tiny_ends_config) -> LoadedModel:
    return random_model(tiny_ends_config)


@pytest.fixture(scope="session")
def small_clips() -> list[Clip]:
    """The first 300 scenes, too small to see, for what their captions say."""
    return [draw_clip(seed, frames=1, size=12) for seed in range(300)]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with this pack and a photograph under the name of the host's own example."""
    if HOST is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH")
    running = Server(HOST, tmp_path_factory.mktemp("host") / "base", "--preview-method", "latent2rgb")
    running.add_picture()
    yield running
    running.stop()
