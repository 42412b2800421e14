"""The settings of a training run, which are read from a TOML file and checked."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError
from typing_extensions import Self  # pydantic's own; in typing from Python 3.11 on

from ..errors import MicroCinemaError
from ..validated import Fits, Range, sentence, shown, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # a dependency with Python 3.10 only

MAX_STEPS = 10**9
Steps = Annotated[int, Range(1, MAX_STEPS, "steps", 1000)]
Share = Annotated[float, Range(0, 1, "a share", 0.5)]

# Settings that may change when a run is resumed. With other `steps`, the rest of the run uses the new learning rates.
RENAMED = {"sheet_every": "sample_every"}  # settings of release 0.1 → current names
FREE = {"steps", "log_every", "sample_every", "save_every", "threads", "workers"}


@validated
class TrainingConfig:
    """The settings of every training run; a recipe adds fields of its own."""

    model: str  # the name of the configuration that is trained
    steps: Steps
    batch_size: Annotated[int, Range(1, 4096, "clips or crops", 8)]
    learning_rate: Annotated[float, Range(0, 10, such_as=1e-3, above=True)]
    warmup: Steps = 100
    cosine_from: Share = 0.5  # share of a phase after which the learning rate falls to zero
    betas: Annotated[
        tuple[Annotated[float, Range(0, 1, below=True)], Annotated[float, Range(0, 1, below=True)]],
        Fits("two numbers from 0 to below 1, such as [0.9, 0.99]"),
    ] = (0.9, 0.99)
    weight_decay: Annotated[float, Range(0, 100, such_as=0.01)] = 0.01
    clip_norm: Annotated[float, Range(0, 1e9, "of the gradients", 1, above=True)] = 1.0
    ema: Annotated[float, Range(0, 1, such_as=0.998, below=True)] = 0.998
    seed: Annotated[int, Range(0, 2**32 - 1, such_as=0)] = 0
    log_every: Steps = 20
    sample_every: Steps = 500
    save_every: Steps = 250
    threads: Annotated[int, Range(1, 1024, "threads", 1)] = 1  # of each process
    # Processes that share a batch; two processes of one thread are faster than one process of two threads.
    processes: Annotated[int, Range(1, 64, "processes", 1)] = 1
    workers: Annotated[int, Range(1, 64, "processes", 2)] = 2  # processes or threads that prepare the data

    def __post_init__(self):
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size cannot be {self.batch_size}: give a multiple of processes ({self.processes})")

    @classmethod
    def read(cls, path: Path, overrides: dict[str, str] | None = None) -> Self:
        """Read the settings from a TOML file and `overrides`, as read_values does.

        Raises MicroCinemaError as read_values does, and for a setting that is unknown, missing or out of its range.
        """
        values = {RENAMED.get(name, name): value for name, value in read_values(path, overrides).items()}
        names = sorted(field.name for field in fields(cls))
        if unknown := sorted(set(values) - set(names)):
            raise MicroCinemaError(f"unknown setting {shown(unknown[0])}: known are {', '.join(names)}")
        try:
            return cls(**values)
        except ValidationError as error:
            raise MicroCinemaError(f"{path}: {sentence(error)}") from error

    def phase(self, step: int) -> tuple[int, int]:
        """The first and the last step (exclusive) of the phase of `step`; each phase schedules its learning rate."""
        return 0, self.steps

    def identity(self) -> dict[str, Any]:
        """The settings that must not change when a run is resumed."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


def read_values(path: Path, overrides: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings in a TOML file, replaced by `overrides`, whose values are in TOML syntax.

    Raises MicroCinemaError for a file that cannot be read, and for what is not valid TOML.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
        for key, value in (overrides or {}).items():
            values |= tomllib.loads(f"{key} = {value}")
        return values
    except OSError as error:
        name = f"the configuration '{shown(str(path), 300)}'"
        reason = f"does not exist or cannot be read ({error.strerror})"
        raise MicroCinemaError(f"{name} {reason}: choose one from configs/") from error
    except (ValueError, RecursionError) as error:  # invalid TOML, not a text file, nested too deeply
        raise MicroCinemaError(
            f"{path} or a --set value is not valid TOML ({shown(str(error))}): correct it"
        ) from error
