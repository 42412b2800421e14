"""The paper's network learns from real videos, shards and caches alike, and ends in a model file that can be used."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from footage import pan, write_footage
from short_runs import log_of, same_states, state_of, torchrun
from tiny import random_model, tiny_base, tiny_between
from tiny_runs import footage_folder, tiny_run
from torch.utils.data._utils import pin_memory

from microcinema_core.checkpoint import load_model, read_config, save_model
from microcinema_core.errors import MicroCinemaError
from microcinema_core.header import read_training
from microcinema_core.images import load_picture
from microcinema_core.pipeline import Pipeline
from microcinema_core.training import recipe
from microcinema_core.training.data.samples import Loader, Sample, Samples, split
from microcinema_core.training.data.videos import VideoSet
from microcinema_core.training.distributed import Processes
from microcinema_core.training.objective import scaled_latents
from microcinema_core.training.settings import VideoRunConfig
from microcinema_core.training.start import check_model, initial_model
from microcinema_core.training.states import states

ROOT = Path(__file__).parents[2]
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return footage_folder(tmp_path_factory.mktemp("videos") / "clips")


@pytest.fixture(scope="module")
def toml(tmp_path_factory, clips):
    return tiny_run(tmp_path_factory.mktemp("settings"), clips)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toml):
    folder = tmp_path_factory.mktemp("whole")
    return recipe.main(toml, folder)


def batch_of(toml: Path, folder: Path, step: int = 0, **overrides):
    """The batch of a step, as one process reads it."""
    config = VideoRunConfig.read(toml, {key.replace("__", "."): value for key, value in overrides.items()})
    model = check_model(config)
    source = recipe.open_clips(config, model, folder, ALONE)
    rows, _ = split(len(source.buckets), 0, 0)
    prepared = recipe.prepare(config, initial_model(config, model, source.captions()), ALONE)
    samples = Samples(
        source, rows, recipe._order(source, rows, config), prepared.text_source(source), seed=0, variants=1,
        text_drop=0.1, factor=4, channels=4,
    )  # fmt: skip
    [batch] = next(Loader(samples, 0, config.train.share(1), config.train.workers)(step))
    return batch, prepared


# --- a run ---


def test_a_run_ends_in_a_model_that_animates(whole):
    model = load_model(whole)
    assert model.config.name == "tiny" and {"camera", "over", "picture"} <= set(model.text.tokenizer.vocabulary)
    frames = Pipeline(model).animate(load_picture(ROOT / "pictures/photo.jpg"), "the camera pans")
    assert frames.shape == (5, 3, 32, 32)


def test_a_run_tells_how_it_goes(whole):
    rows = log_of(whole.parent)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert any(key.startswith("loss_band") for key in rows[0])
    assert rows[-1].keys() >= {"validation_loss", "validation_loss_band0", "validation_loss_band3"}
    names = {path.name for path in whole.parent.iterdir()}
    assert names >= {"tiny.safetensors", "tiny.md", "samples-000004.png", "samples-000004-0.gif", "checkpoints"}


def test_tensorboard_shows_figures_sheets_and_clips(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole.parent / "tensorboard"))
    events.Reload()
    assert {"loss", "grad_norm", "learning_rate", "clips_per_second", "waiting", "validation_loss"} <= set(
        events.Tags()["scalars"]
    )
    pictures = {tag: events.Images(tag)[0].encoded_image_string for tag in events.Tags()["images"]}
    assert pictures["samples/sheet"][:4] == b"\x89PNG" and pictures["samples/0"][:3] == b"GIF"


def test_the_model_file_and_its_card_tell_how_it_was_made(whole):
    notes = read_training(whole)
    assert notes["step"] == 4 and notes["settings"]["train"]["learning_rate"] == 1e-3
    assert len(notes["data"]) == 32 and notes["figures"]["validation_loss"] > 0
    card = whole.with_suffix(".md").read_text()
    assert "# tiny" in card and notes["data"] in card and "models/microcinema/" in card


def test_every_part_of_the_network_learns_and_the_autoencoder_does_not(tmp_path, toml):
    settings = {"train.steps": "8", "train.learning_rate": "2e-2", "train.warmup": "1", "train.ema": "0"}
    path = recipe.main(toml, tmp_path, settings)
    config = VideoRunConfig.read(toml)
    before = initial_model(config, check_model(config), ["the camera pans over picture " + c for c in "abcdef"])
    after, parts = load_model(path), {}
    weights = dict(after.network.named_parameters())
    for name, value in before.network.named_parameters():
        parts.setdefault(name.split(".")[0], []).append((value - weights[name]).abs().max().item())
    assert not [part for part, changes in parts.items() if max(changes) < 1e-2]
    assert torch.equal(after.autoencoder.decoder.conv_in.weight, before.autoencoder.decoder.conv_in.weight)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_it_goes_on_to_the_same_bits_with_any_number_of_workers(tmp_path, toml, whole, workers):
    command = [sys.executable, "-m", "microcinema_core", "train", str(toml), "--out", str(tmp_path / "run")]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not states(tmp_path / "run") and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    for newer in states(tmp_path / "run")[1:]:  # where the whole run was faster
        shutil.rmtree(newer)
    recipe.main(toml, tmp_path / "run", {"train.workers": workers})
    assert same_states(whole.parent, tmp_path / "run")


@pytest.mark.parametrize(("count", "strategy"), [(2, "ddp"), (2, "fsdp2")])
def test_two_processes_learn_what_one_learns(tmp_path, toml, whole, count, strategy):
    """Also where each keeps a part of the weights. Adam divides small gradients by small ones, so that the differences
    of rounding grow to a thousandth of a step."""
    shared = torchrun(count, "train", toml, "--out", tmp_path, "--set", f"train.strategy={strategy}")
    output = shared.communicate(timeout=240)[0]
    assert shared.returncode == 0, output
    first, second = state_of(whole.parent), state_of(tmp_path)
    assert first.keys() == second.keys()
    losses = [[row["loss"] for row in log_of(folder) if "loss" in row] for folder in (whole.parent, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    distance = sum((first[k] - second[k]).square().sum() for k in first if k.startswith("model.")).sqrt()
    assert distance < 0.02  # of about 1: 4 steps of 1e-3 in 10^5 weights
    assert load_model(tmp_path / "tiny.safetensors").config == load_model(whole).config


def test_gradient_checkpointing_changes_no_gradient(tmp_path, toml):
    batch, prepared = batch_of(toml, tmp_path)
    gradients = []
    for checkpointing in (False, True):
        network = prepared.objective.model.network
        network.gradient_checkpointing = network.appearance.gradient_checkpointing = checkpointing
        prepared.objective.zero_grad()
        prepared.objective(0, batch)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_signal_to_the_workers_too_saves_the_step(tmp_path, toml):
    """As Ctrl-C sends it, and torchrun."""
    command = [sys.executable, "-m", "microcinema_core", "train", str(toml), "--out", str(tmp_path / "run")]
    for setting in ("steps=1000", "workers=2", "save_every=1000", "sample_every=1000"):
        command += ["--set", f"train.{setting}"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in running.stdout:
        if line.startswith("step 2/"):
            break
    os.killpg(running.pid, signal.SIGTERM)
    output = running.communicate(timeout=120)[0]
    assert "stopped at step" in output, output
    assert len(states(tmp_path / "run")) == 1


CRASH = """
import sys
from dataclasses import replace
from pathlib import Path
from microcinema_core.training import recipe
from microcinema_core.training.trainer import Trainer
def crash(*_):
    raise RuntimeError("a crash")
if __name__ == "__main__":
    Trainer._take_step = crash
    recipe.main(Path(sys.argv[1]), Path(sys.argv[2]), {"train.workers": "1"})
"""


def test_no_worker_outlives_a_crash(tmp_path, toml):
    (tmp_path / "crash.py").write_text(CRASH)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "crash.py"), str(toml), str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1] == "RuntimeError: a crash"


# --- what is trained ---


@pytest.mark.parametrize("trained", ["new", "lora"])
def test_parts_of_a_model_can_be_trained_alone(tmp_path, toml, whole, trained):
    if trained == "lora":
        pytest.importorskip("peft")
    settings = {"train.trained": trained, "train.dtype": "bfloat16", "model.start": str(whole), "model.override": "{}"}
    settings |= {"model.vocabulary": "0", "model.autoencoder": "", "train.learning_rate": "1e-2"}
    path = recipe.main(toml, tmp_path, settings)
    before, after = load_model(whole), load_model(path)
    changed = {
        name
        for name, value in after.network.named_parameters()
        if (value - dict(before.network.named_parameters())[name]).abs().max() > 2e-3 + value.abs().max() / 100
    }
    assert any(name.startswith("temporal_transformers") for name in changed)
    spatial = {name for name in changed if name.startswith(("input_blocks", "middle_block", "output_blocks", "out."))}
    assert all(".transformer_blocks." in name for name in spatial) if trained == "lora" else not spatial


# --- data ---


def test_the_first_batch_is_the_same_from_a_folder_a_table_shards_and_a_cache(tmp_path, toml, clips):
    webdataset = pytest.importorskip("webdataset")
    by_folder, _ = batch_of(toml, tmp_path)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["videoid", "contentUrl", "page_dir", "name"])
        for path in sorted(clips.glob("*.mp4")):
            table.writerow([path.stem, f"https://example.org/{path.name}", "", path.with_suffix(".txt").read_text()])
    by_table, _ = batch_of(toml, tmp_path, data__table=str(tmp_path / "table.csv"))
    with webdataset.ShardWriter(str(tmp_path / "clips-%06d.tar"), maxcount=4) as shards:
        for path in sorted(clips.glob("*.mp4")):
            shards.write({"__key__": path.stem, "mp4": path.read_bytes(), "txt": path.with_suffix(".txt").read_text()})
    by_shards, _ = batch_of(toml, tmp_path, data__folder="", data__shards=str(tmp_path / "clips-{000000..000001}.tar"))
    cache = recipe.cache(toml, tmp_path / "cache", {"data.cache_dtype": "float32"})
    by_cache, prepared = batch_of(toml, tmp_path, data__folder="", data__cache=str(cache))
    for other in (by_table, by_shards, by_cache):
        for name in ("noise", "timesteps", "posterior", "text"):
            assert torch.equal(getattr(by_folder, name), getattr(other, name))
    assert torch.equal(by_folder.pixels, by_table.pixels) and torch.equal(by_folder.pixels, by_shards.pixels)
    latents = [scaled_latents(batch, prepared.loaded.autoencoder) for batch in (by_folder, by_cache)]
    assert torch.equal(*latents)


def test_a_cache_is_gone_on_with_and_shared_by_processes(tmp_path, toml, monkeypatch):
    monkeypatch.setattr("microcinema_core.training.data.cache.CLIPS_PER_SHARD", 2)
    folder = recipe.cache(toml, tmp_path)
    paths = sorted(folder.glob("*.safetensors"))
    assert len(paths) == 3
    paths[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in (paths[0], paths[2])}
    assert recipe.cache(toml, tmp_path) == folder
    assert paths[1].exists() and before == {path: path.stat().st_mtime_ns for path in before}
    assert recipe.cache(toml, tmp_path, {"data.variants": "2"}) != folder


def test_a_cache_of_another_model_is_refused(tmp_path, toml):
    folder = recipe.cache(toml, tmp_path)
    with pytest.raises(MicroCinemaError, match="was made with frames 5, not 7: make another one"):
        recipe.main(toml, tmp_path / "run", {
            "data.folder": "", "data.cache": str(folder), "model.override.network.frames": "7",
        })  # fmt: skip


def test_a_run_from_a_cache_learns_what_a_run_from_videos_learns(tmp_path, toml):
    settings = {"data.variants": "1"}
    recipe.main(toml, tmp_path / "videos", settings)
    cache = recipe.cache(toml, tmp_path / "cache", settings | {"data.cache_dtype": "float32"})
    recipe.main(toml, tmp_path / "cached", settings | {"data.folder": "", "data.cache": str(cache)})
    assert same_states(tmp_path / "videos", tmp_path / "cached")


def test_unusable_videos_are_skipped_counted_and_listed(tmp_path, toml, clips, capsys):
    videos = tmp_path / "clips"
    shutil.copytree(clips, videos)
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "broken.txt").write_text("broken")
    shutil.copy(videos / "clip0.mp4", videos / "silent.mp4")
    recipe.main(toml, tmp_path / "run", {"data.folder": str(videos)})
    output = capsys.readouterr().out
    assert "6 videos, skipped: " in output and "1 no caption" in output


def test_videos_that_fill_no_batch_of_their_size_are_told(tmp_path, toml, clips, capsys):
    videos = tmp_path / "clips"
    shutil.copytree(clips, videos)
    write_footage(videos / "tall", pan(40, (36, 64), 9), fps=10)
    (videos / "tall.txt").write_text("the camera pans over a tall picture")
    settings = {"data.folder": str(videos), "data.buckets": "true", "train.steps": "1"}
    recipe.main(toml, tmp_path / "run", settings)
    assert "1 videos of 24×40 are too few for a batch of 4 and left out" in capsys.readouterr().out


def test_a_batch_is_pinned_whole(tmp_path, toml, monkeypatch):
    [batch], pinned = [batch_of(toml, tmp_path)[0]], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert pin_memory.pin_memory(Sample(batch, [])).batch == batch
    assert len(pinned) == 5  # noise, timesteps, posterior, text, pixels


def test_no_worker_gets_the_list_of_skipped_videos(tmp_path, clips):
    videos = tmp_path / "clips"
    shutil.copytree(clips, videos)
    (videos / "clip1.txt").unlink()
    found = VideoSet.from_folder(videos)
    assert found.skipped == {"clip1": "no caption"} and pickle.loads(pickle.dumps(found)).skipped == {}


# --- bad input ---


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_error_in_a_worker_is_one_sentence_too(tmp_path, toml, workers):
    with pytest.raises(MicroCinemaError) as caught:
        batch_of(toml, tmp_path, data__fps="[30.0]", train__workers=workers)
    assert str(caught.value).startswith("20 clips one after another are unusable, such as 'clip")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.folder": ""}, "give one of them, not none"),
        ({"data.shards": "x.tar"}, "give one of them, not folder and shards"),
        ({"data.folder": "missing"}, "'missing' is no folder"),
        ({"data.text_drop": "2"}, "data.text_drop cannot be 2: give a number from 0 to 1"),
        ({"data.held_out": "6"}, "data.held_out cannot be 6: leave videos to learn from"),
        ({"model.config": "huge"}, "model.config cannot be 'huge': give base or interpolation"),
        ({"model.config": "demo-base"}, "model.config cannot be 'demo-base': give base or interpolation"),
        ({"model.override.width": "33"}, "model.override.width cannot be 33: give a multiple of"),
        ({"model.override.network.heads": "3"}, "model.override.network.heads is unknown"),
        ({"model.autoencoder": ""}, "model.autoencoder is missing: give a model file with one"),
        ({"model.autoencoder": "nobody"}, "model.autoencoder: no model 'nobody'"),
        ({"model.vocabulary": "0"}, "model.vocabulary is 0: give a number of words"),
        ({"model.text": "nobody"}, "model.text and model.vocabulary both give a text encoder: leave one of them out"),
        ({"model.text": "nobody", "model.vocabulary": "0"}, "model.text: no model 'nobody'"),
        ({"model.start": "nobody"}, "model.start: no model 'nobody'"),
        ({"train.trained": "some"}, "train.trained cannot be 'some': give 'all', 'new' or 'lora'"),
        ({"train.trained": "new"}, "train.dtype cannot be 'float32' with trained 'new': give 'bfloat16'"),
        ({"train.strategy": "fsdp2"}, "strategy cannot be 'fsdp2' with one process"),
        ({"train.batch_size": "8"}, "no size has the 8 videos that a batch needs, of 6"),
        ({"train.micro_batch": "3"}, "micro_batch cannot be 3: give 0 or a divisor of the 4"),
        ({"colour": "1"}, "unknown setting colour"),
    ],
)
def test_bad_settings_are_named_in_one_sentence(tmp_path, toml, settings, words):
    with pytest.raises(MicroCinemaError) as caught:
        recipe.main(toml, tmp_path / "run", settings)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not states(tmp_path / "run")


def test_the_command_says_it_in_one_line(tmp_path, toml):
    command = [sys.executable, "-m", "microcinema_core", "train", str(toml), "--set", "train.steps=none"]
    ended = subprocess.run([*command, "--out", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "train.steps cannot be 'none': give a whole number" in ended.stderr
    assert not (tmp_path / "run").exists()


CONFIGURATIONS = sorted(path for path in (ROOT / "configs").glob("*.toml") if not path.stem.startswith("demo-"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_of_the_paper_can_be_read(path):
    config = VideoRunConfig.read(path, {"data.folder": "x", "data.cache": "", "data.shards": "", "data.scenes": "0"})
    assert config.train.share(4)[1] > 0
    if config.model.start:
        with pytest.raises(MicroCinemaError) as caught:
            check_model(config)
        assert len(str(caught.value).splitlines()) == 1
        assert f"model.start: no model '{config.model.start}': " in str(caught.value)


def test_the_papers_settings_are_those_of_its_table():
    """Supplement Table 3."""
    base, between = (
        VideoRunConfig.read(ROOT / "configs" / f"{name}.toml", {"data.folder": "x"})
        for name in ("base", "interpolation")
    )
    for config, steps, fps, drop in ((base, 800_000, (2.0,), 0.1), (between, 40_000, (8.0, 30.0), 1.0)):
        assert (config.train.steps, config.data.fps, config.data.text_drop) == (steps, fps, drop)
        assert config.train.share(4) == (1, 4)  # clips on each of 4 GPUs
        assert (config.train.learning_rate, config.train.spatial_factor, config.train.trained) == (2e-5, 0.1, "all")


def test_a_model_without_text_learns_from_videos_without_captions(tmp_path, toml, clips):
    (tmp_path / "clips").mkdir()
    for path in clips.glob("*.mp4"):
        shutil.copy(path, tmp_path / "clips")
    save_model(tmp_path / "between.safetensors", random_model(tiny_between()))
    settings = {"data.folder": str(tmp_path / "clips"), "data.fps": "[5.0, 10.0]", "data.text_drop": "1.0"}
    settings |= {"model.start": str(tmp_path / "between.safetensors"), "model.autoencoder": "", "model.override": "{}"}
    path = recipe.main(toml, tmp_path / "run", settings | {"model.vocabulary": "0", "train.steps": "2"})
    assert load_model(path).text is None and log_of(path.parent)[0]["loss"] > 0


def test_the_text_encoder_of_another_file_stays_as_it_is(tmp_path, toml, whole):
    settings = {"model.text": str(whole), "model.vocabulary": "0", "train.steps": "2"}
    cache = recipe.cache(toml, tmp_path / "cache", settings)  # holds its states, in half precision
    path = recipe.main(toml, tmp_path / "run", settings | {"data.folder": "", "data.cache": str(cache)})
    made, given = load_model(path), load_model(whole)
    assert made.config.text == given.config.text and made.network is not None
    for name, value in given.text.state_dict().items():
        assert torch.equal(made.text.state_dict()[name], value), name
    assert log_of(path.parent)[0]["loss"] > 0


def test_the_text_encoder_of_another_file_is_checked_before_loading(tmp_path, toml):
    base = tiny_base()
    save_model(tmp_path / "wide.safetensors", random_model(base))
    clip = replace(
        base, text=replace(base.text, width=32, tokenizer=None), network=replace(base.network, context_dim=32)
    )
    save_model(tmp_path / "clip.safetensors", replace(random_model(base), config=clip))
    settings = {"model.vocabulary": "0", "model.tokenizer": "nowhere"}
    for name, words in (
        ("wide", "model.text does not fit the model: network.context_dim cannot be 32: give the text's own width (64)"),
        ("clip", "model.tokenizer cannot be 'nowhere': give the folder of CLIP's vocab.json"),
    ):
        with pytest.raises(MicroCinemaError) as caught:
            recipe.main(toml, tmp_path / "run", settings | {"model.text": str(tmp_path / f"{name}.safetensors")})
        assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_model_file_without_notes_has_none(tmp_path, toml):
    assert read_training(toml.parent / "autoencoder.safetensors") == {}
    assert read_config(toml.parent / "autoencoder.safetensors").name == "tiny-base"
    assert json.dumps(read_training(toml.parent / "autoencoder.safetensors")) == "{}"
