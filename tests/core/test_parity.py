"""A model from `microcinema init` computes what the independent implementations of its parts compute.

Random weights of SD2.1's layout: small by default, at full width in the tests marked slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from host import HOST, python_of
from independent.transformers_text import tower
from parity import clips, diffusers, filled, needs_diffusers, predict, relative_error
from safetensors.torch import load_file, save_file
from sd21 import SMALL, diffusers_autoencoder, diffusers_unet, ldm_file

from microcinema_core.checkpoint import load_model
from microcinema_core.config import BASE, INTERPOLATION
from microcinema_core.convert.initialise import initialise
from microcinema_core.diffusion import NoiseSchedule, to_denoised
from microcinema_core.model.text import ClipTokens
from microcinema_core.samplers import sample_euler

needs_host = pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")
INDEPENDENT = Path(__file__).parents[1] / "helpers" / "independent"
SIZES = {"small": SMALL, "full": BASE}
PROMPTS = [
    "",
    "a red star",
    "“Curly” quotes — it’s ‘nice’…",
    "a 🐱 &amp; a 🚀  😀",
    "Ｗｉｄｅ ﬁn, naïve ÉCOLE, 日本語",
    "word " * 100,
]


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def config(request):
    return SIZES[request.param]


# --- the picture network and the autoencoder ---


@pytest.fixture(scope="module")
def published(config, tmp_path_factory):
    """A diffusers folder, and the modules that wrote it."""
    folder = tmp_path_factory.mktemp("diffusers")
    unet = filled(diffusers.UNet2DConditionModel(**diffusers_unet(config)))
    autoencoder = filled(diffusers.AutoencoderKL(**diffusers_autoencoder(config)))
    unet.save_pretrained(folder / "unet")
    autoencoder.save_pretrained(folder / "vae", variant="fp16")
    return folder, unet, autoencoder


@needs_diffusers
@pytest.mark.parametrize("kind", [BASE, INTERPOLATION], ids=lambda kind: kind.name)
def test_fresh_model_is_diffusers_unet_frame_by_frame(config, published, kind, tmp_path):
    folder, unet, _ = published
    network = replace(config.network, condition=kind.network.condition, frames=kind.network.frames)
    config = replace(kind, network=network, autoencoder=config.autoencoder, text=config.text)
    initialise(folder, tmp_path / "new.safetensors", config)
    network = load_model(tmp_path / "new.safetensors").network
    for frames in (1, config.network.frames):
        x, timesteps, context, condition = clips(config, 2, frames, k=1 + (kind is INTERPOLATION))
        with torch.no_grad():
            expected = unet(x, timesteps.repeat_interleave(frames), context.repeat_interleave(frames, 0)).sample
        assert relative_error(predict(network, x, timesteps, context, condition, frames), expected) < 1e-5


@needs_diffusers
def test_autoencoder_is_diffusers(config, published, tmp_path):
    folder, _, theirs = published
    initialise(folder, tmp_path / "new.safetensors", config)
    ours = load_model(tmp_path / "new.safetensors").autoencoder
    pictures = torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = theirs.encode(pictures * 2 - 1).latent_dist
        mean, log_variance = ours.moments(pictures)
        assert relative_error(mean, posterior.mean) < 1e-5
        assert relative_error(log_variance, posterior.logvar) < 1e-5
        assert relative_error(ours.encode(pictures), posterior.mean * 0.18215) < 1e-5
        expected = (theirs.decode(posterior.mean).sample + 1) / 2
        assert relative_error(ours.decode(posterior.mean * 0.18215), expected) < 1e-5


# --- LDM's single file ---


@pytest.fixture(scope="module")
def single_file(config, tmp_path_factory):
    """The source, and what init makes of it."""
    folder = tmp_path_factory.mktemp("ldm")
    source, made = folder / "v2-1_512.safetensors", folder / "base.safetensors"
    save_file(ldm_file(config), source)
    initialise(source, made, config)
    return source, made


def run_independent(python, script, *arguments):
    command = [str(python), str(INDEPENDENT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]


@needs_host
def test_fresh_model_is_comfyuis_unet_and_euler_its_sampler(config, single_file, tmp_path):
    source, made = single_file
    frames = 3
    x, timesteps, context, condition = clips(config, 2, frames)
    sigmas, noise = NoiseSchedule().sigmas_for(50), 14 * torch.randn(2, 64)
    save_file({
        "x": x, "timesteps": timesteps.repeat_interleave(frames).float(), "noise": noise, "sigmas": sigmas,
        "context": context.repeat_interleave(frames, 0),
    }, tmp_path / "given.safetensors")  # fmt: skip
    given, found = tmp_path / "given.safetensors", tmp_path / "found.safetensors"
    run_independent(python_of(HOST), "comfy_unet.py", HOST, source, config.network.head_channels, given, found)
    expected = load_file(found)
    network = load_model(made, tokenizer=HOST / "comfy" / "sd1_tokenizer").network
    assert relative_error(predict(network, x, timesteps, context, condition, frames), expected["out"]) < 1e-5
    sampled = sample_euler(lambda x, sigma: torch.tanh(x / (1 + sigma**2).sqrt()), noise, sigmas)
    torch.testing.assert_close(sampled, expected["sampled"], rtol=1e-5, atol=1e-5)


@needs_host
def test_text_states_are_those_of_transformers_at_its_penultimate_layer(config, single_file):
    source, made = single_file
    text = load_model(made, tokenizer=HOST / "comfy" / "sd1_tokenizer").text
    ids = text.tokenizer(PROMPTS)
    whole = tower(replace(config.text, skip_last=0))
    whole = getattr(whole, "text_model", whole)  # below 5.6
    state = {key.removeprefix("transformer."): value for key, value in text.state_dict().items()}
    missing, unexpected = whole.load_state_dict(state, strict=False)
    assert not unexpected and all(f"layers.{config.text.layers - 1}." in key for key in missing)
    with torch.no_grad():
        states = whole(ids, output_hidden_states=True).hidden_states[-2]
        expected = whole.final_layer_norm(states)
        assert relative_error(text.encode(PROMPTS), expected) < 1e-5


def python_with(package: str) -> str:
    """This one, or the one that PARITY_PYTHON names: both packages need a torchvision that fits their torch."""
    found = f"from importlib.util import find_spec; assert find_spec('torchvision') and find_spec('{package}')"
    for python in (sys.executable, os.environ.get("PARITY_PYTHON")):
        if python and subprocess.run([python, "-c", found], capture_output=True).returncode == 0:
            return python
    warnings.warn(f"NO {package}: parity with it is NOT TESTED. Set PARITY_PYTHON to a Python with it.", stacklevel=1)
    return pytest.skip(f"no {package}: set PARITY_PYTHON")


@needs_host
def test_tokens_and_text_states_are_open_clips(config, single_file, tmp_path):
    python = python_with("open_clip")
    source, made = single_file
    found = tmp_path / "found.safetensors"
    run_independent(
        python, "open_clip_text.py", source, json.dumps(asdict(config.text)), json.dumps(PROMPTS), found
    )  # fmt: skip
    expected = load_file(found)
    text = load_model(made, tokenizer=HOST / "comfy" / "sd1_tokenizer").text
    with torch.no_grad():
        assert torch.equal(text.tokenizer(PROMPTS), expected["tokens"])
        assert relative_error(text.encode(PROMPTS), expected["states"]) < 1e-5


@needs_host
def test_clip_tokens_keep_the_end_mark_of_a_long_prompt():
    row = ClipTokens(BASE.text, HOST / "comfy" / "sd1_tokenizer")(["word " * 100])[0]
    assert row[0] == 49406 and row[-1] == 49407 and (row[1:-1] == row[1]).all()


# --- the sampler ---


@pytest.mark.parametrize("steps", [5, 50])
def test_euler_edm_is_k_diffusions(tmp_path, steps):
    python = python_with("k_diffusion")
    sigmas, noise = NoiseSchedule().sigmas_for(steps), 14 * torch.randn(2, 64)
    given, found = tmp_path / "given.safetensors", tmp_path / "found.safetensors"
    save_file({"sigmas": sigmas, "noise": noise}, given)
    run_independent(python, "k_diffusion_euler.py", given, found)
    sampled = sample_euler(lambda x, sigma: torch.tanh(x / (1 + sigma**2).sqrt()), noise, sigmas)
    torch.testing.assert_close(sampled, load_file(found)["sampled"], rtol=1e-5, atol=1e-5)


@needs_diffusers
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_euler_edm_is_diffusers_euler_with_trailing_timesteps(steps):
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule()
    sigmas = schedule.sigmas_for(steps)
    torch.testing.assert_close(scheduler.sigmas, sigmas, rtol=3e-5, atol=0)
    start = sigmas[0] * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def eps(x, t):  # any smooth function will do
        return torch.tanh(0.7 * x.roll(1, -1) + 0.3 * x) + 0.1 * torch.cos(t / 200)

    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(eps(scheduler.scale_model_input(theirs, t), t), t, theirs).prev_sample

    def denoise(x, sigma):
        return to_denoised(eps(x / (1 + sigma**2).sqrt(), schedule.timestep(sigma)), x, sigma, "eps")

    assert relative_error(sample_euler(denoise, start, sigmas), theirs) < 3e-5
