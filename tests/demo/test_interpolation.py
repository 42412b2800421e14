"""The whole recipe of the interpolation model, in small: moved photographs, flow, residual, a model file."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from demo_networks import tiny_demo_between
from PIL import Image
from short_runs import ALONE, changed, log_of, same_states
from short_runs import CONFIG as GENERIC
from tiny import random_model, tiny_base

from microcinema_core.checkpoint import load_model, save_model
from microcinema_core.demo import flow_data, interpolation, recipes
from microcinema_core.demo.flow_training import FlowBatches, FlowObjective
from microcinema_core.demo.recipes import DemoRunConfig, DemoTable
from microcinema_core.errors import MicroCinemaError
from microcinema_core.pipeline import Pipeline

MODEL = tiny_demo_between(flow_warp=tiny_base().autoencoder, residual_std=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with photographs, of which two are held out, and an autoencoder."""
    root = tmp_path_factory.mktemp("interpolation")
    (root / "pictures").mkdir()
    for seed in range(24):
        coarse = np.random.default_rng(seed).integers(0, 255, (60, 70, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((700, 600), Image.Resampling.BICUBIC).save(root / "pictures" / f"{seed}.jpg")
    save_model(root / "autoencoder.safetensors", replace(random_model(tiny_base()), network=None, text=None))
    return root


@pytest.fixture(scope="module")
def run(root):
    """`run(name, at)` trains in the folder `name`, and calls `at` at every step of the flow network."""

    def run(name, at=lambda step: None):
        table = DemoTable(
            task="interpolation", model="demo-interpolation", autoencoder="autoencoder.safetensors", shards=1, crop=48,
            pictures=(str(root / "pictures"),), residual_clips=8, residual_steps=2,
        )  # fmt: skip
        forward = FlowObjective.forward

        def watched(objective, step, batch):
            at(step)
            return forward(objective, step, batch)

        with pytest.MonkeyPatch.context() as patch:
            for module, name_, value in (
                (flow_data, "SCENES_PER_SHARD", 6),
                (interpolation, "HELD_OUT", 2), (interpolation, "CLIP_SIDE", 64),
                (recipes, "MODELS", {"demo-interpolation": MODEL}), (FlowObjective, "forward", watched),
            ):  # fmt: skip
                patch.setattr(module, name_, value)
            config = DemoRunConfig(replace(GENERIC.train, steps=4, batch_size=2), table)
            recipes.run(config, root / name, ALONE)
        return root / name

    return run


@pytest.fixture(scope="module")
def whole(run):
    return run("whole")


def test_it_ends_in_a_model_that_interpolates(whole):
    model = load_model(whole / "demo-interpolation.safetensors")
    assert model.config.network.flow_warp and model.text is None
    ends = 0.8 * torch.rand(1, 3, 32, 32) + 0.2 * torch.rand(2, 3, 32, 32)
    frames = Pipeline(model).interpolate(ends)
    assert frames.shape == (5, 3, 32, 32) and torch.equal(frames[[0, -1]], ends)


def test_the_log_has_the_frames_beside_blending(whole):
    rows = log_of(whole / "flow")
    assert {"frame", "loss"} <= rows[-2].keys()
    held_out = rows[-1]
    assert held_out["step"] == 4 and held_out["psnr"] > 5 and held_out["psnr_blend"] > 5
    assert (whole / "flow" / "samples-000004.png").exists()
    assert [row["step"] for row in log_of(whole / "residual") if "loss" in row] == [2]


def test_resumed_after_a_signal_it_is_the_run_that_was_never_stopped(run, whole):
    with pytest.raises(KeyboardInterrupt):
        run("stopped", at=lambda step: step == 1 and os.kill(os.getpid(), signal.SIGTERM))
    folder = run("stopped")
    assert same_states(folder / "flow", whole / "flow") and same_states(folder / "residual", whole / "residual")


def test_processes_divide_the_batch_of_one():
    class Scenes:
        def sample(self, generator, count, crop):
            frames = torch.rand(count, 3, 3, crop, crop, generator=generator)
            return 0.25, frames, frames[:, :2, :2, ::2, ::2]

    table = DemoTable(task="interpolation", model="demo-interpolation", crop=48)
    config = DemoRunConfig(changed(batch_size=4).train, table)
    worlds = [ALONE, *(replace(ALONE, rank=rank, count=2) for rank in range(2))]
    alone, first, second = (next(FlowBatches(config, Scenes(), world)(3))[0] for world in worlds)
    for name in ("frames", "flows"):
        assert torch.equal(getattr(alone, name), torch.cat([getattr(part, name) for part in (first, second)]))
    assert len(first.frames) == len(first.flows) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task": "diffusion"}, "task cannot be 'diffusion' for the model 'demo-interpolation': give 'interpolation'"),
        ({"crop": 100}, "crop cannot be 100: give a multiple of 16 pixels up to 224, such as 96"),
        ({"pictures": "/nowhere"}, "there are too few photographs of 600 pixels or more in /nowhere: name a folder"),
    ],
)
def test_settings_that_cannot_train_it_are_refused(overrides, message, tmp_path):
    config = tmp_path / "run.toml"
    pictures = overrides.get("pictures", "/usr")
    config.write_text(
        f'[demo]\ntask = "{overrides.get("task", "interpolation")}"\nmodel = "demo-interpolation"\n'
        f'pictures = ["{pictures}"]\ncrop = {overrides.get("crop", 64)}\n'
        "[train]\nsteps = 1\nbatch_size = 1\nlearning_rate = 1.0\n"
    )
    with pytest.raises(MicroCinemaError, match=message):
        recipes.main(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
