"""Model files: a round trip changes nothing, and every file that is no whole model of ours is named with its fault."""

import json
import math
import struct
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_base, tiny_between

from microcinema_core import checkpoint, header
from microcinema_core.checkpoint import load_model, read_config, save_model
from microcinema_core.config import BASE, INTERPOLATION, ModelConfig
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model.parameters import parameter_table


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_model)
    return path


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


# --- round trips ---


def test_save_load_save_is_the_identity(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_model(again, load_model(saved))
    assert metadata_of(again) == metadata_of(saved)
    first, second = load_file(saved), load_file(again)
    assert first.keys() == second.keys()
    assert all(first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first)


def test_what_is_loaded_is_what_was_saved(saved, tiny_model):
    loaded = load_model(saved)
    assert loaded.config == tiny_model.config
    for part in ("network", "autoencoder", "text"):
        before, after = getattr(tiny_model, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key].half().float(), after[key]) for key in before)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_a_text_tower_with_the_names_of_older_transformers_is_the_same(saved, tmp_path):
    """Below 5.6 they had a level more, and so had files of 0.1 that were written with them."""
    older = {key.replace("el.transformer.", "el.transformer.text_model."): v for key, v in load_file(saved).items()}
    assert sum("text_model" in key for key in older) == len(load_model(saved).text.state_dict())
    save_file(older, tmp_path / "older.safetensors", metadata_of(saved))
    before, after = load_model(saved).text.state_dict(), load_model(tmp_path / "older.safetensors").text.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_files_header_gives_its_size(saved, tiny_config):
    """Without torch it gives what the built model counts."""
    assert header.stored_parameters(saved) == parameter_table(tiny_config)


def test_full_precision_survives_where_it_is_requested(tiny_model, tmp_path):
    path = tmp_path / "full.safetensors"
    save_model(path, tiny_model, torch.float32)
    before, after = tiny_model.network.state_dict(), load_model(path).network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_file_may_hold_the_network_alone(tiny_model, tmp_path):
    path = tmp_path / "network.safetensors"
    save_model(path, replace(tiny_model, autoencoder=None, text=None))
    loaded = load_model(path)
    assert loaded.autoencoder is None and loaded.text is None
    assert all(key.startswith("model.diffusion_model.") for key in load_file(path))


@pytest.mark.parametrize("config", [BASE, INTERPOLATION, tiny_base(), tiny_between()], ids=lambda config: config.name)
def test_every_configuration_survives_its_json(config):
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_config_is_read_without_any_tensor(saved, tiny_config, monkeypatch):
    class HeaderOnly:
        def __init__(self, *arguments):
            self.file = safe_open(*arguments)

        def __enter__(self):
            file = self.file.__enter__()
            return SimpleNamespace(metadata=file.metadata, keys=file.keys)

        def __exit__(self, *error):
            self.file.__exit__(*error)

    monkeypatch.setattr(header, "safe_open", HeaderOnly)
    assert read_config(saved) == tiny_config


# --- bad files ---


def with_metadata(path, **changes):
    save_file(load_file(path), path, {**metadata_of(path), **changes})


def with_config(path, **changes):
    with_metadata(path, config=json.dumps({**json.loads(metadata_of(path)["config"]), **changes}))


def with_network(path, **changes):
    with_config(path, network={**json.loads(metadata_of(path)["config"])["network"], **changes})


def with_tensors(path, change):
    tensors, metadata = load_file(path), metadata_of(path)
    change(tensors)
    save_file(tensors, path, metadata)


def shorter(path, size):
    path.write_bytes(path.read_bytes()[:size])


def header_size(path):
    return struct.unpack("<Q", path.read_bytes()[:8])[0]


KEY = "model.diffusion_model.out.2.weight"
BAD_HEADER = {
    "missing": (lambda p: p.unlink(), ["truncated or no safetensors"]),
    "empty": (lambda p: p.write_bytes(b""), ["truncated or no safetensors"]),
    "a text": (lambda p: p.write_text("a red star moves left\n" * 99), ["truncated or no safetensors"]),
    "cut in the header": (lambda p: shorter(p, 8 + header_size(p) // 2), ["truncated or no safetensors"]),
    "cut in the tensors": (lambda p: shorter(p, -1000), ["truncated or no safetensors"]),
    "foreign": (lambda p: save_file({"a": torch.zeros(1)}, p), ["foreign checkpoint"]),
    "of another program": (lambda p: with_metadata(p, format="pt"), ["foreign checkpoint"]),
    "of another version": (lambda p: with_metadata(p, format_version="2"), ["version 2", "reads 1"]),
    "no JSON": (lambda p: with_metadata(p, config='{"name": '), ["damaged header"]),
    "no configuration": (lambda p: with_metadata(p, config="[]"), ["damaged header", "not an object"]),
    "unknown field": (lambda p: with_config(p, colour="red"), ["damaged header", "colour"]),
    "wrong type": (lambda p: with_config(p, steps="many"), ["damaged header", "steps"]),
    "wrong nested type": (lambda p: with_config(p, network={"model_channels": "wide"}), ["damaged", "model_channels"]),
    "wrong choice": (lambda p: with_config(p, parameterization="x0"), ["damaged header", "parameterization"]),
    "a list for its configuration's text": (lambda p: with_metadata(p, config="7"), ["damaged", "not an object"]),
    "nested without end": (lambda p: with_metadata(p, config="[" * 100_000), ["damaged header", "recursion"]),
    "no number": (lambda p: with_config(p, fps=math.nan), ["damaged header", "fps cannot be nan"]),
    "a number of 400 digits": (lambda p: with_config(p, steps=10**400), ["damaged header", "steps cannot be 1000"]),
    "a name of two lines": (lambda p: with_config(p, name="a\nb"), ["damaged header", "name cannot be 'a\\nb'"]),
    "a billion channels": (lambda p: with_network(p, model_channels=10**9), ["model_channels", "from 1 to 16384"]),
    "a million levels": (lambda p: with_network(p, channel_multipliers=[1] * 10**6), ["channel_multipliers", "1 to 8"]),
    "more than the file holds": (lambda p: with_network(p, model_channels=16384), ["parameters or more in a file of"]),
    "a vocabulary larger than the file": (
        lambda p: with_config(p, text={"width": 64, "heads": 2, "vocabulary_size": 1_000_000}),
        ["65,130,496 parameters or more in a file of"],
    ),
}
BAD_TENSORS = {
    "missing key": (lambda p: with_tensors(p, lambda t: t.pop(KEY)), ["does not hold", "Missing key", "out.2.weight"]),
    "wrong shape": (
        lambda p: with_tensors(p, lambda t: t.update({KEY: torch.zeros(4, 16, 1, 1)})),
        ["does not hold", "size mismatch", "out.2.weight"],
    ),
    "extra key": (
        lambda p: with_tensors(p, lambda t: t.update({"model.diffusion_model.lora": torch.zeros(1)})),
        ["does not hold", "Unexpected key", "lora"],
    ),
    "unknown part": (lambda p: with_tensors(p, lambda t: t.update({"extra": torch.zeros(1)})), ["unknown", "'extra'"]),
    "text without its configuration": (lambda p: with_config(p, text=None), ["unknown", "cond_stage_model"]),
}  # fmt: skip


@pytest.fixture
def copy(saved, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(saved.read_bytes())
    return path


def assert_names_file_and_cause(read, path, words):
    with pytest.raises(MicroCinemaError) as caught:
        read(path)
    message = str(caught.value)
    assert all(word in message for word in [str(path), *words]), message
    assert len(message.splitlines()) == 1 and len(message) < 400 + len(str(path))


@pytest.mark.parametrize("fault", BAD_HEADER)
@pytest.mark.parametrize("read", [read_config, load_model])
def test_a_bad_header_is_named(copy, read, fault):
    damage, words = BAD_HEADER[fault]
    damage(copy)
    assert_names_file_and_cause(read, copy, words)


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_bad_tensors_are_named(copy, fault):
    damage, words = BAD_TENSORS[fault]
    damage(copy)
    assert_names_file_and_cause(load_model, copy, words)


def test_an_unknown_name_is_answered_with_the_bundled_ones(monkeypatch, tmp_path):
    (tmp_path / "demo-base.safetensors").touch()
    monkeypatch.setattr(header, "BUNDLED", tmp_path)
    assert header.resolve("demo-base") == tmp_path / "demo-base.safetensors"
    with pytest.raises(MicroCinemaError, match="no model 'nobody'.*demo-base"):
        header.resolve("nobody")


# --- saving ---


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: disk full")])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(copy, tiny_model, monkeypatch, error):
    def fill_the_disk(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise error

    before = copy.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    assert_names_file_and_cause(lambda path: save_model(path, tiny_model), copy, ["could not be written"])
    assert copy.read_bytes() == before
    assert list(copy.parent.iterdir()) == [copy]


def test_a_missing_folder_is_named(tiny_model, tmp_path):
    assert_names_file_and_cause(
        lambda path: save_model(path, tiny_model), tmp_path / "nowhere" / "model.safetensors", ["could not be written"]
    )
