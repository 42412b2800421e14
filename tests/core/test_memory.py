"""What a training takes: what a run says before it begins is what it then holds."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from short_runs import ALONE, CONFIG, Copy, changed, log_of
from tiny import tiny_base

from microcinema_core.config import BASE
from microcinema_core.model import build
from microcinema_core.training.objective import VideoModel
from microcinema_core.training.parameters import memory, select
from microcinema_core.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


def nbytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("trained", ["all", "new", "lora"])
def test_the_memory_that_is_said_is_the_memory_that_is_held(tmp_path, trained):
    if trained == "lora":
        pytest.importorskip("peft")

    class Network(Copy):
        def __init__(self):
            super().__init__()
            network = build(tiny_base().network)
            select(network, trained)
            self.model = VideoModel(tiny_base(), network)

    trainer = Trainer(Network(), CONFIG, tmp_path, ALONE)
    said = memory(trainer.objective)
    for parameter in trainer.averages[0].parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    parameters = list(trainer.objective.parameters())
    assert said.weights == nbytes(parameters)
    assert said.gradients == nbytes(p.grad for p in parameters if p.grad is not None)
    moments = [t for state in trainer.optimizer.state.values() for key, t in state.items() if key != "step"]
    assert said.moments == nbytes(moments)
    assert said.averages == nbytes(trainer.averages[0].averages.values())
    assert (said.trained < said.parameters) == (trained != "all")


def test_a_full_size_training_of_the_new_layers_takes_ten_gigabytes():
    """The figures of docs/training.md, counted on no device."""
    network = build(BASE.network, device="meta")
    assert "2,015.9 M trained: weights 8.06, gradients 8.06, moments 16.13, averages 8.06" in str(memory(network))
    select(network, "new")
    assert "334.5 M trained: weights 4.70, gradients 1.34, moments 2.68, averages 1.34" in str(memory(network))
    assert "moments 0.68, averages 2.68" in str(memory(network, "adamw8bit", averages=2))


def test_no_copies_of_weights_are_kept_in_a_step(tmp_path):
    """Autocast would keep each in bfloat16: 4 GB at full size."""
    caches = []

    class Watched(Copy):
        def forward(self, step, batch):
            caches.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
            return super().forward(step, batch)

    trainer = Trainer(Watched(), changed(dtype="bfloat16"), tmp_path, ALONE)
    trainer._take_step([torch.randn(2, 4)], False)
    assert caches == [(True, False)]


def test_the_benchmark_of_a_step_runs_the_real_trainer():
    command = [sys.executable, "benchmarks/train_step.py", "--width", "64", "--size", "8", "--frames", "2"]
    ended = subprocess.run([*command, "--checkpointing", "--steps", "1"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"84\.9 M parameters, 84\.9 M trained: weights 0\.34", ended.stdout)
    assert re.search(r"all adamw bfloat16 ddp checkpointing: .* s a step of 1 clips, .* loss [01]\.\d+, ", ended.stdout)


def test_moments_of_eight_bits_learn_are_small_and_go_on_where_they_were(tmp_path):
    """The optimiser compiles its step, which takes minutes for a network; here it runs as it is."""
    pytest.importorskip("torchao")
    config = changed(optimizer="adamw8bit", steps=4)

    def batches(first: int):
        for step in itertools.count(first):
            yield [torch.randn(6, 64, generator=torch.Generator().manual_seed(step))]

    def trained(name: str, steps: int) -> Trainer:
        trainer = Trainer(Copy(64), replace(config, train=replace(config.train, steps=steps)), tmp_path / name, ALONE)
        if not trainer.step:
            trainer.rehearse(torch.randn(6, 64))
        trainer.run(batches)
        return trainer

    with torch.compiler.set_stance("force_eager"):
        whole = trained("whole", 4)
        trained("parts", 2)
        parts = trained("parts", 4)
    moments = whole.optimizer.state[whole.objective.layer.weight]["exp_avg"]
    assert moments.codes.nbytes == 64 * 64 and moments.codes.any()
    losses = [row["loss"] for row in log_of(tmp_path / "whole")]
    assert losses[-1] < losses[0]
    assert torch.equal(whole.objective.values(), parts.objective.values())
