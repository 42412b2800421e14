"""A training can be killed and resumed without a trace, whatever the number of its processes, logs what it does, and
refuses settings that cannot be."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from short_runs import (
    ALONE,
    CONFIG,
    Copy,
    batches_of,
    changed,
    full_disk,
    log_of,
    same_states,
    state_of,
    torchrun,
    train_layer,
)
from torch import nn

from microcinema_core.errors import MicroCinemaError
from microcinema_core.training.config import RunConfig, TrainConfig
from microcinema_core.training.distributed import processes, training_device
from microcinema_core.training.ema import Ema, power_exponent
from microcinema_core.training.states import check_state, states
from microcinema_core.training.trainer import Trainer, on_device

ROOT = Path(__file__).parents[2]


def trainer_in(folder: Path, config: RunConfig = CONFIG, width: int = 4) -> Trainer:
    return Trainer(Copy(width), config, folder, ALONE)


# --- the course of a run ---


def test_learning_rate_rises_stays_and_falls_to_zero(tmp_path):
    config = changed(steps=100, warmup=10, cosine_from=0.5, learning_rate=2.0)
    rate = trainer_in(tmp_path, config).learning_rate
    assert [rate(step) for step in (0, 4, 9, 30, 50)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    assert rate(75) == pytest.approx(1.0)
    assert rate(62.5) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(100) == pytest.approx(0, abs=1e-9)


def test_a_batch_goes_to_the_device_whole():
    @dataclass
    class Inner:
        values: torch.Tensor

    @dataclass
    class Batch:
        inner: Inner
        others: tuple
        time: float
        missing: torch.Tensor | None = None

    given = Batch(Inner(torch.ones(2)), (torch.ones(3), "text"), 0.5)
    moved = on_device(given, torch.device("meta"))
    assert moved.inner.values.is_meta and moved.others[0].is_meta and moved.others[1] == "text"
    assert (moved.time, moved.missing) == (0.5, None) and not given.inner.values.is_meta


def test_optimiser_follows_the_learning_rate(tmp_path):
    trainer, _ = train_layer(tmp_path)
    logged = [row["learning_rate"] for row in log_of(tmp_path)]
    assert logged == pytest.approx([trainer.learning_rate(step) for step in (1, 3, 5)])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(trainer.learning_rate(5))


def test_a_group_of_parameters_learns_at_its_part_of_the_rate(tmp_path):
    class TwoRates(Copy):
        def parameter_groups(self):
            return [{"params": [self.layer.weight], "factor": 1.0}, {"params": [self.layer.bias], "factor": 0.1}]

    trainer = Trainer(TwoRates(), CONFIG, tmp_path, ALONE)
    trainer.run(batches_of(CONFIG))
    weight, bias = (group["lr"] for group in trainer.optimizer.param_groups)
    assert bias == pytest.approx(0.1 * weight) and weight == pytest.approx(trainer.learning_rate(5))


def test_average_forgets_exponentially(tmp_path):
    trainer, course = train_layer(tmp_path)
    average = course[0]
    for parameters in course[1:]:
        average = 0.9 * average + 0.1 * parameters
    found = torch.cat([tensor.flatten() for tensor in trainer.averages[0].averages.values()])
    assert torch.allclose(found, average, atol=1e-6)
    assert not torch.allclose(found, course[-1], atol=1e-4)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_a_power_function_average_weighs_the_past_by_its_power(std):
    """Over many steps the weight of step t is proportional to t^γ (arXiv 2312.02696, eq. 122)."""
    exponent, layer = power_exponent(std), nn.Linear(1, 1, bias=False)
    assert (exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)) == pytest.approx(std**2)
    ema, steps = Ema(layer, std=std), 2000
    for step in range(1, steps + 1):
        layer.weight.data.fill_(step / steps)
        ema.update(step)
    assert ema.averages["weight"].item() == pytest.approx((exponent + 1) / (exponent + 2), abs=2e-3)


def test_the_weights_return_after_the_averages_were_used(tmp_path):
    trainer, _ = train_layer(tmp_path)
    before, average = trainer.objective.layer.weight.clone(), trainer.averages[0].averages["layer.weight"].clone()
    with pytest.raises(ZeroDivisionError), trainer.averages[0].applied():
        assert torch.equal(trainer.objective.layer.weight, average)
        raise ZeroDivisionError
    assert torch.equal(trainer.objective.layer.weight, before)
    assert torch.equal(trainer.averages[0].averages["layer.weight"], average)


def test_loss_falls(tmp_path):
    train_layer(tmp_path, changed(steps=40, learning_rate=0.03, log_every=10))
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[0].keys() >= {"grad_norm", "seconds_per_step", "clips_per_second", "waiting", "error"}


def test_the_console_tells_a_person_where_the_run_stands(tmp_path, capsys):
    train_layer(tmp_path, changed(steps=4))
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("step 2/4  loss ") and line.endswith("0 s left") and "clips/s  waiting" in line


def test_accumulated_micro_batches_are_the_whole_batch(tmp_path):
    train_layer(tmp_path / "whole")
    train_layer(tmp_path / "parts", changed(micro_batch=2))
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert max((whole[key] - parts[key]).abs().max() for key in whole) < 1e-6


def test_samples_are_shown_of_the_average_in_their_turn_and_at_the_end(tmp_path):
    trainer, shown = trainer_in(tmp_path, changed(sample_every=4)), []

    def show(folder, stem):
        shown.append((folder, stem, trainer.objective.layer.weight.clone()))
        return {"held_out": 0.5}

    trainer.run(batches_of(CONFIG), show)
    assert [(folder, stem) for folder, stem, _ in shown] == [(tmp_path, "samples-000004"), (tmp_path, "samples-000006")]
    assert torch.equal(shown[-1][2], trainer.objective.layer.weight)  # which are the averages after the run
    assert [row["step"] for row in log_of(tmp_path) if row.get("held_out") == 0.5] == [4, 6]


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    trainer = trainer_in(tmp_path)
    weight = trainer.objective.layer.weight.detach().clone()
    with pytest.raises(MicroCinemaError, match="not finite at step 0.*learning_rate"):
        trainer.run(lambda first: iter([[torch.full((1, 4), math.nan)]]))
    assert torch.equal(trainer.objective.layer.weight, weight) and not states(tmp_path)


def test_a_rehearsed_step_changes_nothing(tmp_path):
    train_layer(tmp_path / "plain")
    trainer = trainer_in(tmp_path / "rehearsed")
    trainer.rehearse(torch.randn(6, 4))
    trainer.run(batches_of(CONFIG))
    trainer.averages[0].exchange()
    assert same_states(tmp_path / "plain", tmp_path / "rehearsed")


def test_the_moments_are_there_while_a_step_is_rehearsed(tmp_path, monkeypatch):
    """As from the second step on, when the memory is fullest."""
    trainer, moments = trainer_in(tmp_path), []
    forward = trainer.objective.forward

    def counting(*arguments):
        moments.append(len(trainer.optimizer.state))
        return forward(*arguments)

    monkeypatch.setattr(trainer.objective, "forward", counting)
    trainer.rehearse(torch.randn(6, 4))
    assert moments == [2] and not trainer.optimizer.state


def test_memory_that_is_too_small_is_named_before_the_first_step(tmp_path, monkeypatch):
    trainer = trainer_in(tmp_path)

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(trainer.objective, "forward", out_of_memory)
    with pytest.raises(MicroCinemaError, match="6 clips does not fit into the memory of cpu: give a lower micro_batch"):
        trainer.rehearse(torch.randn(6, 4))


# --- resuming ---


class PowerCut(Exception):
    pass


def test_a_signal_saves_the_step_and_the_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_layer(tmp_path, at=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert trainer_in(tmp_path).step == 3


@pytest.mark.parametrize("end", ["signal", "power cut"])
@pytest.mark.parametrize("settings", [{}, {"ema_std": (0.05, 0.1), "micro_batch": 3}], ids=["plain", "averages"])
def test_resumed_it_is_the_run_that_was_never_stopped(tmp_path, end, settings):
    config = changed(**settings)

    def at(step):
        if step == 3 and end == "power cut":
            raise PowerCut  # the state was saved at step 2
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    train_layer(tmp_path / "whole", config)
    with pytest.raises((KeyboardInterrupt, PowerCut)):
        train_layer(tmp_path / "stopped", config, at=at)
    train_layer(tmp_path / "stopped", config)
    assert same_states(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path, delay):
    settings = json.dumps({"steps": 200, "save_every": 1, "log_every": 50})
    command = [sys.executable, "-m", "short_runs", str(tmp_path / "killed"), settings]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests/helpers'}:{ROOT}"}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not states(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    killed_at = int(states(tmp_path / "killed")[-1].name.removeprefix("step-"))
    assert killed_at < 200
    config = changed(steps=200, save_every=1, log_every=50)
    train_layer(tmp_path / "killed", config)
    train_layer(tmp_path / "whole", config)
    assert same_states(tmp_path / "whole", tmp_path / "killed")
    assert [row["step"] for row in log_of(tmp_path / "killed")] == [50, 100, 150, 200]


def test_old_states_make_room_for_new_ones(tmp_path):
    train_layer(tmp_path, changed(save_every=1, keep=3))
    assert [path.name for path in states(tmp_path)] == ["step-00000004", "step-00000005", "step-00000006"]


def test_a_finished_run_is_not_run_again(tmp_path):
    _, course = train_layer(tmp_path)
    _, again = train_layer(tmp_path)
    assert len(course) == 6 and len(again) == 0


def test_a_state_of_another_model_is_named(tmp_path):
    train_layer(tmp_path)
    with pytest.raises(
        MicroCinemaError, match=r"step-00000006' does not fit this run .*layer.weight is \(4, 4\), not .5"
    ):
        trainer_in(tmp_path, width=5)
    (states(tmp_path)[-1] / ".metadata").write_bytes(b"half")
    with pytest.raises(MicroCinemaError, match="does not fit this run"):
        trainer_in(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "with train.seed 0, not 1"),
        ({"learning_rate": 0.02}, "with train.learning_rate 0.01, not 0.02"),
        ({"ema": 0.5}, "with train.ema 0.9, not 0.5"),
        ({"batch_size": 4}, "with train.batch_size 6, not 4"),
        ({"betas": (0.5, 0.9)}, r"with train.betas \[0.9, 0.99\], not \[0.5, 0.9\]"),
        ({"seed": 7, "warmup": 3}, "with train.seed 0, train.warmup 2, not 7, 3"),
        ({"steps": 2}, "is at step 6 already: give steps of at least 6"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(tmp_path, change, words):
    train_layer(tmp_path)
    before = state_of(tmp_path)
    other = changed(**change)
    for go_on in (
        lambda: trainer_in(tmp_path, other),
        lambda: check_state(tmp_path, other.train.steps, other.identity()),
    ):
        with pytest.raises(MicroCinemaError, match=f"{words}.*--out"):
            go_on()
    assert all(torch.equal(before[key], value) for key, value in state_of(tmp_path).items())


def test_the_step_of_a_run_is_read_from_its_state(tmp_path):
    assert check_state(tmp_path, CONFIG.train.steps, CONFIG.identity()) == 0
    train_layer(tmp_path)
    assert check_state(tmp_path, CONFIG.train.steps, CONFIG.identity()) == 6


def test_a_run_goes_on_longer_and_with_another_log(tmp_path):
    train_layer(tmp_path)
    free = {
        "steps": 8,
        "log_every": 1,
        "sample_every": 3,
        "save_every": 1,
        "threads": 2,
        "workers": 2,
        "micro_batch": 3,
    }
    trainer, course = train_layer(tmp_path, changed(**free))
    assert trainer.step == 8 and len(course) == 4  # two micro-batches a step


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    train_layer(tmp_path)  # whose data have no name
    with pytest.raises(MicroCinemaError, match='with data "", not "scenes-2"'):
        Trainer(Copy(), CONFIG, tmp_path, ALONE, data="scenes-2")


def test_a_state_of_release_0_1_is_named(tmp_path):
    (tmp_path / "state.safetensors").touch()
    with pytest.raises(MicroCinemaError, match="is of release 0.1 and cannot go on: choose another --out"):
        trainer_in(tmp_path)


@pytest.mark.parametrize("long_log", [False, True])
def test_a_full_disk_leaves_the_old_state_whole(tmp_path, long_log):
    train_layer(tmp_path, changed(steps=2))
    if long_log:  # it is the first that does not fit
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 1}\n' * 300)
    before = state_of(tmp_path)
    name = "log.jsonl" if long_log else "step-00000006"
    with full_disk(3000), pytest.raises(MicroCinemaError, match=f"{name}' could not be written .*: make room on the"):
        train_layer(tmp_path, changed(save_every=6))
    assert all(torch.equal(before[key], value) for key, value in state_of(tmp_path).items())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    trainer, _ = train_layer(tmp_path)
    assert trainer.step == 6
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [2, 4, 6]


# --- processes ---


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train_layer(folder)
    return folder


@pytest.mark.parametrize(
    ("count", "settings"),
    [(2, {}), (3, {"micro_batch": 1}), (2, {"strategy": "fsdp2"}), (3, {"strategy": "fsdp2", "micro_batch": 1})],
    ids=["ddp 2", "ddp 3", "fsdp2 2", "fsdp2 3"],
)
def test_processes_that_share_a_batch_learn_what_one_learns(tmp_path, alone, count, settings):
    shared = torchrun(count, tmp_path, json.dumps(settings), module="short_runs")
    output = shared.communicate(timeout=120)[0]
    assert shared.returncode == 0, output
    first, second = state_of(alone), state_of(tmp_path)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6)
    losses = [[row["loss"] for row in log_of(folder)] for folder in (alone, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def test_another_number_of_processes_goes_on_with_a_run(tmp_path, alone):
    first = torchrun(2, tmp_path, json.dumps({"steps": 6, "strategy": "fsdp2", "save_every": 2}), module="short_runs")
    while not states(tmp_path) and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    time.sleep(0.5)
    for newer in states(tmp_path)[1:]:
        shutil.rmtree(newer)
    train_layer(tmp_path)
    for key, value in state_of(alone).items():
        torch.testing.assert_close(state_of(tmp_path)[key], value, rtol=1e-5, atol=1e-6)


def test_a_process_that_dies_ends_the_run_and_leaves_its_last_state(tmp_path):
    settings = json.dumps({"steps": 10**6, "save_every": 10, "log_every": 1000})
    started = torchrun(2, tmp_path, settings, module="short_runs")
    while len(states(tmp_path)) < 2 and started.poll() is None:
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    ended = time.monotonic()
    output = started.communicate(timeout=60)[0]
    assert time.monotonic() - ended < 60 and started.returncode != 0
    assert "SIGKILL" in output
    step = int(states(tmp_path)[-1].name.removeprefix("step-"))
    assert trainer_in(tmp_path, changed(steps=10**6, save_every=10, log_every=1000)).step == step


SLOW_START = """
import sys, time
from datetime import timedelta
from pathlib import Path
from short_runs import CONFIG
from microcinema_core.training import distributed
distributed.TIMEOUT = timedelta(seconds=2)
with distributed.processes(CONFIG.train, Path(sys.argv[1])) as world:
    for seconds in (4, 0):
        with world.first_goes_first():
            if world.first:
                time.sleep(seconds)
                (Path(sys.argv[1]) / f"found{seconds}").touch()
            assert (Path(sys.argv[1]) / f"found{seconds}").exists()
    print(f"all {world.count}" if world.gather(world.rank) == [0, 1] else "", flush=True)
"""


def test_the_others_wait_for_the_first_longer_than_for_a_step(tmp_path):
    (tmp_path / "slow_start.py").write_text(SLOW_START)
    paths = f"{tmp_path}:{ROOT / 'tests/helpers'}:{ROOT}"
    started = torchrun(2, tmp_path / "run", module="slow_start", PYTHONPATH=paths)
    output = started.communicate(timeout=120)[0]
    assert started.returncode == 0 and output.count("all 2") == 2, output


@pytest.mark.parametrize(
    ("settings", "count", "words"),
    [
        ({"batch_size": 5}, 2, "batch_size cannot be 5 with 2 processes: give a multiple of 2"),
        ({"micro_batch": 4}, 1, "micro_batch cannot be 4: give 0 or a divisor of the 6 clips of a process"),
        ({"micro_batch": 6}, 2, "micro_batch cannot be 6: give 0 or a divisor of the 3 clips of a process"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_named(settings, count, words):
    with pytest.raises(MicroCinemaError, match=words):
        changed(**settings).train.share(count)


def test_a_device_that_is_not_there_is_named():
    for name in ("cuda" if not torch.cuda.is_available() else "cuda:99", "toaster"):
        with pytest.raises(MicroCinemaError, match=f"train.device cannot be '{name}' here: give auto, cpu or cuda"):
            training_device(name)


HOLD = """
import sys, time
from pathlib import Path
from microcinema_core.files import locked, part_name
with locked(Path(sys.argv[1])):
    part_name(Path(sys.argv[1]) / "model.safetensors").touch()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_run_until_that_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        [part] = tmp_path.glob(f".model.part-*.{holder.pid}.safetensors")
        with pytest.raises(MicroCinemaError, match=f"another run .process {holder.pid}. works in .*--out"):
            train_layer(tmp_path)
        assert part.exists()
    finally:
        holder.kill()
        holder.wait()
    (tmp_path / "mine.safetensors").touch()
    train_layer(tmp_path)
    names = {"run.lock", "mine.safetensors", "checkpoints", "log.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} - {"tensorboard"} == names


# --- settings ---

GOOD = "[train]\nsteps = 3\nbatch_size = 1\nlearning_rate = 1e-3\n"


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (GOOD + "colour = 1", {}, ["train.colour is unknown"]),
        ("colour = 1\n" + GOOD, {}, ["unknown setting colour", "train.batch_size"]),
        (GOOD, {"train.colour": "1"}, ["train.colour is unknown"]),
        (GOOD, {"train.steps.x": "1"}, ["names a table, but steps is a value"]),
        (GOOD, {"colour": "1"}, ["unknown setting colour", "batch_size"]),
        (GOOD + "steps", {}, ["run.toml", "not valid TOML"]),
        (GOOD, {"train.steps": "many"}, ["train.steps", "'many'"]),
        (GOOD, {"steps": '"many"'}, ["steps", "'many'"]),
        (GOOD, {"batch_size": "2.5"}, ["batch_size", "2.5"]),
        (GOOD, {"batch_size": "0"}, ["batch_size", "0"]),
        (GOOD, {"warmup": "0"}, ["warmup", "0"]),
        (GOOD.replace("batch_size", "workers"), {}, ["run.toml", "batch_size"]),
        (b"\xff\xd8\xff\xe0", {}, ["run.toml", "not valid TOML"]),
        ("steps = " + "[" * 100_000, {}, ["run.toml", "not valid TOML"]),
        (GOOD, {"ema": "nan"}, ["train.ema cannot be nan: give a number from 0 to below 1, such as 0.998"]),
        (GOOD, {"ema": "1.0"}, ["train.ema cannot be 1.0: give a number from 0 to below 1"]),
        (GOOD, {"clip_norm": "-1"}, ["train.clip_norm cannot be -1: give a number above 0"]),
        (GOOD, {"cosine_from": "nan"}, ["train.cosine_from cannot be nan: give a number from 0 to 1 (a share)"]),
        (
            GOOD,
            {"learning_rate": "-1"},
            ["train.learning_rate cannot be -1: give a number above 0 and up to 10, such as"],
        ),
        (GOOD, {"learning_rate": "inf"}, ["train.learning_rate cannot be inf: give a number above 0"]),
        (GOOD, {"betas": "[]"}, ["train.betas cannot be []: give two numbers from 0 to below 1, such as [0.9, 0.99]"]),
        (GOOD, {"betas": "[0.9, 1]"}, ["train.betas cannot be [0.9, 1]: give two numbers from 0 to below 1"]),
        (GOOD, {"seed": "-1"}, ["train.seed cannot be -1: give a whole number from 0"]),
        (
            GOOD,
            {"steps": "10000000000"},
            ["train.steps cannot be 10000000000: give a whole number from 1 to 1000000000"],
        ),
        (GOOD, {"processes": "2"}, ["there is no setting processes any more: start several with torchrun"]),
        (GOOD, {"strategy": "zero"}, ["train.strategy cannot be 'zero': give 'ddp' or 'fsdp2'"]),
        (GOOD, {"ema_std": "[0.3]"}, ["train.ema_std cannot be [0.3]: give at most 4 numbers above 0"]),
        (None, {}, ["run.toml", "No such file", "configs/"]),
    ],
)
def test_bad_settings_are_named(tmp_path, text, overrides, words):
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(MicroCinemaError) as caught:
        RunConfig.read(path, overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_come_from_the_file_and_from_what_overrides_it(tmp_path):
    (tmp_path / "run.toml").write_text(GOOD)
    config = RunConfig.read(tmp_path / "run.toml", {"train.seed": "7", "sheet_every": "9"})  # the latter as in 0.1
    assert config == RunConfig(TrainConfig(steps=3, batch_size=1, learning_rate=1e-3, seed=7, sample_every=9))


@pytest.mark.parametrize("out", ["run.toml", "run.toml/inside", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, out):
    (tmp_path / "run.toml").write_text(GOOD)
    cannot = pytest.raises(MicroCinemaError, match="the folder .* cannot be made .*: choose another one")
    with cannot, processes(CONFIG.train, tmp_path / out):
        pass
