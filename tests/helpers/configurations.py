"""What tests of configurations share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from microcinema_core.config import ModelConfig
from microcinema_core.model.parameters import parameter_table


def changed(config: ModelConfig, place: str, value: Any) -> dict:
    """The JSON of a configuration with one value changed, "network.frames" say."""
    data = json.loads(json.dumps(config.to_json()))
    *path, last = place.split(".")
    part = data
    for name in path:
        part = part[name]
    part[last] = value
    return data


def assert_refused(data: Any, words: str) -> None:
    """In one short sentence that holds these words."""
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_json(data)
    message = str(caught.value)
    assert words in message, message
    assert len(message.splitlines()) == 1 and len(message) < 250


def assert_minimum_parameters_are_a_bound(config: ModelConfig) -> None:
    counts = parameter_table(config)
    parts = {"network": config.network, "autoencoder": config.autoencoder, "text encoder": config.text}
    for name, part in parts.items():
        if part:
            assert 0.1 * counts[name] < part.minimum_parameters <= counts[name], name
