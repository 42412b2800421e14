"""The bundled models' configurations, and the files of release 0.1 that hold models of their kind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import assert_minimum_parameters_are_a_bound, assert_refused, changed
from demo_networks import PIXELS, VARIANTS, tiny_demo_base, tiny_demo_between
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import random_model, tiny_base

from microcinema_core.checkpoint import load_model, save_model
from microcinema_core.config import DEMO_FIELDS, ModelConfig, NetworkConfig, configurations
from microcinema_core.demo.config import DEMO_BASE, DEMO_INTERPOLATION, DemoModelConfig, DemoNetworkConfig
from microcinema_core.errors import MicroCinemaError
from microcinema_core.header import AUTOENCODER, stored_parameters
from microcinema_core.model.parameters import parameter_table

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.safetensors"))
both_configs = pytest.mark.parametrize("config", [DEMO_BASE, DEMO_INTERPOLATION], ids=lambda config: config.name)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("network.frames", 1, "network.frames cannot be 1: give a whole number from 2 to 1000 (frames)"),
        ("network.norm_groups", 7, "network.norm_groups cannot be 7: give a divisor"),
        ("network.norm_groups", 32, "network.norm_groups cannot be 32 with forward_warp: give a divisor of 24"),
        ("network.head_channels", 20, "network.head_channels cannot be 20: give a divisor of"),
        ("network.context_dim", 64, "network.context_dim cannot be 64: give the text's own width (128)"),
        ("network.context_dim", None, 'forward_warp needs condition "centre" and a text'),
        ("network.residual_std", 0, "network.residual_std cannot be 0: give a number above 0"),
        ("network.residual_std", None, "forward_warp needs residual_std"),
        ("network.forward_warp", None, "amplitude_std needs forward_warp"),
        ("network.condition", "ends", "interpolation models of releases before 0.2 cannot be read, train them again"),
        ("network.forward_warp.channel_multipliers", [1, 2], "give 4 pixels a cell or more"),
        ("network.forward_warp.latent_channels", 4, "network.forward_warp.latent_channels must be the network's own"),
        ("network.amplitude_std", "x", "network.amplitude_std cannot be 'x': give a number above 0"),
        ("network.colour", 1, "network.colour is unknown"),
        ("parameterization", "eps", "residual_std needs parameterization v"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_sentence(place, value, words):
    assert_refused(changed(DEMO_BASE, place, value), words)


def test_a_flow_network_needs_end_frames_and_a_residual():
    for place, value in (("network.condition", "centre"), ("network.residual_std", None)):
        wrong = changed(DEMO_INTERPOLATION, place, value)
        assert_refused(wrong, 'flow_warp needs residual_std and condition "ends"')


def test_their_headers_name_the_fields_of_their_kind():
    assert DEMO_BASE.to_json()["network"].keys() > DEMO_FIELDS - {"motion_embedding"}  # of release 0.1


def test_a_whole_number_may_be_a_float():
    assert isinstance(DemoNetworkConfig(residual_std=1).residual_std, float)


@both_configs
def test_the_minimum_parameters_are_a_bound_that_means_something(config):
    assert_minimum_parameters_are_a_bound(config)


@both_configs
def test_every_configuration_survives_its_json(config):
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert configurations()[config.name] == config


@pytest.mark.parametrize("config", [*VARIANTS.values(), DEMO_BASE.network])
def test_a_header_that_gives_a_field_of_the_bundled_models_a_value_describes_one_of_their_kind(config):
    autoencoder = config.forward_warp or config.flow_warp or PIXELS
    model = replace(DEMO_BASE, network=config, text=None, autoencoder=autoencoder, width=32, height=32)
    read = ModelConfig.from_json(model.to_json())
    if config == VARIANTS["none"]:
        assert (type(read), type(read.network)) == (ModelConfig, NetworkConfig)
    else:
        assert read == model and (type(read), type(read.network)) == (DemoModelConfig, DemoNetworkConfig)


# --- files of release 0.1 ---


def header_of(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_headers_of_bundled_files_are_read_as_release_0_1_read_them(path):
    data = header_of(path)
    config = ModelConfig.from_json(data)

    def assert_equal(part, values):
        for name, value in values.items():
            found = getattr(part, name)
            if isinstance(value, dict):
                assert_equal(found, value)
            else:
                assert (list(found) if isinstance(found, tuple) else found) == value, name

    assert_equal(config, data)
    text = config.text and replace(config.text, tokenizer=None)
    assert replace(config, text=text) == configurations()[path.stem]
    assert hash(config) == hash(ModelConfig.from_json(data))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_bundled_files_header_gives_its_size(path):
    """Without torch it gives what the built model counts."""
    assert stored_parameters(path) == parameter_table(ModelConfig.from_json(header_of(path)))


def test_the_readmes_sizes_are_those_of_the_configurations():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    header, _, *rows = text[text.index("| parameters |") :].split("\n\n")[0].replace("*", "").splitlines()
    names = [name.strip(" `") for name in header.split("|")[2:-1]]
    table = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in rows}
    parts = {
        "spatial (SD2.1's UNet)": "spatial", "temporal convolutions": "temporal convolutions",
        "temporal transformers": "temporal transformers", "AppearNet": "appearance network",
        "appearance injection": "appearance injection", "network": "network",
    }  # fmt: skip
    for column, name in enumerate(names):
        sizes = parameter_table(configurations()[name])
        for row, part in parts.items():
            number = float(table[row][column].strip(" M").replace(",", ""))
            digits = 2 if name.startswith("demo") else 1
            assert number == round(sizes[part] / 1e6, digits), (name, row)


WARP = tiny_demo_base(
    forward_warp=tiny_base().autoencoder, residual_std=0.2, amplitude_std=0.05, scale_shift_norm=True
)  # fmt: skip
FLOW = tiny_demo_between(flow_warp=tiny_base().autoencoder, residual_std=0.2)


def test_a_base_model_of_release_0_1_is_refused(tmp_path):
    path = tmp_path / "older.safetensors"
    save_model(path, random_model(WARP))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    older = changed(WARP, "network.motion_embedding", True)
    save_file(load_file(path), path, metadata | {"config": json.dumps(older)})
    with pytest.raises(MicroCinemaError, match="of a release before 0.2 cannot be read: take this release's demo-base"):
        load_model(path)


@pytest.mark.parametrize(("config", "warp"), [(WARP, "forward_warp"), (FLOW, "flow_warp")])
def test_a_file_holds_the_autoencoder_of_a_warp_once(tmp_path, config, warp):
    """It is the model's own, which the warp gets when the file is loaded."""
    model = random_model(config)
    save_model(tmp_path / "whole.safetensors", model)
    assert not [key for key in load_file(tmp_path / "whole.safetensors") if f"{warp}.autoencoder" in key]
    read = load_model(tmp_path / "whole.safetensors")
    own, of_warp = read.autoencoder.state_dict(), getattr(read.network, warp).autoencoder.state_dict()
    assert own.keys() == of_warp.keys() and all(torch.equal(own[key], of_warp[key]) for key in own)
    save_model(tmp_path / "network.safetensors", replace(model, autoencoder=None, text=None))
    alone = load_file(tmp_path / "network.safetensors")
    assert not [key for key in alone if key.startswith(AUTOENCODER)]
    assert [key for key in alone if f"{warp}.autoencoder" in key]
    assert load_model(tmp_path / "network.safetensors").autoencoder is None
