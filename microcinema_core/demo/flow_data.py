"""Files of moved photographs for the training of the flow network: shards of a pool, as in shards.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from ..files import make_folder, whole_file
from .film import FRAMES, draw_film
from .moved_photographs import DRAWING, Photographs
from .shards import draw_all

SCENES_PER_SHARD = 200
SIDE = 224  # of a scene, in pixels; crops of it are trained on
HELD_OUT_SEED = 2**40  # scenes of the pictures held out have seeds from here on


def shard_path(folder: Path, photographs: Photographs, index: int) -> Path:
    """The path of shard `index` of scenes with these pictures."""
    parameters = [DRAWING, SCENES_PER_SHARD, SIDE, photographs.identity]
    digest = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:8]
    return folder / f"moved-{SIDE}px-{digest}-{index:04d}.safetensors"


def draw_shard(folder: Path, pictures: Sequence[Path], index: int, held_out: bool) -> Path:
    """Draw shard `index` with the pictures of these folders unless its file exists, and return its path.

    The file contains the `frames` (n, FRAMES, 3, SIDE, SIDE) in uint8.
    """
    photographs = Photographs(pictures, held_out=held_out)
    path = shard_path(folder, photographs, index)
    if path.exists():
        return path
    rows = range(index * SCENES_PER_SHARD, (index + 1) * SCENES_PER_SHARD)
    films = (draw_film(photographs, row + HELD_OUT_SEED * held_out, SIDE) for row in rows)
    frames = torch.stack([(film * 255).round().to(torch.uint8) for film in films])
    with whole_file(path) as part:
        save_file({"frames": frames}, part)
    return path


def draw_pool(
    folder: Path, pictures: Sequence[Path], shards: int, workers: int, *, held_out: bool = False
) -> list[Path]:
    """Draw those of the first `shards` shards that do not exist, in `workers` processes, and return all their paths."""
    make_folder(folder)
    photographs = Photographs(pictures, held_out=held_out)
    paths = [shard_path(folder, photographs, index) for index in range(shards)]
    jobs = [(folder, tuple(pictures), index, held_out) for index, path in enumerate(paths) if not path.exists()]
    draw_all(draw_shard, jobs, workers)
    return paths


class MovedScenes:
    """The scenes of a pool: on a GPU all are in its memory, on the CPU they are read from the disk where they are
    used."""

    def __init__(self, paths: Sequence[Path], device: torch.device | str = "cpu"):
        self.shards = [_frames(path, torch.device(device)) for path in paths]
        self.identity = paths[0].stem if paths else ""  # of the way in which they were drawn

    def __len__(self) -> int:
        return len(self.shards) * SCENES_PER_SHARD

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The frames (b, FRAMES, 3, SIDE, SIDE) of scenes, in [0, 1]."""
        places = [divmod(index, SCENES_PER_SHARD) for index in indices]
        return torch.cat([self.shards[number][row : row + 1] for number, row in places]).float() / 255

    def sample(self, generator: Generator, count: int, crop: int) -> tuple[float, Tensor]:
        """A random batch: a time between the ends, and frames (b, 3, 3, crop, crop), the first, that of this time and
        the last.

        Scenes are cropped, mirrored, transposed, reversed in time and get their colour channels in another order.
        """

        def integer(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        between = 1 + integer(FRAMES - 2)
        frames = self.batch(torch.randint(len(self), (count,), generator=generator).tolist())[:, [0, between, -1]]
        reverse = bool(integer(2))
        crops = []
        for clip in frames:
            y, x = integer(SIDE - crop + 1), integer(SIDE - crop + 1)
            clip = clip[:, torch.randperm(3, generator=generator), y : y + crop, x : x + crop]
            for axis in (2, 3):
                clip = clip.flip(axis) if integer(2) else clip
            crops.append(clip.mT if integer(2) else clip)
        time, frames = between / (FRAMES - 1), torch.stack(crops)
        return (1 - time, frames.flip(1)) if reverse else (time, frames)


def _frames(path: Path, device: torch.device) -> Any:
    """The frames of a shard, in the memory of a GPU, or a slice of its file."""
    file = safe_open(path, "pt", str(device))
    return file.get_slice("frames") if device.type == "cpu" else file.get_tensor("frames")
