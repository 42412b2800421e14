"""The training of the bundled interpolation model: its flow network on moved photographs, then the residual."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from ..checkpoint import LoadedModel, load_autoencoder, save_model
from ..files import locked
from ..model import build
from ..model.layers import channels_last
from ..training.config import Steps, TrainingConfig
from ..training.trainer import Trainer
from ..validated import Range, validated
from .config import FLOW_INTERPOLATION
from .flow import COARSEST, FlowNetwork
from .flow_data import SIDE, MovedScenes, draw_pool
from .flow_training import FlowTraining
from .moved_photographs import FOLDERS, Photographs
from .network import DemoUNet
from .recipes import autoencoder_file
from .residual_training import ResidualTraining, draw_clips, fit_residual_out

CLIP_SEED = 2**41  # clips for the residual have seeds from here on
CLIP_SIDE = 128  # of these clips, in pixels


@validated
class InterpolationTrainingConfig(TrainingConfig):
    """The training of the interpolation model. `steps` and what belongs to them are those of the flow network."""

    task: Literal["interpolation"] = field(kw_only=True)
    autoencoder: str = ""  # the model file with the autoencoder
    # Folders with photographs; those of the packages in moved_photographs.py by default.
    pictures: tuple[str, ...] = ()
    shards: Annotated[int, Range(1, 10_000, "shards", 60)] = 60  # of moved scenes, with 200 each
    coarse_steps: Annotated[int, Range(0, 10**9, "steps", 5000)] = 5000  # train the levels up to 1/4 of the resolution
    late_steps: Annotated[int, Range(0, 10**9, "steps", 16000)] = 16000  # from here on the flow has less weight
    crop: Annotated[int, Range(COARSEST, SIDE, "pixels", 192)] = 192  # of coarse steps; multiples of 16
    fine_crop: Annotated[int, Range(COARSEST, SIDE, "pixels", 128)] = 128  # of the others
    residual_clips: Annotated[int, Range(8, 10**6, "clips", 1500)] = 1500
    residual_steps: Steps = 1500

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders with pictures."""
        return tuple(map(Path, self.pictures)) or tuple(folder for folder in FOLDERS if folder.is_dir())


def main(config_path: Path, out: Path | None = None, overrides: dict[str, str] | None = None) -> Path:
    """Run the training that a TOML file describes, in the folder `out`, and return the path of the trained model.

    A run that was stopped goes on when it is called again. Raises MicroCinemaError for invalid settings, for folders
    without photographs, and as Trainer does.
    """
    config = InterpolationTrainingConfig.read(config_path, overrides)
    folder = out or Path("runs") / Path(config_path).stem
    torch.set_num_threads(config.threads)
    autoencoder = load_autoencoder(autoencoder_file(config, folder))  # pyright: ignore[reportArgumentType]
    photographs = Photographs(config.folders)
    with locked(folder):
        flow = train_flow(config, folder)
        result = folder / f"{FLOW_INTERPOLATION.name}.safetensors"
        model = train_residual(config, folder, flow, autoencoder, photographs)
        save_model(result, model, torch.float16)
    print(f"wrote {result}", flush=True)
    return result


def train_flow(config: InterpolationTrainingConfig, folder: Path) -> FlowNetwork:
    """Train the flow network, or go on with the run in `folder`; scenes are drawn beside the folder where they are
    missing. Returns the network with averaged weights."""
    pool = folder.parent / "moved"
    scenes = MovedScenes(draw_pool(pool, config.folders, config.shards, config.workers))
    held_out = MovedScenes(draw_pool(pool, config.folders, 1, 1, held_out=True))
    torch.manual_seed(config.seed)
    network = channels_last(FlowNetwork())
    trainer = Trainer(network, config, folder / "flow", scenes.identity)
    training = FlowTraining(
        network, scenes, held_out, batch_size=config.batch_size, crop=config.crop, fine_crop=config.fine_crop,
        coarse_steps=config.coarse_steps, late_steps=config.late_steps,
    )  # fmt: skip
    return trainer.run(training.loss, training.show)


def train_residual(
    config: InterpolationTrainingConfig, folder: Path, flow: FlowNetwork, autoencoder, photographs: Photographs
) -> LoadedModel:
    """Train the layers of the diffusion model around a trained flow network, which stays as it is."""
    model_config = FLOW_INTERPOLATION
    torch.manual_seed(config.seed)
    network = build(model_config.network)
    assert isinstance(network, DemoUNet)
    network.flow_warp.autoencoder.load_state_dict(autoencoder.state_dict())
    network.flow_warp.network.load_state_dict(flow.state_dict())
    network.flow_warp.requires_grad_(False)
    clips = draw_clips(
        channels_last(network), photographs, range(CLIP_SEED, CLIP_SEED + config.residual_clips), CLIP_SIDE
    )
    print(f"residual of {len(clips)} clips: standard deviation {clips.residual_std:.3f} in latents", flush=True)
    settings = replace(config, steps=config.residual_steps, learning_rate=1e-3, warmup=100)
    trainer = Trainer(network, settings, folder / "residual")
    trained = trainer.run(ResidualTraining(model_config, network, clips, config.batch_size).loss)
    model = LoadedModel(model_config, trained, autoencoder, None)
    errors = fit_residual_out(model, clips)
    print("squared error of pixels without the residual {:.6f}, with it {:.6f}".format(*errors), flush=True)
    return model
