"""The settings of a training run: a TOML file with a table for each part of it, read and checked before anything else.

Every run has the table [train]; a recipe adds tables of its own. A setting without its table, as in `--set steps=100`
and in the files of release 0.1, belongs to the table that has it.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StrictBool, ValidationError
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
Decay = Annotated[float, Range(0, 1, such_as=0.998, below=True)]

RENAMED = {"sheet_every": "sample_every"}  # settings of release 0.1 → current names
GONE = {"processes": "start several with torchrun --nproc-per-node N -m microcinema_core train …"}
# Settings of [train] that may change when a run is resumed. With other `steps`, the rest of the run uses the new
# learning rates; how the work is divided and laid out in memory changes the order of sums only.
FREE = {
    "steps", "log_every", "sample_every", "save_every", "keep", "threads", "workers", "micro_batch", "strategy",
    "gradient_checkpointing", "compile", "device",
}  # fmt: skip


@validated
class TrainConfig:
    """The table [train]: the optimisation, which is the same for every model."""

    steps: Steps
    batch_size: Annotated[int, Range(1, 65536, "clips or crops", 8)]  # of all processes together
    learning_rate: Annotated[float, Range(0, 10, such_as=1e-3, above=True)]
    # Clips that a process computes at a time; 0 is its whole part of the batch. Gradients are accumulated over them.
    micro_batch: Annotated[int, Range(0, 65536, "clips or crops", 0)] = 0
    warmup: Steps = 100
    cosine_from: Share = 0.5  # share of a phase after which the learning rate falls to zero; 1: it stays
    betas: Annotated[tuple[Decay, Decay], Fits("two numbers from 0 to below 1, such as [0.9, 0.99]")] = (0.9, 0.99)
    weight_decay: Annotated[float, Range(0, 100, such_as=0.01)] = 0.01
    clip_norm: Annotated[float, Range(0, 1e9, "of the gradients", 1, above=True)] = 1.0
    ema: Decay = 0.998
    # Instead of `ema`: relative widths of power-function averages (Karras et al. 2023, arXiv 2312.02696, section 3).
    ema_std: Annotated[
        tuple[Annotated[float, Range(0, 0.28, above=True)], ...],
        Fits("at most 4 numbers above 0 and up to 0.28, such as [0.05, 0.1]", 0, 4),
    ] = ()
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # the second by torchao: a quarter of the optimiser's memory
    seed: Annotated[int, Range(0, 2**32 - 1, such_as=0)] = 0
    log_every: Steps = 20
    sample_every: Steps = 500
    save_every: Steps = 250
    keep: Annotated[int, Range(1, 1000, "checkpoints", 2)] = 2
    threads: Annotated[int, Range(1, 1024, "threads", 1)] = 1  # of each process
    workers: Annotated[int, Range(0, 64, "processes", 2)] = 2  # that prepare the data, for each process
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights and sums stay in float32
    strategy: Literal["ddp", "fsdp2"] = "ddp"  # weights in every process, or each a part of them
    gradient_checkpointing: StrictBool = False  # activations are computed again for the gradients instead of kept
    compile: StrictBool = False  # the network by torch.compile

    def share(self, processes: int) -> tuple[int, int]:
        """The numbers of micro-batches, and of clips in each, that one of so many processes computes in a step.

        Raises MicroCinemaError where the batch cannot be divided into them.
        """
        local, rest = divmod(self.batch_size, processes)
        if rest or not local:
            raise MicroCinemaError(
                f"batch_size cannot be {self.batch_size} with {processes} processes: give a multiple of {processes}"
            )
        count, rest = divmod(local, self.micro_batch or local)
        if rest or not count:
            raise MicroCinemaError(
                f"micro_batch cannot be {self.micro_batch}: give 0 or a divisor of the {local} clips of a process"
            )
        return count, local // count


@validated
class RunConfig:
    """The settings of a run; a recipe adds its tables."""

    train: TrainConfig

    @classmethod
    def read(cls, path: Path, overrides: dict[str, str] | None = None) -> Self:
        """Read the settings from a TOML file and `overrides`, as read_values does.

        Raises MicroCinemaError as read_values does, and for a setting that is unknown, missing or out of its range.
        """
        tables = {table.name: _fields(table.type) for table in fields(cls)}
        values: dict[str, Any] = {name: {} for name in tables}
        for key, value in read_values(path, overrides).items():
            if key in tables and isinstance(value, dict):
                values[key] |= value
            else:
                key = RENAMED.get(key, key)
                if key in GONE:
                    raise MicroCinemaError(f"there is no setting {key} any more: {GONE[key]}")
                values[_table_of(key, tables)][key] = value
        try:
            return cls(**values)
        except ValidationError as error:
            raise MicroCinemaError(f"{path}: {sentence(error)}") from error

    def phase(self, step: int) -> tuple[int, int]:
        """The first and the last step (exclusive) of the phase of `step`; each phase schedules its learning rate."""
        return 0, self.train.steps

    def identity(self) -> dict[str, Any]:
        """The settings that must not change when a run is resumed."""
        values = asdict(self)
        values["train"] = {name: value for name, value in values["train"].items() if name not in FREE}
        return values


def _fields(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _table_of(key: str, tables: dict[str, list[str]]) -> str:
    """The table that has a setting, or that takes any. Raises MicroCinemaError where there is none."""
    for table, names in tables.items():
        if key in names:
            return table
    known = sorted(f"{table}.{name}" for table, names in tables.items() for name in names)
    raise MicroCinemaError(f"unknown setting {shown(key)}: known are {', '.join(known)}")


def read_values(path: Path, overrides: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings in a TOML file, replaced by `overrides`: values in TOML syntax, or plain text, by "table.key".

    Raises MicroCinemaError for a file that cannot be read, and for what is not valid TOML.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        name = f"the configuration '{shown(str(path), 300)}'"
        reason = f"does not exist or cannot be read ({error.strerror})"
        raise MicroCinemaError(f"{name} {reason}: choose one from configs/") from error
    except (ValueError, RecursionError) as error:  # invalid TOML, not a text file, nested too deeply
        raise MicroCinemaError(f"{path} is not valid TOML ({shown(str(error))}): correct it") from error
    for name, text in (overrides or {}).items():
        *tables, key = name.split(".")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise MicroCinemaError(f"--set {shown(name)} names a table, but {shown(part)} is a value: correct it")
        table[key] = _value(text)
    return values


def _value(text: str) -> Any:
    """A value in TOML syntax; the text itself where it is none, so that a path needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
