"""`microcinema train` for the paper's models: from videos, or latents that were cached, to a model file.

The folder of a run holds `checkpoints/` (states.py), `log.jsonl` and `tensorboard/` (monitor.py), samples, and the
model with the averaged weights, `<name>.safetensors`, which is written anew with the samples and usable at any time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import LoadedModel
from ..config import ModelConfig, demo_module
from ..errors import MicroCinemaError
from ..files import make_folder
from ..model.layers import channels_last
from ..progress import progress_bar
from .data.buckets import bucket_sizes
from .data.cache import CachedClips, make_cache, skipped_in, states_of
from .data.order import Order
from .data.samples import Clips, Loader, Samples, TextSource, split
from .data.sources import VideoClips
from .data.videos import VideoSet
from .distributed import Processes, processes, training_device
from .objective import VideoModel, VideoObjective
from .parameters import memory, select
from .settings import DataTable, VideoRunConfig
from .start import check_model, initial_model
from .states import check_state
from .trainer import Trainer
from .validation import Validation

RUNS = Path("runs")


def main(config_path: Path, out: Path | None = None, overrides: dict[str, str] | None = None) -> Path:
    """Run the training that a TOML file describes, in the folder `out`, and return the path of the trained model.

    `overrides` replace settings of the file. Raises MicroCinemaError for invalid settings, and as run does.
    """
    config = VideoRunConfig.read(config_path, overrides)
    model = check_model(config)
    folder = out or RUNS / Path(config_path).stem
    make_folder(folder)
    check_state(folder, config.train.steps, config.identity())
    with processes(config.train, folder) as world:
        return run(config, model, folder, world)


def run(config: VideoRunConfig, model: ModelConfig, folder: Path, world: Processes) -> Path:
    """Train in one process of a run.

    Raises MicroCinemaError where there are no clips to learn from, or the model cannot be loaded, and as Trainer does.
    """
    c, table = config.train, config.data
    with world.first_goes_first():  # it writes what the others read
        clips = open_clips(config, model, folder, world)
    rows, held_out = split(len(clips.buckets), table.held_out, c.seed)
    loaded = initial_model(config, model, clips.captions())
    prepared = prepare(config, loaded, world)
    samples = Samples(
        clips, rows, _order(clips, rows, config), prepared.text_source(clips), seed=c.seed, variants=table.variants,
        text_drop=table.text_drop, factor=loaded.config.autoencoder.factor,
        channels=loaded.config.autoencoder.latent_channels,
    )  # fmt: skip
    trainer = Trainer(prepared.objective, config, folder, world, data=clips.identity)
    for bucket, count in samples.order.too_small.items():
        size = "×".join(map(str, clips.sizes[bucket]))
        trainer.monitor.note(f"{count} videos of {size} are too few for a batch of {c.batch_size} and left out")
    loader = Loader(samples, world.rank, trainer.share, c.workers)
    validation = Validation(prepared, clips, held_out if table.held_out else rows, trainer, folder)
    trainer.monitor.note(str(memory(prepared.objective, c.optimizer, len(trainer.averages))))
    if trainer.step < c.steps:
        trainer.rehearse(samples.largest(trainer.micro_batch))
    alone = False
    try:
        trainer.run(loader, validation.show)
    except Exception:  # maybe of this process only: the others would not answer
        alone = True
        raise
    finally:
        _report_skipped(trainer, [loader.skipped] if alone else world.gather(loader.skipped))
    return validation.path


def cache(config_path: Path, out: Path, overrides: dict[str, str] | None = None) -> Path:
    """Encode the clips of a run beforehand, into a folder below `out`, which is returned (data/cache.py).

    Several processes may be started at once, by torchrun or by hand. Raises MicroCinemaError as main does.
    """
    config = VideoRunConfig.read(config_path, overrides)
    model = check_model(config)
    if config.data.cache:
        raise MicroCinemaError("data.cache is what this command makes: name the videos in data.folder or data.shards")
    make_folder(out)
    torch.set_num_threads(config.train.threads)
    rank, device = int(os.environ.get("RANK", 0)), training_device(config.train.device)
    alone = Processes(rank, 1, device)
    clips = open_clips(config, model, out, alone)
    loaded = initial_model(config, model, clips.captions())
    autoencoder, text = loaded.autoencoder, None if config.model.vocabulary else loaded.text
    assert autoencoder is not None
    for part in filter(None, (autoencoder, text)):
        part.to(device).eval()
    dtype = getattr(torch, config.data.cache_dtype)
    with progress_bar("cache", "shard", shown=alone.first) as progress:
        folder = make_cache(
            clips, autoencoder, text, cache_settings(config, model), out, variants=config.data.variants or 1,
            dtype=dtype, report=lambda line: print(line, flush=True) if alone.first else None, progress=progress,
        )  # fmt: skip
    skipped = skipped_in(folder)
    if alone.first and skipped:
        print(f"skipped {len(skipped)} videos:", *(f"{name}: {reason}" for name, reason in skipped.items()), sep="\n  ")
    return folder


@dataclass
class Prepared:
    """A model that is ready to be trained."""

    config: ModelConfig
    loaded: LoadedModel
    objective: VideoObjective

    def text_source(self, clips: Clips) -> TextSource:
        """How the captions of clips become the input of the model."""
        if not self.config.text or self.config.network.context_dim is None:
            return TextSource(None)
        assert self.loaded.text is not None
        if isinstance(clips, CachedClips) and clips.has_states:
            return TextSource(None, states_of(self.loaded.text, [""])[0])
        return TextSource(self.loaded.text.tokenizer)


def prepare(config: VideoRunConfig, loaded: LoadedModel, world: Processes) -> Prepared:
    """Move a model to the device and choose what of it is trained."""
    c = config.train
    assert loaded.network is not None and loaded.autoencoder is not None
    select(loaded.network, c.trained, c.lora_rank)
    loaded.network.gradient_checkpointing = loaded.network.appearance.gradient_checkpointing = c.gradient_checkpointing
    if loaded.text is not None:
        loaded.text.requires_grad_(config.model.vocabulary > 0)
    model = VideoModel(loaded.config, loaded.network, loaded.text)
    if c.strategy == "ddp":
        channels_last(model)
    if c.compile:
        loaded.network.compile()
    loaded.autoencoder.to(world.device)
    return Prepared(loaded.config, loaded, VideoObjective(loaded.config, model, loaded.autoencoder, c.spatial_factor))


def open_clips(config: VideoRunConfig, model: ModelConfig, folder: Path, world: Processes) -> Clips:
    """The clips that the table [data] names.

    Raises MicroCinemaError where there are none, and where a cache was made for another model.
    """
    table = config.data
    if table.cache:
        return CachedClips(Path(table.cache), cache_settings(config, model))
    if table.scenes:
        return demo_module("drawn").DrawnClips(table.scenes, model)
    return VideoClips(
        open_videos(table, folder, world, captions=model.text is not None), model.network.frames,
        rates(config, model), sizes(config, model), config.train.seed,
    )  # fmt: skip


def open_videos(table: DataTable, folder: Path, world: Processes, captions: bool = True) -> VideoSet:
    """Find and probe the videos of the table [data]; with `captions`, those that have one. What is skipped is counted
    on the console."""
    options: dict[str, Any] = {"cache": Path(table.probes) if table.probes else folder, "captions": captions}
    with progress_bar("videos", "video", shown=world.first) as progress:
        if table.shards:
            videos = VideoSet.from_shards(table.shards, progress=progress, **options)
        else:
            videos = VideoSet.from_folder(table.folder, table.table or None, progress=progress, **options)
    if world.first:
        skipped = "; ".join(f"{count} {reason}" for reason, count in videos.reasons().items())
        print(f"{len(videos)} videos" + (f", skipped: {skipped}" if skipped else ""), flush=True)
    return videos


def rates(config: VideoRunConfig, model: ModelConfig) -> tuple[float, ...]:
    """The rates of the clips, in frames per second."""
    return config.data.fps or (model.fps,)


def sizes(config: VideoRunConfig, model: ModelConfig) -> list[tuple[int, int]]:
    """The sizes of the clips: the model's, or several of that area."""
    if not config.data.buckets:
        return [(model.width, model.height)]
    smallest = model.autoencoder.factor * 2 ** (len(model.network.channel_multipliers) - 1)
    return bucket_sizes(model.width * model.height, smallest)


def cache_settings(config: VideoRunConfig, model: ModelConfig) -> dict[str, Any]:
    """What the clips in a cache depend on, besides the data and the weights."""
    return {
        "frames": model.network.frames, "fps": list(rates(config, model)),
        "sizes": [list(size) for size in sizes(config, model)],
        "factor": model.autoencoder.factor, "channels": model.autoencoder.latent_channels,
    }  # fmt: skip


def _order(clips: Clips, rows: np.ndarray, config: VideoRunConfig) -> Order:
    if not len(rows):
        raise MicroCinemaError(f"data.held_out cannot be {config.data.held_out}: leave videos to learn from")
    return Order(clips.buckets[rows], config.train.batch_size, config.train.seed)


def _report_skipped(trainer: Trainer, parts: list[dict[str, str]]) -> None:
    """List what the processes could not use of the data, at the end of a run."""
    skipped = {}
    for part in parts:
        skipped |= part
    for name, reason in sorted(skipped.items())[:20]:
        trainer.monitor.note(f"skipped {name}: {reason}")
    if len(skipped) > 20:
        trainer.monitor.note(f"skipped {len(skipped) - 20} more")
