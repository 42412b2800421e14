"""`microcinema train CONFIG.toml`: from nothing to a model file, in a run folder that can be resumed."""

from __future__ import annotations

import logging
import os
import signal
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..checkpoint import LoadedModel, load_autoencoder, save_model
from ..config import CONFIGS
from ..errors import MicroCinemaError
from ..validated import shown
from .autoencoder import train_autoencoder
from .config import TrainingConfig
from .diffusion import train_diffusion
from .files import locked, make_folder
from .loop import check_state

RUNS = Path("runs")


def main(config_path: Path, out: Path | None = None, overrides: dict[str, str] | None = None) -> Path:
    """Run the training that the TOML file describes; returns the model file written at the end."""
    config = TrainingConfig.read(config_path, overrides)
    if config.model not in CONFIGS:
        raise MicroCinemaError(f"unknown model '{shown(config.model)}': known are {', '.join(CONFIGS)}")
    config.check(CONFIGS[config.model])
    folder = out or RUNS / Path(config_path).stem
    if config.task == "diffusion":
        _autoencoder_file(config, folder)
    make_folder(folder)
    check_state(folder, config.steps, config.shape())
    if config.processes > 1:
        with locked(folder):
            pass  # or it is refused here, at once
        _share(config, folder)
    else:
        with locked(folder):
            _run(config, folder)
    return _result(config, folder)


def _share(config: TrainingConfig, folder: Path) -> None:
    """Run as several processes, which all stop, their state saved, when this one is asked to."""
    meeting = (folder / f"processes.{os.getpid()}.part").absolute()
    meeting.unlink(missing_ok=True)  # of a dead process that had our number
    logging.getLogger(mp.spawn.__module__).setLevel(logging.ERROR)  # it tells of each process that it ends
    problems = mp.get_context("spawn").SimpleQueue()
    group = mp.start_processes(
        _process, (config, folder, meeting, problems), config.processes, join=False, start_method="spawn"
    )
    asked = []

    def forward(*_):
        asked.append(True)
        for process in group.processes:
            if process.is_alive():
                process.terminate()

    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not group.join():
            pass
    except (mp.ProcessExitedException, mp.ProcessRaisedException):  # the latter of those that lose their partner
        if not problems.empty():
            raise MicroCinemaError(problems.get()) from None
        if not asked:
            raise
    finally:
        meeting.unlink(missing_ok=True)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


def _process(rank: int, config: TrainingConfig, folder: Path, meeting: Path, problems: SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=config.processes)
    try:
        if rank:
            _run(config, folder)
        else:  # it dies with the one that started it; so does its lock
            with locked(folder, keep=meeting.name):
                _run(config, folder)
    except KeyboardInterrupt:
        pass  # saved; the first process has said so
    except MicroCinemaError as error:
        problems.put(str(error))
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def _run(config: TrainingConfig, folder: Path) -> None:
    torch.set_num_threads(config.threads)
    model_config, scenes = CONFIGS[config.model], folder.parent / "scenes"
    if config.task == "autoencoder":
        autoencoder = train_autoencoder(config, model_config, folder, scenes)
        model = LoadedModel(model_config, None, autoencoder, None)
    else:
        autoencoder = load_autoencoder(_autoencoder_file(config, folder))
        model = train_diffusion(config, model_config, autoencoder, folder, scenes)
    if not dist.is_initialized() or dist.get_rank() == 0:
        result = _result(config, folder)
        save_model(result, model, torch.float32 if config.task == "autoencoder" else torch.float16)
        print(f"wrote {result}", flush=True)


def _result(config: TrainingConfig, folder: Path) -> Path:
    return folder / f"{config.model}.safetensors"


def _autoencoder_file(config: TrainingConfig, folder: Path) -> Path:
    file = Path(config.autoencoder)
    for candidate in (file, folder.parent / file):
        if os.path.isfile(candidate):  # a Path of a name too long would raise
            return candidate
    raise MicroCinemaError(
        f"no autoencoder '{shown(str(file), 300)}': train it first with configs/demo-autoencoder.toml"
    )
