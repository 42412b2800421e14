"""`microcinema init --warm-start`: what is taken from a public video model computes what it computed there, and every
tensor is accounted for.

Random weights of the donors' layouts: small, at full width without values, and at full width in the tests marked slow.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from parity import clips, filled, needs_diffusers, predict, relative_error
from safetensors.torch import load_file, save_file
from sd21 import SMALL, ldm_file

from microcinema_core import cli
from microcinema_core.checkpoint import load_model, read_config
from microcinema_core.cli import main
from microcinema_core.config import AUTOENCODER, BASE, INTERPOLATION, NETWORK, TEXT, configurations
from microcinema_core.convert import donors
from microcinema_core.convert.initialise import initialise, plan
from microcinema_core.convert.stored import Source, Stored
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model import SpatialUNet, build

try:
    from video_donors import DIGESTS, KINDS, UNET, donor_file, network_of, rate_embedding
except ImportError:
    KINDS = ()  # test_parity warns

pytestmark = needs_diffusers
INDEPENDENT = Path(__file__).parents[1] / "helpers" / "independent" / "lvdm_unet.py"
TEMPORAL = 22 * 16 + 17 * 26  # in convolutions and transformers, the input layer among them
WHOLE = ("DynamiCrafter-256", "VideoCrafter2")  # of these the spatial layers are taken too
RATES = {"DynamiCrafter-256": 3, "VideoCrafter2": 28}
BESIDE = {  # what else DynamiCrafter's file holds
    "betas": torch.zeros(1000), "scale_arr": torch.zeros(1000), "embedder.model.visual.conv1.weight": torch.zeros(8, 3),
    "embedder.model.visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(24, 8),
    "image_proj_model.latents": torch.zeros(1, 16, 8),
}  # fmt: skip


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def config(request):
    return {"small": SMALL, "full": BASE}[request.param]


@pytest.fixture(scope="module")
def source(config, tmp_path_factory):
    """Stable Diffusion, of other weights than any donor's."""
    path = tmp_path_factory.mktemp("sd") / "v2-1_512.safetensors"
    save_file({key: 1.1 * value for key, value in ldm_file(config).items()}, path)
    return path


@pytest.fixture(scope="module")
def unet_alone(source):
    """The same without autoencoder and text encoder, whose tokenizer a loaded model would need."""
    path = source.with_name("unet.safetensors")
    save_file({key: value for key, value in load_file(source).items() if key.startswith(NETWORK)}, path)
    return path


def written(kind, config, folder):
    """A donor's file, its tensors, and the same network in diffusers."""
    video = filled(network_of(kind, config))
    tensors = donor_file(kind, config, video.state_dict())
    if kind.startswith("Dyna"):
        tensors |= BESIDE
    path = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path, tensors, video


def spatial_source(video, folder, bias=0.0):
    """A diffusers folder of Stable Diffusion with this video network's spatial layers."""
    (folder / "sd" / "unet").mkdir(parents=True)
    names = {re.sub("temp_.*|transformer_in.*|fps_.*|image_.*|context_.*", "", key) for key in video.state_dict()}
    state = {key: value.clone() for key, value in video.state_dict().items() if key in names}
    state["conv_in.weight"] = state["conv_in.weight"][:, :4].clone()
    state["time_embedding.linear_2.bias"] += bias
    save_file(state, folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    return folder / "sd"


def run(video, sample, *arguments, **options):
    """(b·t, C, h, w) through one of diffusers' video networks."""
    frames = len(sample) // 2
    out = video(sample.unflatten(0, (2, frames)).transpose(1, 2), *arguments, **options).sample
    return out.transpose(1, 2).flatten(0, 1)


# --- what is taken computes what it computed there ---


@torch.no_grad()
def test_modelscope_with_its_own_spatial_layers_is_the_same_network(config, tmp_path):
    path, tensors, video = written("ModelScope", config, tmp_path)
    made = tmp_path / "warm.safetensors"
    report = initialise(spatial_source(video, tmp_path), made, config, path)
    assert report.taken == {"spatial layers": 686, "temporal layers": TEMPORAL}
    assert sum(map(len, report.left.values())) == len(tensors) - TEMPORAL
    network = load_model(made).network
    x, timesteps, context, condition = clips(config, 2, 5)
    actual = predict(network, x, timesteps, context, condition, 5)
    assert relative_error(actual, run(video, x, timesteps, context)) < 1e-5
    static = predict(network, x[:1].repeat(10, 1, 1, 1), timesteps, context, condition, 5)
    assert relative_error(static, actual) > 0.1
    network.temporal_input.proj_out.weight.zero_()
    assert relative_error(predict(network, x, timesteps, context, condition, 5), actual) > 0.01


@torch.no_grad()
def test_i2vgen_xl_with_its_own_spatial_layers_is_the_same_network_on_its_tokens(config, tmp_path):
    """Its picture enters as tokens, which our network can be given too, and through the input convolution, which it
    cannot: the planes are zero here."""
    video = filled(network_of("I2VGen-XL", config))
    video.conv_in.weight[:, 4:] = 0
    (tmp_path / "video").mkdir()
    video.save_pretrained(tmp_path / "video" / "unet")
    embedding = {key: value for key, value in video.state_dict().items() if key.startswith("fps_embedding")}
    made = tmp_path / "warm.safetensors"
    sd = spatial_source(video, tmp_path, rate_embedding(embedding, 16))
    report = initialise(sd, made, config, tmp_path / "video")
    assert report.taken == {"spatial layers": 686, "temporal layers": TEMPORAL}

    tokens = []
    video.mid_block.attentions[0].transformer_blocks[0].attn2.register_forward_pre_hook(
        lambda module, args, options: tokens.append(options["encoder_hidden_states"]), with_kwargs=True
    )
    x, timesteps, context, condition = clips(config, 2, 5)
    images, rate = torch.randn(2, 4, 5, 16, 8), torch.tensor([16, 16])
    expected = run(
        video, x, timesteps, fps=rate, image_latents=images, image_embeddings=torch.randn(2, context.shape[2]),
        encoder_hidden_states=context,
    )  # fmt: skip
    assert tokens[0].shape[1] == 77 + 64 + 4
    actual = predict(load_model(made).network, x, timesteps, tokens[0][::5], condition, 5)
    assert relative_error(actual, expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", WHOLE)
def test_dynamicrafter_and_videocrafter_keep_their_function_without_image_tokens(kind, config, unet_alone, tmp_path):
    path, tensors, video = written(kind, config, tmp_path)
    made = tmp_path / "warm.safetensors"
    initialise(unet_alone, made, config, path)
    video.time_embedding.linear_2.bias += rate_embedding(tensors, RATES[kind])
    x, timesteps, context, condition = clips(config, 2, 5)
    sample = x
    if kind.startswith("Dyna"):  # the noisy latent, then the picture's, the same for all frames
        sample = torch.cat([x, condition.repeat_interleave(5, 0)[:, 0]], dim=1)
    expected = run(video, sample, timesteps, context)
    network = load_model(made).network
    assert relative_error(predict(network, x, timesteps, context, condition, 5), expected) < 1e-5
    changed = relative_error(predict(network, x, timesteps, context, -condition, 5), expected)
    assert changed > 0.01 if kind.startswith("Dyna") else changed < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", WHOLE)
def test_so_they_do_in_their_own_class(kind, config, unet_alone, tmp_path):
    variable = "DYNAMICRAFTER_PATH" if kind.startswith("Dyna") else "VIDEOCRAFTER_PATH"
    if not (checkout := os.environ.get(variable)):
        warnings.warn(f"NO {kind}: parity with its own class is NOT TESTED. Set {variable}.", stacklevel=1)
        pytest.skip(f"no {kind}: set {variable} to a checkout of its repository")
    path, _, _ = written(kind, config, tmp_path)
    initialise(unet_alone, tmp_path / "warm.safetensors", config, path)
    x, timesteps, context, condition = clips(config, 2, 5)
    sample, network = x.unflatten(0, (2, 5)).transpose(1, 2), config.network
    settings = {
        "in_channels": 4, "out_channels": 4, "model_channels": network.model_channels, "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "num_head_channels": network.head_channels,
        "context_dim": network.context_dim, "use_linear": True, "use_checkpoint": False, "temporal_conv": True,
        "use_relative_position": False, "temporal_length": 16, "addition_attention": True,
    }  # fmt: skip
    if kind.startswith("Dyna"):
        sample = torch.cat([sample, condition.transpose(1, 2).expand_as(sample)], dim=1)
        settings |= {"in_channels": 8, "image_cross_attention": True, "image_cross_attention_scale_learnable": True,
                     "fs_condition": True}  # fmt: skip
    else:
        settings |= {"fps_cond": True}
    given, found = tmp_path / "given.safetensors", tmp_path / "found.safetensors"
    rate = torch.tensor(RATES[kind])
    save_file({"x": sample.contiguous(), "timesteps": timesteps, "context": context, "rate": rate}, given)
    command = [sys.executable, str(INDEPENDENT), checkout, json.dumps(settings), str(path), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = load_file(found)["out"].transpose(1, 2).flatten(0, 1)
    actual = predict(load_model(tmp_path / "warm.safetensors").network, x, timesteps, context, condition, 5)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("kind", ["ModelScope", "I2VGen-XL"])
def test_the_authors_own_file_is_that_of_diffusers(kind, config, source, tmp_path):
    path, tensors, video = written(kind, config, tmp_path)
    original = tmp_path / "model.pth"
    torch.save({"state_dict": donor_file(f"{kind}'s own", config, video.state_dict())}, original)
    initialise(source, tmp_path / "a.safetensors", config, path)
    initialise(source, tmp_path / "b.safetensors", config, original)
    first, second = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- what becomes of every tensor ---


def lazy(tensors):
    """Tensors of no device as those of a file that is never read."""

    def read():
        raise AssertionError("read before it is written")

    return {key: Stored(key, tuple(value.shape), torch.float16, read) for key, value in tensors.items()}


def on_meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def full_size():
    """The tensors of Stable Diffusion's UNet at full size, and of each donor, without values."""
    files = {}
    for kind in KINDS:
        with torch.device("meta"):
            state = network_of(kind, BASE).state_dict()
        files[kind] = donor_file(kind, BASE, state, on_meta)
    unet = SpatialUNet(BASE.network, device="meta").state_dict()
    return {NETWORK + key: value for key, value in unet.items()}, files


@pytest.mark.parametrize("target", [BASE, INTERPOLATION], ids=lambda target: target.name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_donor_is_taken_or_left_for_a_reason(kind, target, full_size):
    unet, files = full_size
    seen = {key: value for key, value in unet.items() if target.text or not re.search(r"\.(attn2|norm2)\.", key)}
    pictures = Source({key: replace(tensor, key="sd/" + key) for key, tensor in lazy(seen).items()}, {})
    warm = donors.warm_start(Path("donor"), lazy(files[kind]), target, ())
    tensors, report = plan(target, pictures, warm)
    network = build(report.config.network, device="meta").state_dict()
    assert {key.removeprefix(NETWORK): tensor.shape for key, tensor in tensors.items()} == {
        key: tuple(value.shape) for key, value in network.items()
    }
    assert sum(report.taken.values()) + sum(report.new.values()) == len(tensors)
    assert report.taken["temporal layers"] == TEMPORAL and report.new["copies for AppearNet"] == 570
    assert report.new.keys() <= {"zeros", "copies for AppearNet"}

    taken = {tensor.key for tensor in tensors.values()}
    left = [name for names in report.left.values() for name in names]
    assert len(left) == len(set(left)) and taken.isdisjoint(left)
    assert (taken | set(left)) >= files[kind].keys() | {tensor.key for tensor in pictures.tensors.values()}
    assert set(left) <= files[kind].keys() | {tensor.key for tensor in pictures.tensors.values()}
    spatial = {tensor.key for key, tensor in tensors.items() if key in unet}
    assert all(key.startswith("sd/") != (kind in WHOLE) for key in spatial)
    assert all(tensor.key.startswith("sd/") for key, tensor in tensors.items() if ".appearance." in key)


@pytest.mark.parametrize("kind", ["DynamiCrafter-256", "DynamiCrafter-512", "VideoCrafter2"])
def test_these_are_the_tensors_of_the_donors_own_class(kind, full_size):
    shapes = {key.removeprefix(UNET): list(value.shape) for key, value in full_size[1][kind].items()}
    shapes = {key.replace("framestride_embed", "fps_embedding"): shape for key, shape in shapes.items()}
    text = "\n".join(f"{key} {shapes[key]}" for key in sorted(shapes))
    assert sha256(text.encode()).hexdigest()[:16] == DIGESTS[kind]


def test_the_numbers_by_kind_and_reason(config, source, tmp_path):
    path, tensors, _ = written("DynamiCrafter-256", config, tmp_path)
    made = tmp_path / "warm.safetensors"
    report = initialise(source, made, config, path)
    assert {kind: report.taken[kind] for kind in ("spatial layers", "temporal layers", "condition input")} == {
        "spatial layers": 686, "temporal layers": TEMPORAL, "condition input": 1,
    }  # fmt: skip
    assert {words[:40]: len(names) for words, names in report.left.items() if not words.startswith("parts")} == {
        "running averages of the training": 1, "the noise schedule, which is always the ": 2 + 2,
        "its condition on the frame rate, kept at": 4, "its image cross-attention, in place of w": 3 * 16,
        "its encoders of the picture, in place of": 3, "Stable Diffusion's layers, in place of w": 686 - 570,
    }  # fmt: skip
    after, before = load_file(made), load_file(source)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith(AUTOENCODER))
    appearance = {key: value for key, value in after.items() if ".appearance." in key}
    assert all(torch.equal(value, before[key.replace("appearance.", "")]) for key, value in appearance.items())
    same = [key for key in before if key in tensors and key.startswith(NETWORK)]
    assert len(same) > 500 and any(not torch.equal(after[key], before[key]) for key in same)
    assert read_config(made) == report.config and report.config.network.temporal_input


def test_of_a_donor_that_predicts_v_the_temporal_layers_are_taken_alone(config, source, tmp_path):
    path, tensors, _ = written("DynamiCrafter-512", config, tmp_path)
    made = tmp_path / "warm.safetensors"
    report = initialise(source, made, config, path)
    after, before = load_file(made), load_file(source)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith(NETWORK))
    assert not after[NETWORK + "condition_in.weight"].any()
    first = tensors[UNET + "init_attn.0.proj_in.weight"]
    assert torch.equal(after[NETWORK + "temporal_input.proj_in.weight"], first[:, :, 0])
    assert len(report.left[report.donor.leaves_spatial]) == 686


def test_autoencoder_and_text_encoder_are_the_donors_where_the_other_file_lacks_them(
    config, source, unet_alone, tmp_path
):
    path, tensors, _ = written("DynamiCrafter-256", config, tmp_path)
    theirs = {key: 2 * value for key, value in load_file(source).items() if key.startswith((AUTOENCODER, TEXT))}
    save_file({key: value.contiguous() for key, value in (tensors | theirs).items()}, path)
    for sd, factor in ((unet_alone, 2), (source, 1)):
        report = initialise(sd, tmp_path / "warm.safetensors", config, path)
        after, before = load_file(tmp_path / "warm.safetensors"), load_file(source)
        beside = [key for key in before if key.startswith(AUTOENCODER)]
        assert all(torch.equal(after[key], factor * before[key]) for key in beside)
        left = report.left.get("its autoencoder, which the other file has", [])
        assert len(left) == (len(beside) if factor == 1 else 0)
        assert report.taken["text encoder"] == (config.text.layers - 1) * 16 + 4


@torch.no_grad()
def test_modelscope_without_its_input_layer_makes_a_network_without_it(config, unet_alone, tmp_path):
    path, tensors, _ = written("ModelScope", config, tmp_path)
    save_file({key: value for key, value in tensors.items() if not key.startswith("transformer_in")}, path)
    report = initialise(unet_alone, tmp_path / "warm.safetensors", config, path)
    assert report.taken["temporal layers"] == TEMPORAL - 26
    assert not load_model(tmp_path / "warm.safetensors").config.network.temporal_input


def test_a_precision_of_its_own_is_kept(config, source, tmp_path):
    path, tensors, _ = written("DynamiCrafter-256", config, tmp_path)
    halves = {key: value.half().contiguous() for key, value in tensors.items()}
    save_file(halves, path)
    initialise(source, tmp_path / "warm.safetensors", config, path)
    after = load_file(tmp_path / "warm.safetensors")
    bias = NETWORK + "time_embed.2.bias"
    assert after[bias].dtype == torch.float16 and after[NETWORK + "appearance.time_embed.2.bias"].dtype == torch.float32
    expected = tensors[bias] + rate_embedding(tensors, 3)
    torch.testing.assert_close(after[bias].float(), expected, rtol=1e-2, atol=1e-2)


# --- what is refused, and what is said ---


def test_another_model_is_refused_with_the_names_of_those_that_are_known(source, tmp_path):
    with pytest.raises(MicroCinemaError, match="no video model that is known here: give one of I2VGen-XL, .*VideoCraf"):
        initialise(source, tmp_path / "new.safetensors", SMALL, source)
    assert list(tmp_path.iterdir()) == []


FAULTS = {
    "lacks a layer": (lambda t: t.pop(UNET + "init_attn.0.proj_in.bias"), "lacks 'model.diffusion_model.init_attn"),
    "lacks the rate": (lambda t: t.pop(UNET + "fps_embedding.0.bias"), "lacks 'model.diffusion_model.fps_embedding"),
    "relative positions, as VideoCrafter1": (
        lambda t: t.update({UNET + "init_attn.0.transformer_blocks.0.attn1.relative_position_k.x": torch.zeros(33)}),
        "unknown '.*relative_position_k",
    ),
    "another width": (
        lambda t: t.update({UNET + "init_attn.0.proj_in.bias": torch.zeros(7)}), "expected .128,.: give VideoCrafter2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_donor_that_does_not_fit_is_named_with_its_fault(fault, tmp_path):
    change, words = FAULTS[fault]
    path, tensors, _ = written("VideoCrafter2", SMALL, tmp_path)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    save_file(ldm_file(SMALL), tmp_path / "sd.safetensors")
    with pytest.raises(MicroCinemaError, match=words):
        initialise(tmp_path / "sd.safetensors", tmp_path / "new.safetensors", SMALL, path)
    assert not (tmp_path / "new.safetensors").exists()


def test_the_command_names_the_donor_and_its_licence_and_info_the_layer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "configurations", lambda: configurations() | {"base": SMALL})
    path, _, _ = written("VideoCrafter2", SMALL, tmp_path)
    save_file(ldm_file(SMALL), tmp_path / "sd.safetensors")
    command = ["init", "--from", str(tmp_path / "sd.safetensors"), "--warm-start", str(path)]
    assert main([*command, "-o", str(tmp_path / "new.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "warm start from VideoCrafter2 (licence: for research and no commercial use" in out
    assert f"{TEMPORAL} temporal layers" in out and "4 its condition on the frame rate, kept at 28" in out
    assert main(["info", str(tmp_path / "new.safetensors")]) == 0
    width, inner = 32, 128
    count = 2 * width * inner + inner + 3 * width + (2 * 4 + 12) * inner**2 + (2 + 8 + 1 + 6) * inner
    assert re.search(rf"temporal input layer +{count:,}", capsys.readouterr().out)
