"""`microcinema train CONFIG.toml`: from nothing to a model file, in a run folder that can be resumed."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import LoadedModel, load_model, save_model
from ..config import CONFIGS
from ..errors import MicroCinemaError
from .autoencoder import train_autoencoder
from .diffusion import train_diffusion
from .loop import TrainingConfig

RUNS = Path("runs")


def main(config_path: Path, out: Path | None = None, overrides: dict[str, str] | None = None) -> Path:
    """Run the training that the TOML file describes; returns the model file written at the end."""
    config = TrainingConfig.read(config_path, overrides or {})
    if config.model not in CONFIGS:
        raise MicroCinemaError(f"unknown model '{config.model}': known are {', '.join(CONFIGS)}")
    folder = out or RUNS / Path(config_path).stem
    scenes = folder.parent / "scenes"
    torch.set_num_threads(config.threads)
    model_config = CONFIGS[config.model]
    result = folder / f"{config.model}.safetensors"
    if config.task == "autoencoder":
        # The network of this file is untrained: only its autoencoder is read, by the trainings that follow.
        from ..model import MicroCinemaUNet

        autoencoder = train_autoencoder(config, model_config, folder, scenes)
        network = MicroCinemaUNet(model_config.network)
        save_model(result, LoadedModel(model_config, network, autoencoder, None), torch.float32)
    elif config.task == "diffusion":
        autoencoder = load_model(_autoencoder_file(config, folder)).autoencoder
        save_model(result, train_diffusion(config, model_config, autoencoder, folder, scenes))
    else:
        raise MicroCinemaError(f'unknown task \'{config.task}\': use "autoencoder" or "diffusion"')
    print(f"wrote {result}", flush=True)
    return result


def _autoencoder_file(config: TrainingConfig, folder: Path) -> Path:
    file = Path(config.autoencoder)
    for candidate in (file, folder.parent / file):
        if candidate.is_file():
            return candidate
    raise MicroCinemaError(f"no autoencoder '{file}': train it first with configs/demo-autoencoder.toml")
