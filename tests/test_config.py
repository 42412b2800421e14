"""Configurations refuse what is out of range or does not fit together, in one sentence that names the cure."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from microcinema_core.config import CONFIGS, DEMO_BASE, AutoencoderConfig, ModelConfig, NetworkConfig, TextConfig
from microcinema_core.model.parameters import parameter_table

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.safetensors"))


def demo_with(place, value):
    """The JSON of the bundled base model's configuration with one value changed."""
    data = json.loads(json.dumps(DEMO_BASE.to_json()))
    *path, last = place.split(".")
    part = data
    for name in path:
        part = part[name]
    part[last] = value
    return data


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("steps", -1, "steps cannot be -1: give a whole number from 1 to 1000 (steps), such as 50"),
        ("steps", 2.5, "steps cannot be 2.5: give a whole number"),
        ("steps", True, "steps cannot be True: give a whole number"),
        ("steps", "9", "steps cannot be '9': give a whole number"),
        ("fps", float("nan"), "fps cannot be nan: give a number from 0.1 to 240 (frames a second), such as 2"),
        ("fps", 1e999, "fps cannot be inf: give a number"),
        ("cfg", None, "cfg cannot be None: give a number"),
        ("width", 97, "width cannot be 97: give a multiple of 8 pixels"),
        ("name", "", "name cannot be '': give a text of 1 to 100 printable characters"),
        ("name", "\ud800", r"name cannot be '\ud800': give a text"),
        ("parameterization", "x0", "parameterization cannot be 'x0': give 'eps' or 'v'"),
        ("colour", 1, "colour is unknown: leave it out"),
        ("network", [], "network is not an object"),
        ("network.colour", 1, "network.colour is unknown"),
        ("network.frames", 10**9, "network.frames cannot be 1000000000: give a whole number from 2 to 1000 (frames)"),
        ("network.norm_groups", 7, "network.norm_groups cannot be 7: give a divisor"),
        ("network.norm_groups", 32, "network.norm_groups cannot be 32 with forward_warp: give a divisor of 24"),
        ("network.model_channels", 0, "network.model_channels cannot be 0: give a whole number from 1"),
        ("network.model_channels", 10**9, "network.model_channels cannot be 1000000000"),
        ("network.head_channels", 20, "network.head_channels cannot be 20: give a divisor of"),
        ("network.channel_multipliers", [], "network.channel_multipliers cannot be []: give 1 to 8 whole numbers"),
        ("network.channel_multipliers", [1] * 9, "give 1 to 8 whole numbers from 1 to 64, such as [1, 2, 4, 4]"),
        ("network.channel_multipliers", [1, -2], "network.channel_multipliers cannot be [1, -2]: give 1 to 8"),
        ("network.attention_levels", [3], "network.attention_levels cannot be [3]: give levels from 0 to 2"),
        ("network.res_blocks", 10**6, "network.res_blocks cannot be 1000000"),
        ("network.temporal_conv_depth", 0, "network.temporal_conv_depth cannot be 0"),
        ("network.context_dim", 64, "network.context_dim cannot be 64: give the text's own width (128)"),
        ("network.residual_std", 0, "network.residual_std cannot be 0: give a number above 0"),
        ("network.residual_std", None, "forward_warp needs residual_std"),
        ("network.forward_warp.channel_multipliers", [1, 2], "give 4 pixels a cell or more"),
        ("network.forward_warp.latent_channels", 4, "network.forward_warp.latent_channels must be the network's own"),
        ("network.scale_shift_norm", 1, "network.scale_shift_norm cannot be 1: give true or false"),
        ("autoencoder.latent_channels", 8, "network.latent_channels cannot be 16: give the autoencoder's own (8)"),
        ("autoencoder.scale", 0.0, "autoencoder.scale cannot be 0.0: give a number above 0"),
        ("text.heads", 5, "text.heads cannot be 5: give a divisor of width (128)"),
        ("text.skip_last", 2, "text.skip_last cannot be 2: give less than layers (2)"),
        ("text.vocabulary_size", 10**12, "text.vocabulary_size cannot be 1000000000000"),
        ("text.tokenizer", 5, "text.tokenizer cannot be 5: give a text in quotes"),
        ("x" * 500, 1, "xxx… is unknown"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_sentence(place, value, words):
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_json(demo_with(place, value))
    message = str(caught.value)
    assert words in message, message
    assert len(message.splitlines()) == 1 and len(message) < 250


def test_a_change_is_checked_as_a_whole():
    with pytest.raises(ValueError, match=re.escape("steps\n  give a whole number from 1 to 1000")):
        replace(DEMO_BASE, steps=0)
    with pytest.raises(ValueError, match="heads cannot be 3"):
        TextConfig(heads=3)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_headers_of_bundled_files_are_read_as_release_0_1_read_them(path):
    with safe_open(path, "pt") as file:
        data = json.loads(file.metadata()["config"])
    config = ModelConfig.from_json(data)

    def assert_told(part, told):
        for name, value in told.items():
            found = getattr(part, name)
            if isinstance(value, dict):
                assert_told(found, value)
            else:
                assert (list(found) if isinstance(found, tuple) else found) == value, name

    assert_told(config, data)
    text = config.text and replace(config.text, tokenizer=None)
    assert replace(config, text=text) == CONFIGS[path.stem]
    assert hash(config) == hash(ModelConfig.from_json(data))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_least_parameters_are_a_bound_that_means_something(config):
    counts = parameter_table(config)
    parts = {"network": config.network, "autoencoder": config.autoencoder, "text encoder": config.text}
    for name, part in parts.items():
        if part:
            assert 0.1 * counts[name] < part.least_parameters <= counts[name], name


def test_plain_values_are_what_they_were():
    assert AutoencoderConfig() == AutoencoderConfig(channel_multipliers=[1, 2, 4, 4])  # lists become tuples
    assert ModelConfig.from_json(demo_with("fps", 3)).fps == 3.0  # a whole number may be a float
    assert isinstance(NetworkConfig(residual_std=1).residual_std, float)
