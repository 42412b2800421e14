"""Configurations refuse what is out of range or does not fit together, in one sentence that names the cure."""

import re
import sys
from dataclasses import replace

import pytest
from configurations import assert_minimum_parameters_are_a_bound, assert_refused, changed

from microcinema_core.config import (
    BASE,
    DEMO_FIELDS,
    INTERPOLATION,
    AutoencoderConfig,
    ModelConfig,
    NetworkConfig,
    TextConfig,
    configurations,
)  # fmt: skip


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
        ("network.model_channels", 0, "network.model_channels cannot be 0: give a whole number from 1"),
        ("network.model_channels", 10**9, "network.model_channels cannot be 1000000000"),
        ("network.head_channels", 200, "network.head_channels cannot be 200: give a divisor of"),
        ("network.channel_multipliers", [], "network.channel_multipliers cannot be []: give 1 to 8 whole numbers"),
        ("network.channel_multipliers", [1] * 9, "give 1 to 8 whole numbers from 1 to 64, such as [1, 2, 4, 4]"),
        ("network.channel_multipliers", [1, -2], "network.channel_multipliers cannot be [1, -2]: give 1 to 8"),
        ("network.attention_levels", [4], "network.attention_levels cannot be [4]: give levels from 0 to 3"),
        ("network.res_blocks", 10**6, "network.res_blocks cannot be 1000000"),
        ("network.temporal_conv_depth", 0, "network.temporal_conv_depth cannot be 0"),
        ("network.context_dim", 64, "network.context_dim cannot be 64: give the text's own width (1024)"),
        ("network.scale_shift_norm", 1, "network.scale_shift_norm cannot be 1: give true or false"),
        ("autoencoder.latent_channels", 8, "network.latent_channels cannot be 4: give the autoencoder's own (8)"),
        ("autoencoder.scale", 0.0, "autoencoder.scale cannot be 0.0: give a number above 0"),
        ("text.heads", 5, "text.heads cannot be 5: give a divisor of width (1024)"),
        ("text.skip_last", 24, "text.skip_last cannot be 24: give less than layers (24)"),
        ("text.vocabulary_size", 10**12, "text.vocabulary_size cannot be 1000000000000"),
        ("text.tokenizer", 5, "text.tokenizer cannot be 5: give a text in quotes"),
        ("x" * 500, 1, "xxx… is unknown"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_sentence(place, value, words):
    assert_refused(changed(BASE, place, value), words)


def test_a_change_is_checked_as_a_whole():
    with pytest.raises(ValueError, match=re.escape("steps\n  give a whole number from 1 to 1000")):
        replace(BASE, steps=0)
    with pytest.raises(ValueError, match="heads cannot be 3"):
        TextConfig(heads=3)


# Its inner width depends on head_channels alone, so that its size must count in the bound.
WIDE_INPUT = ModelConfig("wide", NetworkConfig(model_channels=32, head_channels=512, temporal_input=True))


@pytest.mark.parametrize("config", [BASE, INTERPOLATION, WIDE_INPUT], ids=lambda config: config.name)
def test_the_minimum_parameters_are_a_bound_that_means_something(config):
    assert_minimum_parameters_are_a_bound(config)


def test_plain_values_are_what_they_were():
    assert AutoencoderConfig() == AutoencoderConfig(channel_multipliers=[1, 2, 4, 4])  # lists become tuples
    assert ModelConfig.from_json(changed(BASE, "fps", 3)).fps == 3.0  # a whole number may be a float


# --- which kind of model a header describes ---


@pytest.mark.parametrize("config", [BASE, INTERPOLATION], ids=lambda config: config.name)
def test_a_header_of_release_0_1_is_read(config):
    """It names the bundled models' fields in each model, without a value in those of the paper."""
    data = config.to_json()
    data["network"] |= {"residual_std": None, "motion_embedding": False, "forward_warp": None, "amplitude_std": None}
    assert data["network"].keys() > DEMO_FIELDS - {"flow_warp"}  # which came later
    read = ModelConfig.from_json(data)
    assert read == config and type(read) is ModelConfig and type(read.network) is NetworkConfig


def test_a_header_without_the_temporal_input_layer_describes_a_network_without_it():
    data = BASE.to_json()
    del data["network"]["temporal_input"]
    assert ModelConfig.from_json(data) == BASE
    assert_refused(changed(BASE, "network.temporal_input", 1), "network.temporal_input cannot be 1: give true or false")


def test_a_header_of_today_names_no_field_of_the_bundled_models():
    assert DEMO_FIELDS.isdisjoint(BASE.to_json()["network"])


@pytest.fixture
def without_demo(monkeypatch):
    """An installation that lacks the folder demo."""
    for name in [name for name in sys.modules if name.startswith("microcinema_core.demo.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "microcinema_core.demo", None)


def test_without_the_bundled_models_folder_those_of_the_paper_are_there(without_demo):
    assert configurations() == {"base": BASE, "interpolation": INTERPOLATION}
    assert ModelConfig.from_json(BASE.to_json()) == BASE


@pytest.mark.parametrize(
    ("field", "value"), [("residual_std", 0.2), ("motion_embedding", True), ("forward_warp", {}), ("amplitude_std", 1)]
)
def test_without_the_bundled_models_folder_one_of_their_kind_is_refused(without_demo, field, value):
    assert_refused(
        changed(BASE, f"network.{field}", value),
        "lacks the folder demo of the bundled models",
    )
