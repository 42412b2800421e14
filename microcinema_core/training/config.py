"""The settings of a training run, from a TOML file: each with its range, and all of them together."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StrictBool, ValidationError

from ..config import CONFIGS, ModelConfig
from ..errors import MicroCinemaError
from ..validated import Fits, Range, sentence, shown, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_STEPS = 10**9
Steps = Annotated[int, Range(1, MOST_STEPS, "steps", 1000)]
Share = Annotated[float, Range(0, 1, "a share", 0.5)]
Shards = Annotated[int, Range(1, 10_000, "shards", 4)]

# May change when a run goes on. `steps` too: the rest of a run that is made longer or shorter follows the new course.
FREE = {"steps", "log_every", "sheet_every", "save_every", "threads", "workers", "autoencoder"}


@validated
class TrainingConfig:
    task: Literal["autoencoder", "diffusion"]
    model: str  # the configuration that is trained, a name in config.CONFIGS
    steps: Steps
    batch_size: Annotated[int, Range(1, 4096, "clips or crops", 8)]
    learning_rate: Annotated[float, Range(0, 10, such_as=1e-3, above=True)]
    warmup: Steps = 100
    cosine_from: Share = 0.5  # share of the run after which the learning rate falls to zero
    betas: Annotated[
        tuple[Annotated[float, Range(0, 1, below=True)], Annotated[float, Range(0, 1, below=True)]],
        Fits("two numbers from 0 to below 1, such as [0.9, 0.99]"),
    ] = (0.9, 0.99)
    weight_decay: Annotated[float, Range(0, 100, such_as=0.01)] = 0.01
    clip_norm: Annotated[float, Range(0, 1e9, "of the gradients", 1, above=True)] = 1.0
    ema: Annotated[float, Range(0, 1, such_as=0.998, below=True)] = 0.998
    seed: Annotated[int, Range(0, 2**32 - 1, such_as=0)] = 0
    shards: Shards = 4  # of drawn scenes, 250 clips each
    autoencoder: str = ""  # diffusion: the run folder or model file that holds the autoencoder
    text_steps: Steps = 600  # diffusion: of the text tower, before all others
    # diffusion with a forward warp: at first it alone learns the drawn scenes' motion
    flow_steps: Annotated[int, Range(0, MOST_STEPS, "steps", 0)] = 0
    flow_shards: Shards = 4  # of scenes for that, behind the others
    flow_bfloat16: StrictBool = False  # its convolutions and products in bfloat16, on a processor that has it
    text_drop: Annotated[float, Range(0, 1, "a share", 0.1)] = 0.1
    # diffusion: t = 1000·u^power; below 1 the noisy end is seen more often. It goes from the first to the second
    # evenly: what moves is decided by the noisy end, and is to be learned first.
    time_power: Annotated[
        tuple[Annotated[float, Range(0, 100)], Annotated[float, Range(0, 100)]],
        Fits("two numbers from 0 to 100, such as [1.0, 1.0]"),
    ] = (1.0, 1.0)
    kl_weight: Annotated[float, Range(0, 1000, such_as=1e-4)] = 1e-4
    crop: Annotated[int, Range(1, 8192, "pixels", 64)] = 64  # autoencoder: side of the training crops
    log_every: Steps = 20
    sheet_every: Steps = 500
    save_every: Steps = 250
    threads: Annotated[int, Range(1, 1024, "threads", 1)] = 1  # of each process
    processes: Annotated[int, Range(1, 64, "processes", 1)] = 1  # that share a batch; two of one thread beat one of two
    workers: Annotated[int, Range(1, 64, "processes", 2)] = 2  # that draw scenes and encode them

    def __post_init__(self):
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size cannot be {self.batch_size}: give a multiple of processes ({self.processes})")

    @classmethod
    def read(cls, path: Path, overrides: dict[str, str] | None = None) -> TrainingConfig:
        """Read a TOML file; `overrides` are values in TOML syntax. Raises MicroCinemaError on what it cannot read."""
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
            for key, value in (overrides or {}).items():
                values |= tomllib.loads(f"{key} = {value}")
        except OSError as error:
            name = f"the configuration '{shown(str(path), 300)}'"
            reason = f"does not exist or cannot be read ({error.strerror})"
            raise MicroCinemaError(f"{name} {reason}: choose one from configs/") from error
        except (ValueError, RecursionError) as error:  # no TOML, no text at all, nested without end
            raise MicroCinemaError(
                f"{path} or a --set value is not valid TOML ({shown(str(error))}): correct it"
            ) from error
        known = sorted(field.name for field in fields(cls))
        if unknown := sorted(set(values) - set(known)):
            raise MicroCinemaError(f"unknown setting {shown(unknown[0])}: known are {', '.join(known)}")
        try:
            return cls(**values)
        except ValidationError as error:
            raise MicroCinemaError(f"{path}: {sentence(error)}") from error

    def check(self, model: ModelConfig) -> None:
        """Raise MicroCinemaError unless these settings can train this model."""
        factor, side = model.autoencoder.factor, model.width
        if self.task == "autoencoder":
            if not model.autoencoder.pixel_shuffle:
                names = [name for name, config in CONFIGS.items() if config.autoencoder.pixel_shuffle]
                raise MicroCinemaError(
                    f"the autoencoder of '{model.name}' comes trained with Stable Diffusion: set model to "
                    f"{' or '.join(names)}"
                )
            if self.crop % factor or self.crop > side:
                near = min(max(round(self.crop / factor), 1) * factor, side)
                raise MicroCinemaError(
                    f"crop cannot be {self.crop}: give a multiple of {factor} pixels up to {side}, such as {near}"
                )
        elif self.flow_steps and not model.network.forward_warp:
            raise MicroCinemaError(
                f"flow_steps cannot be {self.flow_steps}: '{model.name}' has no forward warp, give 0"
            )

    def shape(self) -> dict[str, Any]:
        """What makes a run the run it is: going on with anything else is another run."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}
