"""Training can be killed and resumed without a trace, says what it does in its log, and ends in a model file."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from microcinema_core.checkpoint import LoadedModel, load_model, save_model
from microcinema_core.config import DEMO_BASE, DEMO_INTERPOLATION
from microcinema_core.errors import MicroCinemaError
from microcinema_core.metrics import psnr
from microcinema_core.model import MicroCinemaUNet
from microcinema_core.model.autoencoder import Autoencoder
from microcinema_core.model.text import TextEncoder, word_tokenizer
from microcinema_core.model.unet import pooled
from microcinema_core.model.warp import NAMED, ForwardWarp
from microcinema_core.training import autoencoder as autoencoder_training
from microcinema_core.training import data, diffusion, trainer
from microcinema_core.training.captions import COLOURS, all_words, random_caption, reverse
from microcinema_core.training.config import TrainingConfig
from microcinema_core.training.files import locked
from microcinema_core.training.loop import Trainer
from microcinema_core.training.scenes import draw_clip
from microcinema_core.training.text import learn_to_read

ROOT = Path(__file__).parents[1]
CONFIG = TrainingConfig(
    task="diffusion", model="tiny", steps=6, batch_size=2, learning_rate=1e-2, warmup=2, shards=1, ema=0.9,
    log_every=2, sheet_every=6, save_every=2, threads=1, workers=1, text_steps=2,
)  # fmt: skip


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_files(first, second):
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- the loop, with a model of one layer ---


def small_run(folder, config=CONFIG, at=lambda step: None):
    """Teach a layer to copy; `at` is called with each step. Returns the trainer and the parameters after each step."""
    torch.manual_seed(0)
    loop, course = Trainer(nn.Linear(4, 4), config, folder), []

    def loss(step, generator):
        course.append(torch.cat([p.detach().flatten().clone() for p in loop.model.parameters()]))
        at(step)
        x = torch.randn(8, 4, generator=generator)
        return (loop.model(x) - x).square().mean(), {}

    loop.run(loss)
    course.append(torch.cat([p.detach().flatten().clone() for p in loop.model.parameters()]))
    return loop, course[1:]


def test_learning_rate_rises_stays_and_falls_to_zero(tmp_path):
    config = replace(CONFIG, steps=100, warmup=10, cosine_from=0.5, learning_rate=2.0)
    rate = Trainer(nn.Linear(1, 1), config, tmp_path).learning_rate
    assert [rate(step) for step in (0, 4, 9, 30, 50)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    assert rate(75) == pytest.approx(1.0)
    assert rate(62.5) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(100) == pytest.approx(0, abs=1e-9)


def test_optimiser_follows_the_learning_rate(tmp_path):
    loop, _ = small_run(tmp_path)
    logged = [row["learning_rate"] for row in log_of(tmp_path)]
    assert logged == pytest.approx([loop.learning_rate(step) for step in (1, 3, 5)])
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(loop.learning_rate(5))


def test_average_forgets_exponentially(tmp_path):
    loop, course = small_run(tmp_path)
    average = course[0]
    for parameters in course[1:]:
        average = 0.9 * average + 0.1 * parameters
    found = torch.cat([p.flatten() for p in loop.ema.module.parameters()])
    assert torch.allclose(found, average, atol=1e-6)
    assert not torch.allclose(found, course[-1], atol=1e-4)


def test_loss_falls(tmp_path):
    small_run(tmp_path, replace(CONFIG, steps=40, learning_rate=0.03, log_every=10))
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[0].keys() >= {"grad_norm", "seconds_per_step"}


def test_a_signal_saves_the_step_and_the_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, at=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert Trainer(nn.Linear(4, 4), CONFIG, tmp_path).step == 3


def test_a_finished_run_is_not_run_again(tmp_path):
    _, course = small_run(tmp_path)
    _, again = small_run(tmp_path)
    assert len(course) == 6 and again == []


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    loop = Trainer(nn.Linear(4, 4), CONFIG, tmp_path)
    weight = loop.model.weight.detach().clone()
    with pytest.raises(MicroCinemaError, match="not finite at step 0.*learning_rate"):
        loop.run(lambda step, generator: (loop.model(torch.full((1, 4), math.nan)).sum(), {}))
    assert torch.equal(loop.model.weight, weight) and not loop.state_path.exists()


def test_a_state_of_another_model_is_named(tmp_path):
    small_run(tmp_path)
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
    small_run(tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(MicroCinemaError, match=f"state.safetensors .*{words}.*--out"):
        Trainer(nn.Linear(4, 4), replace(CONFIG, **change), tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_run_goes_on_longer_and_with_another_log(tmp_path):
    small_run(tmp_path)
    free = {"steps": 8, "log_every": 1, "sheet_every": 3, "save_every": 1, "threads": 2, "workers": 2}
    loop, course = small_run(tmp_path, replace(CONFIG, **free))
    assert loop.step == 8 and len(course) == 2


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    small_run(tmp_path)  # whose data have no name
    with pytest.raises(MicroCinemaError, match='with data "", not "scenes-2"'):
        Trainer(nn.Linear(4, 4), CONFIG, tmp_path, data="scenes-2")


def test_a_state_of_release_0_1_goes_on(tmp_path):
    small_run(tmp_path)
    state = tmp_path / "state.safetensors"
    save_file(load_file(state), state, {"step": "6"})
    assert Trainer(nn.Linear(4, 4), replace(CONFIG, seed=5), tmp_path).step == 6


@contextmanager
def full_disk(room):
    """No file can grow beyond `room` bytes."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("long_log", [False, True])
def test_a_full_disk_leaves_the_old_state_whole(tmp_path, long_log):
    small_run(tmp_path, replace(CONFIG, steps=2))
    if long_log:  # it is the first that does not fit
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 1}\n' * 100)
    before = (tmp_path / "state.safetensors").read_bytes()
    name = "log.jsonl" if long_log else "state.safetensors"
    with full_disk(1000), pytest.raises(MicroCinemaError, match=f"{name}' could not be written .*: make room .*go on"):
        small_run(tmp_path, replace(CONFIG, save_every=6))
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "log.jsonl"}
    loop, _ = small_run(tmp_path)
    assert loop.step == 6
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [2, 4, 6]


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CLIPS_PER_SHARD", 2)
    with full_disk(1000), pytest.raises(MicroCinemaError, match="scenes-16px.*could not be written .*make room"):
        data.draw_shard(tmp_path, 0, 3, 16, False)
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from microcinema_core.training.files import locked
with locked(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "state.safetensors.1.part").touch()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_run_until_that_dies(tmp_path):
    (tmp_path / "run.toml").write_text(GOOD)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for processes in (1, 2):
            settings = {**AUTOENCODER, "batch_size": "2", "processes": str(processes)}
            with pytest.raises(MicroCinemaError, match=f"another run .process {holder.pid}. works in .*--out"):
                trainer.main(tmp_path / "run.toml", tmp_path, settings)
        assert (tmp_path / "state.safetensors.1.part").exists()
    finally:
        holder.kill()
        holder.wait()
    (tmp_path / ".sheet-000500.77.png").touch()  # as images.whole_file names it
    (tmp_path / "mine.safetensors").touch()
    with locked(tmp_path, keep="processes.5.part"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "run.toml", "mine.safetensors"}


def test_what_ends_one_of_several_processes_is_told_in_one_sentence(tmp_path):
    (tmp_path / "run.toml").write_text(GOOD)
    shape = DEMO_BASE.network.frames, DEMO_BASE.width, False
    data.make_folder(tmp_path / "scenes")
    data.shard_path(tmp_path / "scenes", 0, *shape).write_bytes(b"half")
    settings = {**AUTOENCODER, "batch_size": "2", "processes": "2", "shards": "1"}
    with pytest.raises(MicroCinemaError, match="is damaged .*: delete it"):
        trainer.main(tmp_path / "run.toml", tmp_path / "run", settings)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]


# --- the diffusion model ---


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def runs(tiny_config, tiny_ends_config, tiny_model, tmp_path_factory):
    """Runs of one tiny configuration over one pool of 20 scenes: `run(name, at)` calls `at` at every step."""
    root = tmp_path_factory.mktemp("runs")

    def run(name, at=lambda step: None, kind="centre"):
        losses, steps = diffusion.Objective.losses, []

        def watched(objective, model, *arguments):
            if not steps or model is steps[0]:  # the model that is trained, not its average that is probed
                at(len(steps))
                steps.append(model)
            return losses(objective, model, *arguments)

        model_config = tiny_config if kind == "centre" else tiny_ends_config
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "CLIPS_PER_SHARD", 20)
            patch.setattr(diffusion.Objective, "losses", watched)
            result = diffusion.train_diffusion(CONFIG, model_config, tiny_model.autoencoder, root / name, root / kind)
        return root / name, result

    return run


@pytest.fixture(scope="module")
def whole(runs):
    return runs("whole")


def test_resumed_after_a_signal_it_is_the_run_that_was_never_stopped(runs, whole):
    with pytest.raises(KeyboardInterrupt):
        runs("stopped", at=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    folder, resumed = runs("stopped")
    assert same_files(folder / "state.safetensors", whole[0] / "state.safetensors")
    expected = whole[1].network.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.network.state_dict().items())


def test_resumed_after_a_power_cut_it_is_the_run_that_was_never_cut(runs, whole):
    def at(step):
        if step == 3:
            raise PowerCut  # state was saved at step 2

    with pytest.raises(PowerCut):
        runs("cut", at)
    folder, _ = runs("cut")
    assert same_files(folder / "state.safetensors", whole[0] / "state.safetensors")


def test_training_moves_every_part_of_the_model(whole):
    state = load_file(whole[0] / "state.safetensors")
    moments = {key: tensor for key, tensor in state.items() if key.startswith("optimizer.exp_avg_sq.")}
    assert all(
        f"optimizer.exp_avg_sq.{name}" in moments for name in ("network.out.2.weight", "network.condition_in.weight")
    )
    for part in ("network.temporal_convs", "network.temporal_transformers", "network.appearance_injections"):
        assert any(tensor.any() for key, tensor in moments.items() if f".{part}" in key), part
    assert not any(".text." in key for key in moments), "the text tower is frozen"


def test_the_text_tower_learns_to_tell_directions_apart():
    torch.manual_seed(0)
    text = TextEncoder(replace(DEMO_BASE.text, tokenizer=word_tokenizer(all_words())))

    meanings_of = learn_to_read(text, steps=120, seed=0)
    with torch.no_grad():
        left, right = pooled(text.encode(["the camera pans left", "the camera pans right"]))[:, 0] @ meanings_of.T
    assert left[0] < -0.1 and right[0] > 0.1, (left[0], right[0])  # of the camera's x, -1 and 1


def test_captions_mean_what_they_say():
    rng = np.random.default_rng(0)
    said = dict(random_caption(rng) for _ in range(4000))
    faster = said["the camera pans left quickly"]
    assert faster[0] < said["the camera pans left"][0] < 0 and not faster[1:].any()
    pairs = [(meaning, said[reverse(caption)]) for caption, meaning in said.items() if reverse(caption) in said]
    velocities = 6 + 2 * len(COLOURS)  # the rest says what moves, which is the same backwards
    assert len(pairs) > 300
    for meaning, backwards in pairs:
        assert np.array_equal(-meaning[:velocities], backwards[:velocities])
        assert np.array_equal(meaning[velocities:], backwards[velocities:])
    two = next(c for c in said if c.startswith("a red ") and " moves left" in c.split(" and ")[0] and " and " in c)
    assert said[two][6] < 0, two


def test_log_has_noise_bands_and_the_swapped_caption(whole):
    rows = log_of(whole[0])
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert {key for row in rows for key in row if key.startswith("loss_band")} >= {"loss_band0", "loss_band3"}
    probes = [row for row in rows if "held_out" in row]
    assert [row["step"] for row in probes] == [6]
    assert probes[-1]["held_out"] != probes[-1]["held_out_swapped"]
    assert sorted(path.name for path in whole[0].glob("*.png")) == ["sheet-000006.png"]


def test_interpolation_trains_without_text(runs):
    folder, result = runs("between", kind="ends")
    assert result.text is None and result.config.network.condition == "ends"
    assert "held_out_swapped" not in log_of(folder)[-1] and "held_out" in log_of(folder)[-1]


def test_motion_is_measured_in_every_pixel():
    found = torch.full((2, 1, 2, 96, 96), 2.0)
    found[..., ::2], found[..., 1::2] = 1.0, 3.0  # right on average only

    class Pan:
        def warp(self, condition, pixels, tokens, index):
            return found, torch.full((2, 3, 96, 96), 0.5)

    objective, frame = diffusion.Objective(DEMO_BASE), torch.full((2, 3, 96, 96), 0.8)
    for flow, expected in ((found, 0.1), (torch.full_like(found, 2.0), 2.01**0.5)):  # never quite 0
        moved, rendered = objective.motion_losses(Pan(), None, None, flow, frame, None, 8)
        torch.testing.assert_close(moved, torch.full((2,), expected))
        torch.testing.assert_close(rendered, torch.full((2,), 0.271**0.5))


def test_a_warp_is_taught_from_what_the_autoencoder_makes_of_a_picture(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "CLIPS_PER_SHARD", 2)
    shard = data.draw_shard(tmp_path, 0, 3, 16, False)
    frame = data.load([shard], "frames")[:, [1]]
    seen = load_file(diffusion.see_shard(shard, tiny_model.autoencoder, torch.tensor([1])))
    expected = tiny_model.autoencoder.encode(frame[:, 0].float() / 255)
    torch.testing.assert_close(seen["latents"][:, 0].float(), expected, rtol=1e-2, atol=1e-2)
    expected = tiny_model.autoencoder.decode(seen["latents"][:, 0].float()).clamp(0, 1)
    torch.testing.assert_close(seen["pixels"][:, 0] / 255, expected, rtol=0, atol=0.6 / 255)


def test_the_flow_of_drawn_ends_takes_both_to_the_frame_between():
    clips = (draw_clip(seed, frames=5, size=96) for seed in range(100))
    clip = next(clip for clip in clips if (clip.motion, clip.speed) == ("left", "quickly"))
    warp = ForwardWarp(DEMO_INTERPOLATION.network)
    ends, ways = clip.frames[[0, -1]], torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)  # each on its way to the other
    points = F.pad(2 * clip.flow[[0, -1]] / warp.unit * ways, (0, 0, 0, 0, 0, 2))[None]
    torch.testing.assert_close(warp.flow(points, None)[0] / 2, clip.flow[[0, -1]])
    rendered, _ = warp.render(ends[None], points, None, torch.tensor([[1.0], [-1.0]]))
    between = clip.frames[2]
    assert psnr(rendered[0, 0], between) > psnr(ends.mean(0), between) + 6


def test_a_warp_begins_with_the_velocities_of_the_colours():
    warp = ForwardWarp(DEMO_BASE.network)
    directions = torch.eye(DEMO_BASE.network.context_dim)  # a text tower that tells each meaning along its own one
    diffusion.begin_with_colours(warp, directions, DEMO_BASE)
    red = list(COLOURS).index("red")
    told = warp.unit * warp._told(directions[None, None, 6 + 2 * red])[0]  # red moves right, neither slowly nor quickly
    expected = torch.zeros_like(told)
    expected[red, 0] = 4 * 3.0  # pixels from the centre to the end of nine frames
    torch.testing.assert_close(told, expected)
    torch.testing.assert_close(warp.unit * warp.named(directions[6 + 2 * red]), expected[:NAMED].flatten())


# --- the autoencoder ---


def test_autoencoder_run_ends_with_unit_variance_latents(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CLIPS_PER_SHARD", 20)
    config = replace(CONFIG, steps=2, crop=16, sheet_every=2, kl_weight=1e-6, learning_rate=1e-5)
    model_config = replace(DEMO_BASE, width=32, height=32)
    model = autoencoder_training.train_autoencoder(config, model_config, tmp_path / "run", tmp_path / "scenes")
    frames = data.load(sorted((tmp_path / "scenes").glob("*.safetensors")), "frames")[:-8, 0].float() / 255
    latents = model.encode(frames)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-2)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=1e-2)
    rows = log_of(tmp_path / "run")
    assert rows[0].keys() >= {"psnr", "kl"} and rows[1]["held_out_psnr"] > 10


# --- settings ---

AUTOENCODER = {"task": '"autoencoder"'}
GOOD = 'task = "diffusion"\nmodel = "demo-base"\nsteps = 3\nbatch_size = 1\nlearning_rate = 1e-3\n'


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_repositorys_configurations_can_be_read(path):
    assert TrainingConfig.read(path, {"steps": "20", "autoencoder": '"x"'}).steps == 20


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
        (GOOD.replace("batch_size", "shards"), {}, ["run.toml", "batch_size"]),
        (b"\xff\xd8\xff\xe0", {}, ["run.toml", "not valid TOML"]),
        ("steps = " + "[" * 100_000, {}, ["run.toml", "not valid TOML"]),
        (GOOD, {"ema": "nan"}, ["ema cannot be nan: give a number from 0 to below 1, such as 0.998"]),
        (GOOD, {"ema": "1.0"}, ["ema cannot be 1.0: give a number from 0 to below 1"]),
        (GOOD, {"clip_norm": "-1"}, ["clip_norm cannot be -1: give a number above 0"]),
        (GOOD, {"cosine_from": "nan"}, ["cosine_from cannot be nan: give a number from 0 to 1 (a share)"]),
        (GOOD, {"kl_weight": "-1"}, ["kl_weight cannot be -1: give a number from 0 to 1000"]),
        (GOOD, {"text_drop": "1.5"}, ["text_drop cannot be 1.5: give a number from 0 to 1 (a share), such as 0.1"]),
        (
            GOOD,
            {"learning_rate": "-1"},
            ["learning_rate cannot be -1: give a number above 0 and up to 10, such as"],
        ),
        (GOOD, {"learning_rate": "inf"}, ["learning_rate cannot be inf: give a number above 0"]),
        (GOOD, {"betas": "[]"}, ["betas cannot be []: give two numbers from 0 to below 1, such as [0.9, 0.99]"]),
        (GOOD, {"betas": "[0.9, 1]"}, ["betas cannot be [0.9, 1]: give two numbers from 0 to below 1"]),
        (GOOD, {"time_power": "[1.0, nan]"}, ["time_power cannot be [1.0, nan]: give two numbers"]),
        (GOOD, {"seed": "-1"}, ["seed cannot be -1: give a whole number from 0"]),
        (GOOD, {"steps": "10000000000"}, ["steps cannot be 10000000000: give a whole number from 1 to 1000000000"]),
        (GOOD, {"batch_size": "3", "processes": "2"}, ["batch_size cannot be 3: give a multiple of processes (2)"]),
        (GOOD, {"flow_bfloat16": "1"}, ["flow_bfloat16 cannot be 1: give true or false"]),
        (GOOD, {"task": "2024-01-01"}, ["task cannot be", "give 'autoencoder' or 'diffusion'"]),
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


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"model": '"nobody"'}, ["nobody", "demo-base"]),
        ({"task": '"cooking"'}, ["cooking", "'autoencoder' or 'diffusion'"]),
        ({"autoencoder": '"missing.safetensors"'}, ["missing.safetensors", "demo-autoencoder.toml"]),
        ({**AUTOENCODER, "crop": "50"}, ["crop cannot be 50: give a multiple of 8 pixels up to 96, such as 48"]),
        ({**AUTOENCODER, "crop": "104"}, ["crop cannot be 104: give a multiple of 8 pixels up to 96, such as 96"]),
        ({**AUTOENCODER, "model": '"base"'}, ["autoencoder of 'base' comes trained", "demo-base"]),
        ({"model": '"base"', "flow_steps": "2"}, ["flow_steps cannot be 2: 'base' has no forward warp, give 0"]),
    ],
)
def test_runs_that_cannot_start_say_why(tmp_path, setting, words):
    (tmp_path / "run.toml").write_text(GOOD)
    with pytest.raises(MicroCinemaError) as caught:
        trainer.main(tmp_path / "run.toml", tmp_path / "run", setting)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["run.toml", "run.toml/inside", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, out):
    (tmp_path / "run.toml").write_text(GOOD)
    with pytest.raises(MicroCinemaError, match="the folder .* cannot be made .*: choose another one"):
        trainer.main(tmp_path / "run.toml", tmp_path / out, AUTOENCODER)


# --- the command ---


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_is_stopped_and_goes_on_to_a_model(tmp_path, monkeypatch, processes):
    """20 steps of the demo model at its true size, on shards that are drawn beforehand and small."""
    shape = DEMO_BASE.network.frames, DEMO_BASE.width, False
    with monkeypatch.context() as patch:
        patch.setattr(data, "CLIPS_PER_SHARD", 18)
        small = data.draw_pool(tmp_path / "scenes", 2, *shape, workers=1)
    for index, path in enumerate(small):  # under the names of whole ones
        path.rename(data.shard_path(tmp_path / "scenes", index, *shape))
    autoencoder = LoadedModel(DEMO_BASE, MicroCinemaUNet(DEMO_BASE.network), Autoencoder(DEMO_BASE.autoencoder), None)
    save_model(tmp_path / "autoencoder.safetensors", autoencoder)
    out = tmp_path / "run"
    settings = {"autoencoder": '"autoencoder.safetensors"', "steps": 20, "batch_size": 2, "shards": 1, "log_every": 1}
    settings |= {"warmup": 5, "threads": 1, "workers": 1, "processes": processes, "flow_steps": 4}
    settings |= {"text_steps": 20, "flow_shards": 1}
    command = [sys.executable, "-m", "microcinema_core", "train", "configs/demo-base.toml", "--out", str(out)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or len(log_of(out)) < 6:
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()[0]
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 130 and "run the same command to go on" in said, said
    assert not (out / "demo-base.safetensors").exists()

    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "resumed at step" in finished.stdout
    assert [row["step"] for row in log_of(out) if "loss" in row] == list(range(1, 21))
    assert log_of(out)[-1].keys() >= {"held_out", "held_out_swapped"}
    model = load_model(out / "demo-base.safetensors")
    assert model.text.tokenizer.unknown_words("a red star moves left") == []
    assert model.autoencoder is not None
