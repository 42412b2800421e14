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

    The file contains the `frames` (n, FRAMES, 3, SIDE, SIDE) in uint8, and for those between the end frames the
    `velocity` (n, FRAMES − 2, 2, SIDE, SIDE) in float16.
    """
    photographs = Photographs(pictures, held_out=held_out)
    path = shard_path(folder, photographs, index)
    if path.exists():
        return path
    frames, velocities = [], []
    for row in range(index * SCENES_PER_SHARD, (index + 1) * SCENES_PER_SHARD):
        scene, velocity = draw_film(photographs, row + HELD_OUT_SEED * held_out, SIDE)
        frames.append((scene * 255).round().to(torch.uint8))
        velocities.append(velocity[1:-1].half().contiguous())
    tensors = {"frames": torch.stack(frames), "velocity": torch.stack(velocities)}
    with whole_file(path) as part:
        save_file(tensors, part)
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
        self.files = [_opened(path, torch.device(device)) for path in paths]
        self.identity = paths[0].stem if paths else ""  # of the way in which they were drawn
        self.rows = [(number, row) for number in range(len(paths)) for row in range(SCENES_PER_SHARD)]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scenes: frames (b, FRAMES, 3, SIDE, SIDE) in [0, 1], and velocities (b, FRAMES − 2, 2, SIDE, SIDE) in pixels
        of those between the end frames."""
        places = [self.rows[index] for index in indices]
        frames, velocity = (
            torch.cat([self.files[number][name][row : row + 1] for number, row in places])
            for name in ("frames", "velocity")
        )
        return frames.float() / 255, velocity.float()

    def sample(self, generator: Generator, count: int, crop: int) -> tuple[float, Tensor, Tensor]:
        """A random batch: a time between the ends, frames (b, 3, 3, crop, crop), the first, that of this time and the
        last, and its velocities (b, 2, crop, crop).

        Scenes are cropped, mirrored, transposed, reversed in time and get their colour channels in another order.
        """

        def integer(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        between = 1 + integer(FRAMES - 2)
        time = between / (FRAMES - 1)
        frames, velocity = self.batch(torch.randint(len(self.rows), (count,), generator=generator).tolist())
        frames, velocity = frames[:, [0, between, -1]], velocity[:, between - 1]
        reverse = bool(integer(2))
        crops = []
        for clip, flow in zip(frames, velocity, strict=True):
            y, x = integer(SIDE - crop + 1), integer(SIDE - crop + 1)
            clip, flow = clip[..., y : y + crop, x : x + crop], flow[..., y : y + crop, x : x + crop]
            clip = clip[:, torch.randperm(3, generator=generator)]
            for axis in (0, 1):
                if integer(2):
                    clip, flow = clip.flip(axis - 2), flow.flip(axis - 2)
                    sign = torch.tensor([-1.0 if axis else 1.0, 1.0 if axis else -1.0])
                    flow = flow * sign.to(flow).view(2, 1, 1)
            if integer(2):
                clip, flow = clip.mT, flow.mT.flip(0)
            crops.append((clip, flow))
        frames, velocity = (torch.stack(parts) for parts in zip(*crops, strict=True))
        return (1 - time, frames.flip(1), -velocity) if reverse else (time, frames, velocity)


def _opened(path: Path, device: torch.device) -> dict[str, Any]:
    """The tensors of a shard by name, in the memory of a GPU, or slices of its file."""
    file = safe_open(path, "pt", str(device))
    read = file.get_slice if device.type == "cpu" else file.get_tensor
    return {name: read(name) for name in ("frames", "velocity")}
