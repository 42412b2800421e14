"""Trains the bundled interpolation model: its flow network on moved photographs, then the diffusion residual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoint import LoadedModel
from ..files import locked
from ..images import contact_sheet
from ..model import build
from ..model.autoencoder import Autoencoder
from ..model.layers import channels_last
from ..training.distributed import Processes
from ..training.trainer import Figures, Trainer
from .config import DemoModelConfig
from .flow import FlowNetwork
from .flow_data import MovedScenes, draw_pool
from .flow_training import FlowBatches, FlowObjective, validate
from .flow_unet import FlowUNet
from .moved_photographs import Photographs
from .residual_training import ResidualBatches, ResidualObjective, draw_clips, fit_residual_out

if TYPE_CHECKING:
    from .recipes import DemoRunConfig

CLIP_SEED = 2**41  # clips for the residual have seeds from here on
CLIP_SIDE = 128  # of these clips, in pixels
HELD_OUT = 64  # scenes for the validation of the flow network
RESIDUAL_SETTINGS = {"learning_rate": 1e-3, "warmup": 100, "sample_every": 10**9}


def train_interpolation(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, folder: Path, pool: Path,
    world: Processes,
) -> LoadedModel:  # fmt: skip
    """Train the interpolation model, or resume the run in `folder`. Returns the EMA model with the given autoencoder.

    The moved photographs are drawn into the folder `pool`. Raises MicroCinemaError as Trainer does, and for folders
    without photographs.
    """
    photographs = Photographs(config.demo.folders)
    flow = train_flow(config, folder / "flow", pool, world)
    return train_residual(config, model_config, autoencoder, flow, photographs, folder / "residual", world)


def train_flow(config: DemoRunConfig, folder: Path, pool: Path, world: Processes) -> FlowNetwork:
    """Train the flow network. Returns it with averaged weights."""
    table, workers = config.demo, max(1, config.train.workers)
    with world.first_goes_first(), locked(pool, wait=True):
        scenes = MovedScenes(draw_pool(pool, table.folders, table.shards, workers), world.device)
        held_out = MovedScenes(draw_pool(pool, table.folders, 1, 1, held_out=True), world.device)
    torch.manual_seed(config.train.seed)
    network = channels_last(FlowNetwork())

    def show(folder: Path, stem: str) -> Figures:
        figures, rows = validate(network, held_out, limit=HELD_OUT)
        if world.first:
            contact_sheet(rows, folder / f"{stem}.png")
        return figures

    trainer = Trainer(FlowObjective(network), config, folder, world, data=scenes.identity)
    trainer.run(FlowBatches(config, scenes, world), show)
    return network


def train_residual(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, flow: FlowNetwork,
    photographs: Photographs, folder: Path, world: Processes,
) -> LoadedModel:  # fmt: skip
    """Train the layers of the diffusion model around a trained flow network, which stays as it is."""
    torch.manual_seed(config.train.seed)
    network = build(model_config.network)
    assert isinstance(network, FlowUNet)
    network.flow_warp.autoencoder.load_state_dict(autoencoder.state_dict())
    network.flow_warp.network.load_state_dict(flow.state_dict())
    network.flow_warp.requires_grad_(False)
    seeds = range(CLIP_SEED, CLIP_SEED + config.demo.residual_clips)
    clips = draw_clips(channels_last(network.to(world.device)), photographs, seeds, CLIP_SIDE)
    settings = replace(config, train=replace(config.train, steps=config.demo.residual_steps, **RESIDUAL_SETTINGS))
    identity = f"{photographs.identity} {len(clips)} clips"
    trainer = Trainer(ResidualObjective(model_config, network), settings, folder, world, data=identity)
    trainer.run(ResidualBatches(settings, clips, world))
    model = LoadedModel(model_config, network, autoencoder, None)
    errors = fit_residual_out(model, clips)
    if world.first:
        print(f"residual of {len(clips)} clips: standard deviation {clips.residual_std:.3f} in latents", flush=True)
        print("squared error of pixels without the residual {:.6f}, with it {:.6f}".format(*errors), flush=True)
    return model
