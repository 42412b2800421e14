"""`microcinema train` for the bundled models: trains a model in a folder, from which the run can be resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from ..checkpoint import LoadedModel, load_autoencoder, save_model
from ..errors import MicroCinemaError
from ..files import make_folder
from ..training.config import MAX_STEPS, RunConfig, Steps
from ..training.distributed import Processes, processes
from ..training.states import check_state
from ..validated import Fits, Range, shown, validated
from .config import DEMO_BASE, DEMO_INTERPOLATION, DemoModelConfig
from .flow import COARSEST
from .flow_data import SIDE
from .moved_photographs import FOLDERS, Photographs

RUNS = Path("runs")
MODELS = {config.name: config for config in (DEMO_BASE, DEMO_INTERPOLATION)}
Shards = Annotated[int, Range(1, 10_000, "shards", 4)]


@validated
class DemoTable:
    """[demo]: a bundled model or, with `task` "autoencoder", the autoencoder that both models use."""

    task: Literal["autoencoder", "diffusion", "interpolation"]
    model: str  # the name of the configuration that is trained
    shards: Shards = 4  # of drawn scenes, with 250 clips each, or of moved photographs, with 200
    # tasks autoencoder and interpolation
    crop: Annotated[int, Range(1, 8192, "pixels", 64)] = 64  # side of the training crops
    # task autoencoder
    kl_weight: Annotated[float, Range(0, 1000, such_as=1e-4)] = 1e-4
    # tasks diffusion and interpolation
    autoencoder: str = ""  # the model file with the autoencoder
    # task diffusion
    text_steps: Steps = 600  # of the text tower, which is trained before the other parts
    warp_steps: Annotated[int, Range(0, MAX_STEPS, "steps", 0)] = 0  # the first steps train only the forward warp
    warp_shards: Shards = 4  # of drawn pictures of things for these steps
    text_drop: Annotated[float, Range(0, 1, "a share", 0.1)] = 0.1  # the share of clips that are trained without text
    # Timesteps are t = 1000·u^power for a uniform u; with a power below 1, high noise levels are more frequent. The
    # power changes linearly from the first to the second number, because the motion is determined at high noise levels,
    # and should be learned first.
    time_power: Annotated[
        tuple[Annotated[float, Range(0, 100)], Annotated[float, Range(0, 100)]],
        Fits("two numbers from 0 to 100, such as [1.0, 1.0]"),
    ] = (1.0, 1.0)
    # task interpolation; `train.steps` and what belongs to them are those of the flow network
    pictures: tuple[str, ...] = ()  # folders with photographs; those of Debian's packages by default
    residual_clips: Annotated[int, Range(8, 10**6, "clips", 400)] = 400
    residual_steps: Steps = 400

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders with photographs."""
        return tuple(map(Path, self.pictures)) or tuple(folder for folder in FOLDERS if folder.is_dir())


@validated
class DemoRunConfig(RunConfig):
    """The training of a bundled model."""

    demo: DemoTable

    def phase(self, step: int) -> tuple[int, int]:
        """The steps that train the forward warp, or the other ones."""
        warp_steps = self.demo.warp_steps
        return (0, warp_steps) if step < warp_steps else (warp_steps, self.train.steps)

    def identity(self) -> dict[str, Any]:
        """As RunConfig's, without paths and what belongs to a later part of the run."""
        values = super().identity()
        others = {"autoencoder", "pictures", "residual_clips", "residual_steps"}
        values["demo"] = {name: value for name, value in values["demo"].items() if name not in others}
        return values

    def check(self, model: DemoModelConfig) -> None:
        """Raise MicroCinemaError unless these settings can train this model."""
        c, factor, side = self.demo, model.autoencoder.factor, model.width
        if c.task == "interpolation":
            factor, side = COARSEST, SIDE
        if c.task != "diffusion" and (c.crop % factor or c.crop > side):
            near = min(max(round(c.crop / factor), 1) * factor, side)
            raise MicroCinemaError(
                f"crop cannot be {c.crop}: give a multiple of {factor} pixels up to {side}, such as {near}"
            )
        if c.task == "autoencoder":
            return
        kind = "interpolation" if model.network.flow_warp else "diffusion"
        if c.task != kind:
            raise MicroCinemaError(f"task cannot be '{c.task}' for the model '{model.name}': give '{kind}'")
        if c.warp_steps and not model.network.forward_warp:
            raise MicroCinemaError(f"warp_steps cannot be {c.warp_steps}: '{model.name}' has no forward warp, give 0")
        if c.task == "interpolation":
            Photographs(c.folders)


def main(config_path: Path, out: Path | None = None, overrides: dict[str, str] | None = None) -> Path:
    """Run the training that a TOML file describes, in the folder `out`, and return the path of the trained model.

    `overrides` replace settings of the file. Raises MicroCinemaError for invalid settings, and as Trainer does.
    """
    config = DemoRunConfig.read(config_path, overrides)
    name = config.demo.model
    if name not in MODELS:
        raise MicroCinemaError(f"unknown model '{shown(name)}': known are {', '.join(MODELS)}")
    config.check(MODELS[name])
    folder = out or RUNS / Path(config_path).stem
    if config.demo.task != "autoencoder":
        autoencoder_file(config, folder)
    make_folder(folder)
    check_state(
        folder / "flow" if config.demo.task == "interpolation" else folder, config.train.steps, config.identity()
    )
    with processes(config.train, folder) as world:
        run(config, folder, world)
    return _result(config, folder)


def run(config: DemoRunConfig, folder: Path, world: Processes) -> None:
    """Run the training in one process of it; the first process writes the model file."""
    from .autoencoder import train_autoencoder
    from .interpolation import train_interpolation
    from .video import train_video

    model_config, scenes = MODELS[config.demo.model], folder.parent / "scenes"
    if config.demo.task == "autoencoder":
        autoencoder = train_autoencoder(config, model_config, folder, scenes, world)
        model = LoadedModel(model_config, None, autoencoder, None)
    else:
        autoencoder = load_autoencoder(autoencoder_file(config, folder))
        train, pool = train_video, scenes
        if config.demo.task == "interpolation":
            train, pool = train_interpolation, folder.parent / "moved"
        model = train(config, model_config, autoencoder, folder, pool, world)
    if world.first:
        result = _result(config, folder)
        save_model(result, model, torch.float32 if config.demo.task == "autoencoder" else torch.float16)
        print(f"wrote {result}", flush=True)


def _result(config: DemoRunConfig, folder: Path) -> Path:
    return folder / f"{config.demo.model}.safetensors"


def autoencoder_file(config: DemoRunConfig, folder: Path) -> Path:
    """The file `autoencoder` of the settings, relative to the working directory or to the parent of the run's folder.

    Raises MicroCinemaError where there is no such file.
    """
    file = Path(config.demo.autoencoder)
    for candidate in (file, folder.parent / file):
        if os.path.isfile(candidate):  # Path.is_file raises for a name that is too long
            return candidate
    raise MicroCinemaError(
        f"no autoencoder '{shown(str(file), 300)}': train it first with configs/demo-autoencoder.toml"
    )
