"""A VAE of diffusers' becomes an autoencoder of ours, with which a model of other latents goes on."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_model, tiny_base
from tiny_runs import footage_folder, tiny_run

from microcinema_core.checkpoint import load_autoencoder, load_model, save_model
from microcinema_core.convert.autoencoder import convert_autoencoder
from microcinema_core.errors import MicroCinemaError
from microcinema_core.training import recipe
from microcinema_core.training.settings import VideoRunConfig
from microcinema_core.training.start import check_model, initial_model

ROOT = Path(__file__).parents[2]
SD3 = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0609, "scaling_factor": 1.5305}


def vae(folder: Path, channels: int = 16, **settings):
    """A random VAE of diffusers', in a folder."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    made = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64), down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, norm_num_groups=8, latent_channels=channels,
        **settings,
    )  # fmt: skip
    made.save_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize("settings", [SD3, {"shift_factor": 0.1159, "scaling_factor": 0.3611}, {}])
def test_it_encodes_and_decodes_as_diffusers_does(tmp_path, settings):
    theirs = vae(tmp_path / "vae", **settings)
    convert_autoencoder(tmp_path / "vae", tmp_path / "vae.safetensors")
    ours, pictures = load_autoencoder(tmp_path / "vae.safetensors"), torch.rand(2, 3, 32, 32)
    shift, scale = theirs.config.shift_factor or 0.0, theirs.config.scaling_factor
    with torch.no_grad():
        posterior = theirs.encode(pictures * 2 - 1).latent_dist
        latents = (posterior.mean - shift) * scale
        assert torch.allclose(ours.encode(pictures), latents, atol=1e-5)
        assert torch.allclose(ours.moments(pictures)[1], posterior.logvar, atol=1e-5)
        decoded = (theirs.decode(latents / scale + shift).sample + 1) / 2
        assert torch.allclose(ours.decode(latents), decoded, atol=1e-5)


def test_a_training_goes_on_with_latents_of_other_channels(tmp_path):
    vae(tmp_path / "vae", **SD3)
    command = [sys.executable, "-m", "microcinema_core", "init", "--kind", "autoencoder", "--from", tmp_path / "vae"]
    said = subprocess.run([*command, "-o", tmp_path / "vae.safetensors"], cwd=ROOT, capture_output=True, text=True)
    assert "an autoencoder of 16 channels, 4 pixels a cell" in said.stdout, said.stderr
    toml = tiny_run(tmp_path, footage_folder(tmp_path / "clips"))
    start = tmp_path / "start.safetensors"
    save_model(start, random_model(tiny_base()), torch.float32)
    settings = {"model.start": str(start), "model.autoencoder": str(tmp_path / "vae.safetensors")}
    settings |= {"model.override": "{}", "model.vocabulary": "0", "train.steps": "2", "train.sample_every": "2"}
    config = VideoRunConfig.read(toml, settings)
    begun, before = initial_model(config, check_model(config), []), load_model(start)
    assert begun.network is not None and before.network is not None
    old, new = before.network.state_dict(), begun.network.state_dict()
    anew = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert anew == {
        "input_blocks.0.0.weight", "input_blocks.0.0.bias", "appearance.input_blocks.0.0.weight",
        "appearance.input_blocks.0.0.bias", "condition_in.weight", "out.2.weight", "out.2.bias",
    }  # fmt: skip
    assert not new["condition_in.weight"].any() and not new["out.2.weight"].any()
    trained = load_model(recipe.main(toml, tmp_path / "run", settings))
    assert trained.config.network.latent_channels == trained.config.autoencoder.latent_channels == 16


def test_an_autoencoder_of_as_many_channels_is_refused(tmp_path):
    vae(tmp_path / "vae", channels=4)
    convert_autoencoder(tmp_path / "vae", tmp_path / "vae.safetensors")
    toml, start = tiny_run(tmp_path, tmp_path), tmp_path / "start.safetensors"
    save_model(start, random_model(replace(tiny_base())))
    settings = {"model.start": str(start), "model.override": "{}", "model.vocabulary": "0"}
    with pytest.raises(MicroCinemaError, match=r"model.autoencoder is not that of model.start: leave it out"):
        check_model(VideoRunConfig.read(toml, settings | {"model.autoencoder": str(tmp_path / "vae.safetensors")}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "has no config.json of an AutoencoderKL"),
        ({"_class_name": "AutoencoderTiny"}, "has no config.json of an AutoencoderKL"),
        ({"layers_per_block": 2}, "lacks '"),
        ({"latent_channels": 8}, "expected"),
        ({"scaling_factor": 0}, "scale cannot be 0"),
    ],
)
def test_other_files_are_named_in_one_sentence(tmp_path, change, words):
    vae(tmp_path / "vae", **SD3)
    path = tmp_path / "vae" / "config.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MicroCinemaError) as caught:
        convert_autoencoder(tmp_path / "vae", tmp_path / "vae.safetensors")
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "vae.safetensors").exists()
