"""Runs a training in one process, or in several that share each batch and are stopped together."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from ..errors import MicroCinemaError
from ..files import locked, part_name
from .config import TrainingConfig
from .signals import on_stop_signal

Config = TypeVar("Config", bound=TrainingConfig)
Run = Callable[[Config, Path], None]  # trains in a folder; a function of a module, because it is sent to processes


def launch(run: Run[Config], config: Config, folder: Path) -> None:
    """Call `run(config, folder)` in `config.processes` processes, with the folder locked.

    A SIGINT or SIGTERM is forwarded to all of them, and raises KeyboardInterrupt when they have ended. Raises
    MicroCinemaError where another run works in the folder, and where a process raises it.
    """
    if config.processes == 1:
        with locked(folder):
            run(config, folder)
        return
    with locked(folder):
        pass  # raises here at once where the folder is locked
    rendezvous = part_name(folder.absolute() / "processes")
    rendezvous.unlink(missing_ok=True)  # of an ended process with the same number
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it reports every process that it ends
    problems = mp.get_context("spawn").SimpleQueue()
    group = start_processes(
        _process, (run, config, folder, rendezvous, problems), config.processes, join=False, start_method="spawn"
    )
    assert group is not None
    try:
        interrupted = _join(group, problems)
    finally:
        rendezvous.unlink(missing_ok=True)
    if interrupted:
        raise KeyboardInterrupt


def _join(group: ProcessContext, problems: SimpleQueue) -> bool:
    """Wait until all processes have ended. Returns whether a signal ended them. Raises their MicroCinemaError, which
    they put into `problems`."""
    signals = []

    def forward() -> None:
        signals.append(True)
        for process in group.processes:
            if process.is_alive():
                process.terminate()

    with on_stop_signal(forward):
        try:
            while not group.join():
                pass
        except (ProcessExitedException, ProcessRaisedException):  # the latter where another process of the group ended
            if not problems.empty():
                raise MicroCinemaError(problems.get()) from None
            if not signals:
                raise
    return bool(signals)


def _process(
    rank: int, run: Run[Config], config: Config, folder: Path, rendezvous: Path, problems: SimpleQueue
) -> None:
    # Optimisers import it. Unless it is imported before the group is made, gloo's threads outlive the group, and one of
    # them may abort the process when the interpreter ends.
    import torch._dynamo  # noqa: F401

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=config.processes)
    try:
        if rank:
            run(config, folder)
        else:  # the lock is this process's, because this one ends when the process that started it is killed
            with locked(folder):
                run(config, folder)
    except KeyboardInterrupt:
        pass  # the state is saved, and the first process has printed a message
    except MicroCinemaError as error:
        problems.put(str(error))
        sys.exit(1)
    finally:
        dist.destroy_process_group()
