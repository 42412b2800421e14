"""A training can be killed and resumed without a trace, logs what it does, and refuses settings that cannot be."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_runs import CONFIG, copy_error, full_disk, log_of, refused_run, run, same_files, train_layer
from torch import nn

from microcinema_core.errors import MicroCinemaError
from microcinema_core.training.config import TrainingConfig
from microcinema_core.training.launch import launch
from microcinema_core.training.trainer import Trainer, check_state

ROOT = Path(__file__).parents[2]


# --- the course of a run ---


def test_learning_rate_rises_stays_and_falls_to_zero(tmp_path):
    config = replace(CONFIG, steps=100, warmup=10, cosine_from=0.5, learning_rate=2.0)
    rate = Trainer(nn.Linear(1, 1), config, tmp_path).learning_rate
    assert [rate(step) for step in (0, 4, 9, 30, 50)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    assert rate(75) == pytest.approx(1.0)
    assert rate(62.5) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(100) == pytest.approx(0, abs=1e-9)


def test_optimiser_follows_the_learning_rate(tmp_path):
    trainer, _ = train_layer(tmp_path)
    logged = [row["learning_rate"] for row in log_of(tmp_path)]
    assert logged == pytest.approx([trainer.learning_rate(step) for step in (1, 3, 5)])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(trainer.learning_rate(5))


def test_average_forgets_exponentially(tmp_path):
    trainer, course = train_layer(tmp_path)
    average = course[0]
    for parameters in course[1:]:
        average = 0.9 * average + 0.1 * parameters
    found = torch.cat([p.flatten() for p in trainer.ema.module.parameters()])
    assert torch.allclose(found, average, atol=1e-6)
    assert not torch.allclose(found, course[-1], atol=1e-4)


def test_loss_falls(tmp_path):
    train_layer(tmp_path, replace(CONFIG, steps=40, learning_rate=0.03, log_every=10))
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[0].keys() >= {"grad_norm", "seconds_per_step"}


def test_samples_are_shown_of_the_average_in_their_turn_and_at_the_end(tmp_path):
    trainer, shown = Trainer(nn.Linear(4, 4), replace(CONFIG, sample_every=4), tmp_path), []

    def show(model, path):
        shown.append((model is trainer.ema.module, path.name))
        return {"held_out": 0.5}

    trainer.run(lambda step, generator: (copy_error(trainer.model, generator), {}), show)
    assert shown == [(True, "samples-000004.png"), (True, "samples-000006.png")]
    assert [row["step"] for row in log_of(tmp_path) if row.get("held_out") == 0.5] == [4, 6]


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    trainer = Trainer(nn.Linear(4, 4), CONFIG, tmp_path)
    weight = trainer.model.weight.detach().clone()
    with pytest.raises(MicroCinemaError, match="not finite at step 0.*learning_rate"):
        trainer.run(lambda step, generator: (trainer.model(torch.full((1, 4), math.nan)).sum(), {}))
    assert torch.equal(trainer.model.weight, weight) and not trainer.state_path.exists()


# --- resuming ---


class PowerCut(Exception):
    pass


def test_a_signal_saves_the_step_and_the_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_layer(tmp_path, at=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert Trainer(nn.Linear(4, 4), CONFIG, tmp_path).step == 3


@pytest.mark.parametrize("end", ["signal", "power cut"])
def test_resumed_it_is_the_run_that_was_never_stopped(tmp_path, end):
    def at(step):
        if step == 3 and end == "power cut":
            raise PowerCut  # the state was saved at step 2
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    train_layer(tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, PowerCut)):
        train_layer(tmp_path / "stopped", at=at)
    train_layer(tmp_path / "stopped")
    assert same_files(tmp_path / "whole" / "state.safetensors", tmp_path / "stopped" / "state.safetensors")


def test_a_finished_run_is_not_run_again(tmp_path):
    _, course = train_layer(tmp_path)
    _, again = train_layer(tmp_path)
    assert len(course) == 6 and again == []


def test_a_state_of_another_model_is_named(tmp_path):
    train_layer(tmp_path)
    with pytest.raises(MicroCinemaError, match="state.safetensors does not fit this run .*size mismatch.*--out"):
        Trainer(nn.Linear(5, 5), CONFIG, tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"half")
    with pytest.raises(MicroCinemaError, match="does not fit this run"):
        Trainer(nn.Linear(4, 4), CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "with seed 0, not 1"),
        ({"learning_rate": 0.02}, "with learning_rate 0.01, not 0.02"),
        ({"ema": 0.5}, "with ema 0.9, not 0.5"),
        ({"batch_size": 4}, "with batch_size 2, not 4"),
        ({"betas": (0.5, 0.9)}, r"with betas \[0.9, 0.99\], not \[0.5, 0.9\]"),
        ({"seed": 7, "warmup": 3}, "with seed 0, warmup 2, not 7, 3"),
        ({"steps": 2}, "is at step 6 already: give steps of at least 6"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(tmp_path, change, words):
    train_layer(tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    other = replace(CONFIG, **change)
    for go_on in (
        lambda: Trainer(nn.Linear(4, 4), other, tmp_path),
        lambda: check_state(tmp_path, other.steps, other.identity()),
    ):
        with pytest.raises(MicroCinemaError, match=f"state.safetensors .*{words}.*--out"):
            go_on()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_the_step_of_a_run_is_read_from_its_state(tmp_path):
    assert check_state(tmp_path, CONFIG.steps, CONFIG.identity()) == 0
    train_layer(tmp_path)
    assert check_state(tmp_path, CONFIG.steps, CONFIG.identity()) == 6


def test_a_run_goes_on_longer_and_with_another_log(tmp_path):
    train_layer(tmp_path)
    free = {"steps": 8, "log_every": 1, "sample_every": 3, "save_every": 1, "threads": 2, "workers": 2}
    trainer, course = train_layer(tmp_path, replace(CONFIG, **free))
    assert trainer.step == 8 and len(course) == 2


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    train_layer(tmp_path)  # whose data have no name
    with pytest.raises(MicroCinemaError, match='with data "", not "scenes-2"'):
        Trainer(nn.Linear(4, 4), CONFIG, tmp_path, data="scenes-2")


def test_a_state_of_release_0_1_goes_on(tmp_path):
    train_layer(tmp_path)
    state = tmp_path / "state.safetensors"
    save_file(load_file(state), state, {"step": "6"})
    assert Trainer(nn.Linear(4, 4), replace(CONFIG, seed=5), tmp_path).step == 6


@pytest.mark.parametrize("long_log", [False, True])
def test_a_full_disk_leaves_the_old_state_whole(tmp_path, long_log):
    train_layer(tmp_path, replace(CONFIG, steps=2))
    if long_log:  # it is the first that does not fit
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 1}\n' * 100)
    before = (tmp_path / "state.safetensors").read_bytes()
    name = "log.jsonl" if long_log else "state.safetensors"
    with full_disk(1000), pytest.raises(MicroCinemaError, match=f"{name}' could not be written .*: make room on the"):
        train_layer(tmp_path, replace(CONFIG, save_every=6))
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "log.jsonl"}
    trainer, _ = train_layer(tmp_path)
    assert trainer.step == 6
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [2, 4, 6]


# --- processes ---


def test_two_processes_average_their_gradients(tmp_path):
    """The run is that of one process with the batches of both."""
    config = replace(CONFIG, processes=2)
    launch(run, config, tmp_path / "shared")
    torch.manual_seed(0)
    trainer = Trainer(nn.Linear(4, 4), CONFIG, tmp_path / "alone")

    def loss(step, generator):
        second = torch.Generator().manual_seed(generator.initial_seed() + 1)  # as of the process of that rank
        return (copy_error(trainer.model, generator) + copy_error(trainer.model, second)) / 2, {}

    trainer.run(loss)
    shared, alone = (load_file(tmp_path / name / "state.safetensors") for name in ("shared", "alone"))
    assert shared.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=1e-4, atol=1e-6)
    assert [row["step"] for row in log_of(tmp_path / "shared")] == [2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        "log.jsonl",
        "run.lock",
        "state.safetensors",
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_ends_one_of_several_processes_is_reported_in_one_sentence(tmp_path, processes):
    with pytest.raises(MicroCinemaError, match="^the data are damaged: fetch them again$"):
        launch(refused_run, replace(CONFIG, processes=processes), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


HOLD = """
import sys, time
from pathlib import Path
from microcinema_core.files import locked, part_name
with locked(Path(sys.argv[1])):
    part_name(Path(sys.argv[1]) / "state.safetensors").touch()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_run_until_that_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        [part] = tmp_path.glob(f".state.part-*.{holder.pid}.safetensors")
        for processes in (1, 2):
            with pytest.raises(MicroCinemaError, match=f"another run .process {holder.pid}. works in .*--out"):
                launch(run, replace(CONFIG, processes=processes), tmp_path)
        assert part.exists()
    finally:
        holder.kill()
        holder.wait()
    (tmp_path / "mine.safetensors").touch()
    launch(run, CONFIG, tmp_path)
    names = {"run.lock", "mine.safetensors", "state.safetensors", "log.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


# --- settings ---

GOOD = 'model = "tiny"\nsteps = 3\nbatch_size = 1\nlearning_rate = 1e-3\n'


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (GOOD + "colour = 1", {}, ["unknown setting colour", "batch_size"]),
        (GOOD, {"colour": "1"}, ["unknown setting colour", "batch_size"]),
        (GOOD + "steps", {}, ["run.toml", "not valid TOML"]),
        (GOOD, {"steps": "many"}, ["run.toml", "not valid TOML"]),
        (GOOD, {"steps": '"many"'}, ["steps", "'many'"]),
        (GOOD, {"batch_size": "2.5"}, ["batch_size", "2.5"]),
        (GOOD, {"batch_size": "0"}, ["batch_size", "0"]),
        (GOOD, {"warmup": "0"}, ["warmup", "0"]),
        (GOOD.replace("batch_size", "workers"), {}, ["run.toml", "batch_size"]),
        (b"\xff\xd8\xff\xe0", {}, ["run.toml", "not valid TOML"]),
        ("steps = " + "[" * 100_000, {}, ["run.toml", "not valid TOML"]),
        (GOOD, {"ema": "nan"}, ["ema cannot be nan: give a number from 0 to below 1, such as 0.998"]),
        (GOOD, {"ema": "1.0"}, ["ema cannot be 1.0: give a number from 0 to below 1"]),
        (GOOD, {"clip_norm": "-1"}, ["clip_norm cannot be -1: give a number above 0"]),
        (GOOD, {"cosine_from": "nan"}, ["cosine_from cannot be nan: give a number from 0 to 1 (a share)"]),
        (
            GOOD,
            {"learning_rate": "-1"},
            ["learning_rate cannot be -1: give a number above 0 and up to 10, such as"],
        ),
        (GOOD, {"learning_rate": "inf"}, ["learning_rate cannot be inf: give a number above 0"]),
        (GOOD, {"betas": "[]"}, ["betas cannot be []: give two numbers from 0 to below 1, such as [0.9, 0.99]"]),
        (GOOD, {"betas": "[0.9, 1]"}, ["betas cannot be [0.9, 1]: give two numbers from 0 to below 1"]),
        (GOOD, {"seed": "-1"}, ["seed cannot be -1: give a whole number from 0"]),
        (GOOD, {"steps": "10000000000"}, ["steps cannot be 10000000000: give a whole number from 1 to 1000000000"]),
        (GOOD, {"batch_size": "3", "processes": "2"}, ["batch_size cannot be 3: give a multiple of processes (2)"]),
        (None, {}, ["run.toml", "No such file", "configs/"]),
    ],
)
def test_bad_settings_are_named(tmp_path, text, overrides, words):
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(MicroCinemaError) as caught:
        TrainingConfig.read(path, overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_come_from_the_file_and_from_what_overrides_it(tmp_path):
    (tmp_path / "run.toml").write_text(GOOD)
    config = TrainingConfig.read(tmp_path / "run.toml", {"seed": "7", "sheet_every": "9"})  # the latter as in 0.1
    assert config == TrainingConfig(model="tiny", steps=3, batch_size=1, learning_rate=1e-3, seed=7, sample_every=9)


@pytest.mark.parametrize("out", ["run.toml", "run.toml/inside", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, out):
    (tmp_path / "run.toml").write_text(GOOD)
    with pytest.raises(MicroCinemaError, match="the folder .* cannot be made .*: choose another one"):
        launch(run, CONFIG, tmp_path / out)
