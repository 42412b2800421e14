"""What tests share: small models of the paper, and a real ComfyUI."""

from __future__ import annotations

import pytest
from host import HOST, Server
from tiny import random_model, tiny_base, tiny_between

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.config import ModelConfig


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return tiny_base()


@pytest.fixture(scope="session")
def tiny_ends_config() -> ModelConfig:
    return tiny_between()


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> LoadedModel:
    return random_model(tiny_config)


@pytest.fixture(scope="session")
def tiny_ends_model(tiny_ends_config) -> LoadedModel:
    return random_model(tiny_ends_config)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with this pack and a photograph under the name of the host's own example."""
    if HOST is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH")
    running = Server(HOST, tmp_path_factory.mktemp("host") / "base", "--preview-method", "latent2rgb")
    running.add_picture()
    yield running
    running.stop()
