"""Files of drawn clips for the training. A file is called a shard, and all shards of a folder a pool.

A shard contains `CLIPS_PER_SHARD` clips, whose seeds follow from the shard's number. So a pool can be extended and
drawn by several processes, and is the same on every machine. The name of a shard contains a hash of the parameters of
drawing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import MicroCinemaError
from ..files import make_folder, whole_file
from .scenes import DRAWING, draw_clip

CLIPS_PER_SHARD = 250


def shard_path(folder: Path, index: int, frames: int, size: int, things: bool = False) -> Path:
    """The path of shard `index` with clips of so many frames, of size × size pixels."""
    digest = hashlib.sha256(json.dumps([DRAWING, CLIPS_PER_SHARD, frames, size]).encode()).hexdigest()[:8]
    return folder / f"{'things' if things else 'scenes'}-{size}px-{frames}f-{digest}-{index:04d}.safetensors"


def draw_shard(folder: Path, index: int, frames: int, size: int, things: bool = False) -> Path:
    """Draw shard `index` unless its file exists, and return its path. With `things` it has no camera moves, and one
    thing and two things in turn.

    The file contains `frames` (n, t, 3, size, size) in uint8, and the `flow` of the centre frames, (n, 2, size, size)
    in float16, pixels per frame. The captions are in its header.
    """
    path = shard_path(folder, index, frames, size, things)
    if path.exists():
        return path
    seeds = range(index * CLIPS_PER_SHARD, (index + 1) * CLIPS_PER_SHARD)
    kinds = itertools.cycle(("thing", "things") if things else (None,))
    clips = [draw_clip(seed, frames=frames, size=size, kind=kind) for seed, kind in zip(seeds, kinds, strict=False)]
    pictures = torch.stack([(clip.frames * 255).round().to(torch.uint8) for clip in clips])
    flow = torch.stack([clip.flow[frames // 2] for clip in clips]).half()
    captions = json.dumps([clip.caption for clip in clips])
    with whole_file(path) as part:
        save_file({"frames": pictures, "flow": flow}, part, {"captions": captions})
    return path


def draw_pool(folder: Path, shards: int, frames: int, size: int, workers: int, *, things: bool = False) -> list[Path]:
    """Draw those of the first `shards` shards that do not exist, in `workers` processes, and return all their paths."""
    make_folder(folder)
    paths = [shard_path(folder, index, frames, size, things) for index in range(shards)]
    jobs = [(folder, i, frames, size, things) for i, path in enumerate(paths) if not path.exists()]
    draw_all(draw_shard, jobs, workers)
    return paths


def draw_all(draw: Callable[..., Path], jobs: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Call `draw` with the arguments of each job, in `workers` processes of one thread."""
    if workers > 1 and len(jobs) > 1:
        with get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
            pool.starmap(draw, jobs, chunksize=1)
    else:
        for job in jobs:
            draw(*job)


def open_shards(paths: list[Path], name: str) -> list[torch.Tensor]:
    """The tensor `name` of each file, for example "frames" or "flow" of a shard, read from the disk only where used."""
    return [_read(path, lambda file: file.get_tensor(name)) for path in paths]


def load(paths: list[Path], name: str) -> torch.Tensor:
    """The tensors `name` of all files, concatenated in memory."""
    return torch.cat(open_shards(paths, name))


def load_captions(paths: list[Path]) -> list[str]:
    """The captions of all clips of these shards."""
    return [caption for path in paths for caption in _read(path, lambda file: json.loads(file.metadata()["captions"]))]


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    """Call `read` with the opened file. Raises MicroCinemaError where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise MicroCinemaError(f"'{path}' is damaged ({error}): delete it, it is made again") from error
