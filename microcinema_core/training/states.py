"""The states of a run on disk, from which it is resumed: `checkpoints/step-00001000/`, whole or not there at all.

A state holds the weights, their averages and the optimiser's moments, by parameter name, in the format of torch's
distributed checkpoints: every process writes its part, and another number of processes can read it. `run.json` beside
them has the step and the settings. The files are torch's own, so resume only states of your own.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..errors import MicroCinemaError
from ..files import cannot_write, part_name
from .distributed import Processes
from .ema import Ema

FOLDER, RUN = "checkpoints", "run.json"
OLD_STATE = "state.safetensors"  # of release 0.1


def path_of(folder: Path, step: int) -> Path:
    """The folder of the state after so many steps."""
    return folder / FOLDER / f"step-{step:08d}"


def states(folder: Path) -> list[Path]:
    """The folders of all states of a run, the oldest first."""
    found = (folder / FOLDER).glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name) and (path / RUN).is_file())


def check_state(folder: Path, steps: int, identity: dict[str, Any]) -> int:
    """The step at which the run in a folder continues, 0 where there is none.

    Raises MicroCinemaError where a run of `steps` with the settings `identity` cannot continue it.
    """
    if (folder / OLD_STATE).exists():
        raise MicroCinemaError(f"the run in '{folder}' is of release 0.1 and cannot go on: choose another --out")
    found = states(folder)
    if not found:
        return 0
    path = found[-1] / RUN
    try:
        run = json.loads(path.read_text())
        step, before = int(run["step"]), _flat(run["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _does_not_fit(found[-1], error) from error
    now = _flat(json.loads(json.dumps(identity)))  # as it would be read
    changed = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    if changed:
        old = ", ".join(f"{name} {json.dumps(before[name])}" for name in changed)
        new = ", ".join(json.dumps(now[name]) for name in changed)
        raise MicroCinemaError(
            f"'{folder}' holds a run with {old}, not {new}: go on with the same, or choose another folder with --out"
        )
    if step > steps:
        raise MicroCinemaError(
            f"'{folder}' is at step {step} already: give steps of at least {step}, or choose another folder with --out"
        )
    return step


def save_state(
    folder: Path, step: int, identity: dict[str, Any], tensors: dict[str, Tensor], world: Processes, keep: int
) -> None:
    """Write the state after `step` steps, then remove all but the newest `keep` states.

    Raises MicroCinemaError where it cannot be written; the states before it stay.
    """
    path = path_of(folder, step)
    part = Path(world.share(str(part_name(path))))
    try:
        if world.first:
            path.parent.mkdir(exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
        with _quiet():
            save(tensors, checkpoint_id=part)
        if world.first:
            (part / RUN).write_text(json.dumps({"step": step, "settings": identity}))
            shutil.rmtree(path, ignore_errors=True)
            part.rename(path)
            for old in states(folder)[:-keep]:
                shutil.rmtree(old)
    except (OSError, CheckpointException) as error:
        raise cannot_write(path, _failure(error)) from error
    finally:
        if world.first:
            shutil.rmtree(part, ignore_errors=True)


def load_state(folder: Path, step: int, averages: list[Ema], optimizer: torch.optim.Optimizer) -> None:
    """Read the state after `step` steps into the parameters, their averages and the optimiser, in place.

    The optimiser must hold moments for all parameters; those that the state lacks are removed. Raises MicroCinemaError
    where the state is damaged or of another model.
    """
    path = path_of(folder, step)
    tensors = dict(state_tensors(averages, optimizer))
    try:
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        missing = sorted(name for name in tensors if name not in stored)
        if bad := [name for name in missing if not name.startswith("optimizer.")] + sorted(stored.keys() - tensors):
            raise ValueError(f"{bad[0]} is in one of them alone")
        sizes = {name: tuple(getattr(stored[name], "size", ())) for name in tensors if name in stored}
        if bad := [name for name, size in sizes.items() if size != tuple(tensors[name].shape)]:
            raise ValueError(f"{bad[0]} is {sizes[bad[0]]}, not {tuple(tensors[bad[0]].shape)}")
        with _quiet():
            load({name: tensor for name, tensor in tensors.items() if name in stored}, checkpoint_id=path)
    except (Exception, CheckpointException) as error:  # a damaged file raises errors of any type
        raise _does_not_fit(path, _failure(error)) from error
    names = {id(parameter): name for name, parameter in averages[0].parameters.items()}
    for parameter in list(optimizer.state):
        if f"optimizer.exp_avg.{names[id(parameter)]}" in missing:
            del optimizer.state[parameter]


def state_tensors(averages: list[Ema], optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a run's state by name. What is not trained from the first step on is left out."""
    for name, parameter in averages[0].parameters.items():
        yield f"model.{name}", parameter.detach()
        for key, tensor in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{name}", tensor
    for index, ema in enumerate(averages):
        for name, tensor in ema.averages.items():
            yield f"ema{index}.{name}", tensor


def allocate_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser allocate its moments, by a step with zero gradients and learning rates that changes nothing."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        set_rate(group, 0.0)
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_rate(group, rate)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group of parameters; torchao's optimisers keep it in a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def cut_log(path: Path, step: int) -> list[str]:
    """The lines of a log up to a step, without what a killed run had logged after its last state, and without a line
    that is incomplete."""
    if not path.exists():
        return []
    return [row for row in path.read_text(errors="replace").splitlines(keepends=True) if _step_of(row) <= step]


def _step_of(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by "table.key"."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _does_not_fit(path: Path, error: Exception) -> MicroCinemaError:
    problem = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
    cure = "delete it, or choose another folder with --out"
    return MicroCinemaError(f"'{path}' does not fit this run ({problem}): {cure}")


def _failure(error: BaseException) -> Exception:
    """What a process raised, for the exception in which torch collects the failures of all; else the error itself."""
    failures = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    failure = failures[0][0] if failures else error
    return failure if isinstance(failure, Exception) else RuntimeError(str(failure))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that a single process is no group of processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = logging.getLogger("torch.distributed.checkpoint")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
