"""The pool of drawn clips, on disk: drawn once, as bytes; encoded once, as latents.

A shard is `CLIPS_PER_SHARD` scenes whose seeds follow from its number, so a pool can grow, be drawn by several
processes, and is the same on every machine. Its name holds a hash of all that shapes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import safe_open

from ..errors import MicroCinemaError
from .files import make_folder, save_tensors
from .scenes import DRAWING, draw_clip

CLIPS_PER_SHARD = 250
INTERPOLATION_RATES = (1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 16)  # one pass, mostly; wider and finer steps for robustness


def shard_path(folder: Path, index: int, frames: int, size: int, interpolation: bool) -> Path:
    shape = [DRAWING, CLIPS_PER_SHARD, frames, size, INTERPOLATION_RATES if interpolation else 1]
    digest = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:8]
    return folder / f"scenes-{size}px-{frames}f-{digest}-{index:04d}.safetensors"


def draw_shard(folder: Path, index: int, frames: int, size: int, interpolation: bool) -> Path:
    """Draw shard `index` unless it is there: `frames` (n, t, 3, size, size) uint8, captions in the header, and the
    `flow` of the frames that condition a model, in pixels a frame, (n, k, 2, size, size) float16."""
    path = shard_path(folder, index, frames, size, interpolation)
    if path.exists():
        return path
    clips = []
    for seed in range(index * CLIPS_PER_SHARD, (index + 1) * CLIPS_PER_SHARD):
        rate = INTERPOLATION_RATES[seed % len(INTERPOLATION_RATES)] if interpolation else 1.0
        clips.append(draw_clip(seed, frames=frames, size=size, rate=rate))
    pictures = torch.stack([(clip.frames * 255).round().to(torch.uint8) for clip in clips])
    shown = [0, -1] if interpolation else [frames // 2]
    flow = torch.stack([clip.flow[shown] for clip in clips]).half()
    captions = json.dumps([clip.caption for clip in clips])
    save_tensors(path, {"frames": pictures, "flow": flow}, {"captions": captions})
    return path


def draw_pool(folder: Path, shards: int, frames: int, size: int, interpolation: bool, workers: int) -> list[Path]:
    """Draw what is missing of the first `shards` shards and return their paths."""
    make_folder(folder)
    paths = [shard_path(folder, index, frames, size, interpolation) for index in range(shards)]
    jobs = [(folder, i, frames, size, interpolation) for i, path in enumerate(paths) if not path.exists()]
    if workers > 1 and len(jobs) > 1:
        with get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
            pool.starmap(draw_shard, jobs, chunksize=1)
    else:
        for job in jobs:
            draw_shard(*job)
    return paths


def open_shards(paths: list[Path], name: str) -> list[torch.Tensor]:
    """One tensor of each file, "frames" or "flow" of a shard, say, read from disk only when looked at."""
    return [_read(path, lambda file: file.get_tensor(name)) for path in paths]


def load(paths: list[Path], name: str) -> torch.Tensor:
    """The same of all shards together, in memory."""
    return torch.cat(open_shards(paths, name))


def load_captions(paths: list[Path]) -> list[str]:
    return [caption for path in paths for caption in _read(path, lambda file: json.loads(file.metadata()["captions"]))]


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise MicroCinemaError(f"'{path}' is damaged ({error}): delete it, it is made again") from error
