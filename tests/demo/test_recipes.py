"""The bundled models' training: it can be killed and resumed without a trace, and ends in a model file."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from demo_networks import VARIANTS, tiny_demo_base
from safetensors.torch import load_file
from short_runs import ALONE, full_disk, log_of, same_states, state_of, torchrun
from short_runs import CONFIG as GENERIC
from tiny import random_model, tiny_base

from microcinema_core.checkpoint import LoadedModel, load_model, save_model
from microcinema_core.demo import recipes, shards, video
from microcinema_core.demo.autoencoder import train_autoencoder
from microcinema_core.demo.captions import COLOURS
from microcinema_core.demo.config import DEMO_BASE
from microcinema_core.demo.recipes import DemoRunConfig, DemoTable
from microcinema_core.errors import MicroCinemaError
from microcinema_core.files import locked, make_folder
from microcinema_core.model import build
from microcinema_core.model.autoencoder import Autoencoder

ROOT = Path(__file__).parents[2]
TABLE = DemoTable(task="diffusion", model="demo-base", shards=1, text_steps=2, warp_steps=2, warp_shards=1)
CONFIG = DemoRunConfig(replace(GENERIC.train, batch_size=2), TABLE)
DEMO_SHAPE = DEMO_BASE.network.frames, DEMO_BASE.width  # of its shards


# --- a video model ---


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def model_config():
    return tiny_demo_base(forward_warp=tiny_base().autoencoder, residual_std=0.2, amplitude_std=0.05)


@pytest.fixture(scope="module")
def autoencoder(model_config):
    return random_model(model_config).autoencoder


@pytest.fixture(scope="module")
def runs(model_config, autoencoder, tmp_path_factory):
    """Runs of one tiny configuration over one pool of 20 scenes: `run(name, at)` calls `at` at every step."""
    root = tmp_path_factory.mktemp("runs")

    def run(name, at=lambda step: None):
        forward = video.DemoObjective.forward

        def watched(objective, step, batch):
            at(step)
            return forward(objective, step, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "CLIPS_PER_SHARD", 20)
            patch.setattr(video.DemoObjective, "forward", watched)
            result = video.train_video(CONFIG, model_config, autoencoder, root / name, root / "scenes", ALONE)
        return root / name, result

    return run


@pytest.fixture(scope="module")
def whole(runs):
    return runs("whole")


def test_resumed_after_a_signal_it_is_the_run_that_was_never_stopped(runs, whole):
    with pytest.raises(KeyboardInterrupt):
        runs("stopped", at=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    folder, resumed = runs("stopped")
    assert same_states(folder, whole[0])
    expected = whole[1].network.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.network.state_dict().items())


def test_resumed_after_a_power_cut_it_is_the_run_that_was_never_cut(runs, whole):
    def at(step):
        if step == 3:
            raise PowerCut  # state was saved at step 2

    with pytest.raises(PowerCut):
        runs("cut", at)
    folder, _ = runs("cut")
    assert same_states(folder, whole[0])


def test_training_changes_every_part_of_the_model(whole):
    state = state_of(whole[0])
    moments = {key: tensor for key, tensor in state.items() if key.startswith("optimizer.exp_avg_sq.")}
    assert all(
        f"optimizer.exp_avg_sq.model.{name}" in moments
        for name in (
            "network.out.2.weight",
            "network.condition_in.weight",
            "network.forward_warp.choice.conv_out.weight",
        )
    )
    for part in ("network.temporal_convs", "network.temporal_transformers", "network.appearance_injections"):
        assert any(tensor.any() for key, tensor in moments.items() if f".{part}" in key), part
    assert not any(".text." in key for key in moments), "the text tower is frozen"
    assert (whole[0] / "text.safetensors").exists()


def test_log_has_noise_bands_and_the_swapped_caption(whole):
    rows = log_of(whole[0])
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert {key for row in rows for key in row if key.startswith("loss_band")} >= {"loss_band0", "loss_band3"}
    held_out = [row for row in rows if "held_out" in row]
    assert [row["step"] for row in held_out] == [6]
    assert held_out[-1]["held_out"] != held_out[-1]["held_out_swapped"]
    assert sorted(path.name for path in whole[0].glob("*.png")) == ["samples-000006.png"]


# --- a forward warp ---


def test_a_warp_is_taught_from_what_the_autoencoder_makes_of_a_picture(autoencoder, monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 2)
    shard = shards.draw_shard(tmp_path, 0, 3, 16)
    centre = shards.load([shard], "frames")[:, 1]
    decoded = load_file(video.decode_shard(shard, autoencoder))["pictures"] / 255
    expected = autoencoder.decode(autoencoder.encode(centre.float() / 255)).clamp(0, 1)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2 / 255)


def test_a_warp_learns_from_one_thing_and_two_in_turn(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 10)
    shard = shards.draw_shard(tmp_path, 0, 1, 16, things=True)
    captions = shards.load_captions([shard])
    assert shard != shards.shard_path(tmp_path, 0, 1, 16)
    assert all(COLOURS.keys() & caption.split() for caption in captions)
    assert not any(" and " in caption for caption in captions[::2])
    assert any(" and " in caption for caption in captions[1::2])


# --- the autoencoder ---


def test_autoencoder_run_ends_with_unit_variance_latents(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 20)
    config = DemoRunConfig(
        replace(CONFIG.train, steps=2, sample_every=2, learning_rate=1e-5), replace(TABLE, crop=16, kl_weight=1e-6)
    )
    model_config = replace(DEMO_BASE, width=32, height=32)
    model = train_autoencoder(config, model_config, tmp_path / "run", tmp_path / "scenes", ALONE)
    frames = shards.load(sorted((tmp_path / "scenes").glob("*.safetensors")), "frames")[:-8, 0].float() / 255
    latents = model.encode(frames)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-2)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=1e-2)
    rows = log_of(tmp_path / "run")
    assert rows[0].keys() >= {"psnr", "kl"} and rows[1]["held_out_psnr"] > 10


# --- shards ---


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 2)
    with full_disk(1000), pytest.raises(MicroCinemaError, match="scenes-16px.*could not be written .*make room"):
        shards.draw_shard(tmp_path, 0, 3, 16)
    assert list(tmp_path.iterdir()) == []


# --- settings ---

AUTOENCODER = {"task": '"autoencoder"'}
GOOD = 'task = "diffusion"\nmodel = "demo-base"\nsteps = 3\nbatch_size = 1\nlearning_rate = 1e-3\n'


@pytest.fixture
def toml(tmp_path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("demo-*.toml")), ids=lambda path: path.stem)
def test_the_repositorys_configurations_can_be_read(path):
    assert DemoRunConfig.read(path, {"steps": "20", "autoencoder": "x"}).train.steps == 20


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"colour": "1"}, "unknown setting colour"),
        ({"kl_weight": "-1"}, "demo.kl_weight cannot be -1: give a number from 0 to 1000"),
        ({"text_drop": "1.5"}, "demo.text_drop cannot be 1.5: give a number from 0 to 1 (a share), such as 0.1"),
        ({"time_power": "[1.0, nan]"}, "demo.time_power cannot be [1.0, nan]: give two numbers"),
        ({"warp_shards": "0"}, "demo.warp_shards cannot be 0: give a whole number from 1 to 10000 (shards), such as 4"),
        ({"task": "2024-01-01"}, "give 'autoencoder', 'diffusion' or 'interpolation'"),
        ({"learning_rate": "-1"}, "train.learning_rate cannot be -1: give a number above 0 and up to 10, such as"),
        ({"processes": "2"}, "there is no setting processes any more: start several with torchrun"),
    ],
)
def test_bad_settings_are_named(toml, setting, words):
    with pytest.raises(MicroCinemaError) as caught:
        DemoRunConfig.read(toml, setting)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_without_a_task_is_refused(toml):
    toml.write_text(GOOD.replace('task = "diffusion"\n', ""))
    with pytest.raises(MicroCinemaError, match="demo.task is missing: give it a value"):
        DemoRunConfig.read(toml)


def test_the_learning_rate_has_a_course_for_the_motion_and_one_for_the_rest():
    config = DemoRunConfig(replace(CONFIG.train, steps=100), replace(TABLE, warp_steps=30))
    assert [config.phase(step) for step in (0, 29, 30, 99)] == [(0, 30), (0, 30), (30, 100), (30, 100)]


def test_a_run_is_the_same_wherever_its_autoencoder_lies():
    config, elsewhere, other = (
        DemoRunConfig(CONFIG.train, replace(TABLE, **change))
        for change in ({"autoencoder": "a"}, {"autoencoder": "b"}, {"text_drop": 0.2})
    )
    assert config.identity() == elsewhere.identity() != other.identity()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"model": '"nobody"'}, ["nobody", "demo-base"]),
        ({"model": '"base"'}, ["unknown model 'base'", "demo-base, demo-interpolation"]),
        ({**AUTOENCODER, "model": '"base"'}, ["unknown model 'base'", "demo-base, demo-interpolation"]),
        ({"task": '"cooking"'}, ["cooking", "'autoencoder', 'diffusion' or 'interpolation'"]),
        ({"autoencoder": '"missing.safetensors"'}, ["missing.safetensors", "demo-autoencoder.toml"]),
        ({**AUTOENCODER, "crop": "50"}, ["crop cannot be 50: give a multiple of 8 pixels up to 96, such as 48"]),
        ({**AUTOENCODER, "crop": "104"}, ["crop cannot be 104: give a multiple of 8 pixels up to 96, such as 96"]),
    ],
)
def test_runs_that_cannot_start_say_why(toml, tmp_path, setting, words):
    with pytest.raises(MicroCinemaError) as caught:
        recipes.main(toml, tmp_path / "run", setting)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_motion_is_not_taught_to_a_model_without_a_warp():
    config = DemoRunConfig(CONFIG.train, replace(TABLE, warp_steps=2))
    with pytest.raises(MicroCinemaError, match="warp_steps cannot be 2: 'tiny-base' has no forward warp, give 0"):
        config.check(tiny_demo_base())
    config.check(replace(DEMO_BASE, network=replace(VARIANTS["like the demo"], context_dim=128)))


@pytest.mark.parametrize("out", ["run.toml", "run.toml/inside", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(toml, tmp_path, out):
    with pytest.raises(MicroCinemaError, match="the folder .* cannot be made .*: choose another one"):
        recipes.main(toml, tmp_path / out, AUTOENCODER)


def test_a_folder_belongs_to_one_run(toml, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(MicroCinemaError, match="another run .* works in .*--out"):
        recipes.main(toml, tmp_path / "run", AUTOENCODER)


def test_a_run_of_other_settings_is_refused_before_it_begins(toml, tmp_path, whole):
    with pytest.raises(MicroCinemaError, match="holds a run with .*learning_rate 0.01.*, not .*--out"):
        recipes.main(toml, whole[0], AUTOENCODER)


def test_a_damaged_shard_is_named(toml, tmp_path):
    make_folder(tmp_path / "scenes")
    shards.shard_path(tmp_path / "scenes", 0, *DEMO_SHAPE).write_bytes(b"half")
    with pytest.raises(MicroCinemaError, match="is damaged .*: delete it"):
        recipes.main(toml, tmp_path / "run", AUTOENCODER | {"shards": "1"})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]


# --- the command ---


def test_the_command_is_stopped_and_goes_on_to_a_model(tmp_path, monkeypatch):
    """20 steps of the demo model at its true size by two processes, on shards that are drawn beforehand and small."""
    with monkeypatch.context() as patch:
        patch.setattr(shards, "CLIPS_PER_SHARD", 18)
        [scenes] = shards.draw_pool(tmp_path / "scenes", 1, *DEMO_SHAPE, workers=1)
        [things] = shards.draw_pool(tmp_path / "scenes", 1, 1, DEMO_BASE.width, workers=1, things=True)
    scenes.rename(shards.shard_path(tmp_path / "scenes", 0, *DEMO_SHAPE))  # under the names of whole ones
    things.rename(shards.shard_path(tmp_path / "scenes", 0, 1, DEMO_BASE.width, things=True))
    model = LoadedModel(DEMO_BASE, build(DEMO_BASE.network), Autoencoder(DEMO_BASE.autoencoder), None)
    save_model(tmp_path / "autoencoder.safetensors", model)
    out = tmp_path / "run"
    settings = {"autoencoder": '"autoencoder.safetensors"', "steps": 20, "batch_size": 2, "shards": 1, "log_every": 1}
    settings |= {"warmup": 5, "threads": 1, "workers": 1, "warp_steps": 4, "text_steps": 20, "warp_shards": 1}
    command = ["train", "configs/demo-base.toml", "--out", str(out)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    running = torchrun(2, *command)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or len(log_of(out)) < 6:
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()[0]
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[0]
    assert "run the same command to go on" in said and running.returncode == 1, said
    assert not (out / "demo-base.safetensors").exists()

    finished = torchrun(2, *command)
    said = finished.communicate(timeout=240)[0]
    assert finished.returncode == 0 and "resumed at step" in said, said
    assert [row["step"] for row in log_of(out) if "loss" in row] == list(range(1, 21))
    assert log_of(out)[-1].keys() >= {"held_out", "held_out_swapped"}
    made = load_model(out / "demo-base.safetensors")
    assert made.text.tokenizer.unknown_words("a red star moves left") == []
    assert made.autoencoder is not None
