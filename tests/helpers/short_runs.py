"""Small training runs: a layer that learns to copy, alone or in several processes, and what is said of a run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from microcinema_core.training.config import RunConfig, TrainConfig
from microcinema_core.training.distributed import Processes, processes
from microcinema_core.training.parameters import whole
from microcinema_core.training.states import states
from microcinema_core.training.trainer import Objective, Trainer

CONFIG = RunConfig(
    TrainConfig(
        steps=6, batch_size=6, learning_rate=1e-2, warmup=2, ema=0.9, log_every=2, sample_every=6, save_every=2,
        threads=1, workers=1, device="cpu",
    )
)  # fmt: skip
ALONE = Processes(0, 1, torch.device("cpu"))
ROOT = Path(__file__).parents[2]


def changed(config=CONFIG, **values):
    """The settings with other values in [train]."""
    return replace(config, train=replace(config.train, **values))


class Copy(Objective):
    """A layer that learns to copy its input. Its parameters before each step are its `course`."""

    def __init__(self, width: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.course = nn.Linear(width, width), []

    def values(self) -> Tensor:
        """All parameters."""
        return torch.cat([whole(p.detach()).flatten().clone() for p in self.parameters()])

    def forward(self, step: int, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        self.course.append(self.values())
        loss = (self.layer(batch) - batch).square().mean()
        return loss, {"error": loss.item()}


def batches_of(config: RunConfig, world: Processes = ALONE, at: Callable[[int], object] = lambda step: None):
    """Rows that depend on the seed and the step alone, of which each process gets its part; `at` is called with each
    step."""
    number, size = config.train.share(world.count)

    def batches(first: int):
        for step in count(first):
            at(step)
            generator = torch.Generator().manual_seed(1000 * config.train.seed + step)
            rows = torch.randn(config.train.batch_size, 4, generator=generator).chunk(world.count)[world.rank]
            assert len(rows) == number * size
            yield list(rows.split(size))

    return batches


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def state_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of the newest state of a run."""
    path = states(folder)[-1]
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size) for name, entry in stored.items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return tensors


def same_states(first: Path, second: Path) -> bool:
    a, b = state_of(first), state_of(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def train_layer(folder: Path, config: RunConfig = CONFIG, at: Callable[[int], object] = lambda step: None):
    """Teach a layer to copy; `at` is called with each step. Returns the trainer and the parameters after each step."""
    objective = Copy()
    with processes(config.train, folder) as world:
        trainer = Trainer(objective, config, folder, world)
        trainer.run(batches_of(config, world, at))
        trainer.averages[0].exchange()  # back to the weights
        objective.course.append(objective.values())
    return trainer, objective.course[1:]


def torchrun(number: int, *arguments: object, module: str = "microcinema_core", **environment: str):
    """The process of torchrun for so many processes of a module with these arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(number)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += ["-m", module, *map(str, arguments)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'tests/helpers'}:{ROOT}", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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


if __name__ == "__main__":  # for torchrun: a folder, and settings of [train] in JSON
    kept = train_layer(Path(sys.argv[1]), changed(**json.loads(sys.argv[2])))
    sys.stdout.flush()
    os._exit(0)  # before `kept` ends: gloo may wait for ever where a group is closed before what used it
