"""Small training runs: a layer that learns to copy, alone or in several processes, and what is said of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from microcinema_core.errors import MicroCinemaError
from microcinema_core.training.config import TrainingConfig
from microcinema_core.training.trainer import Trainer

CONFIG = TrainingConfig(
    model="tiny", steps=6, batch_size=2, learning_rate=1e-2, warmup=2, ema=0.9, log_every=2, sample_every=6,
    save_every=2, threads=1, workers=1,
)  # fmt: skip


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_files(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def copy_error(layer: nn.Module, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(8, 4, generator=generator)
    return (layer(x) - x).square().mean()


def train_layer(folder: Path, config: TrainingConfig = CONFIG, at: Callable[[int], object] = lambda step: None):
    """Teach a layer to copy; `at` is called with each step. Returns the trainer and the parameters after each step."""
    torch.manual_seed(0)
    trainer, course = Trainer(nn.Linear(4, 4), config, folder), []

    def loss(step, generator):
        course.append(torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()]))
        at(step)
        return copy_error(trainer.model, generator), {}

    trainer.run(loss)
    course.append(torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()]))
    return trainer, course[1:]


def run(config: TrainingConfig, folder: Path) -> None:
    """For `launch`."""
    train_layer(folder, config)


def refused_run(config: TrainingConfig, folder: Path) -> None:
    raise MicroCinemaError("the data are damaged: fetch them again")


@contextmanager
def full_disk(room: int):
    """No file can grow beyond `room` bytes."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
