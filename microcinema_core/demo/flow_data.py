"""Files of moved photographs for the training of the flow network: shards of a pool, as in shards.py.

A shard has the flows of its films as well: those of whole films are better than those of crops, and are searched once.
"""

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
from .flow import both_ways
from .inverse_search import STRIDE
from .moved_photographs import DRAWING, Photographs
from .shards import draw_all

SEARCH = 1  # changes with every change of the flows that are found
SCENES_PER_SHARD = 200
SIDE = 224  # of a scene, in pixels; crops of it are trained on
HELD_OUT_SEED = 2**40  # scenes of the pictures held out have seeds from here on


def shard_path(folder: Path, photographs: Photographs, index: int) -> Path:
    """The path of shard `index` of scenes with these pictures."""
    parameters = [DRAWING, SEARCH, SCENES_PER_SHARD, SIDE, photographs.identity]
    digest = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:8]
    return folder / f"moved-{SIDE}px-{digest}-{index:04d}.safetensors"


def draw_shard(folder: Path, pictures: Sequence[Path], index: int, held_out: bool) -> Path:
    """Draw shard `index` with the pictures of these folders unless its file exists, and return its path.

    The file contains the `frames` (n, FRAMES, 3, SIDE, SIDE) in uint8, and the `flows` (n, 2, 2, SIDE/2, SIDE/2) of
    both ends to each other, in float16, as `both_ways` finds them.
    """
    photographs = Photographs(pictures, held_out=held_out)
    path = shard_path(folder, photographs, index)
    if path.exists():
        return path
    rows = range(index * SCENES_PER_SHARD, (index + 1) * SCENES_PER_SHARD)
    frames, flows = [], []
    for row in rows:
        film = draw_film(photographs, row + HELD_OUT_SEED * held_out, SIDE)
        frames.append((film * 255).round().to(torch.uint8))
        flows.append(both_ways(film[None, [0, -1]])[0].half())
    with whole_file(path) as part:
        save_file({"frames": torch.stack(frames), "flows": torch.stack(flows)}, part)
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
        device = torch.device(device)
        self.frames, self.flows = ([_tensor(path, name, device) for path in paths] for name in ("frames", "flows"))
        self.identity = paths[0].stem if paths else ""  # of the way in which they were drawn

    def __len__(self) -> int:
        return len(self.frames) * SCENES_PER_SHARD

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The frames (b, FRAMES, 3, SIDE, SIDE) of scenes, in [0, 1], and their flows (b, 2, 2, SIDE/2, SIDE/2)."""
        places = [divmod(index, SCENES_PER_SHARD) for index in indices]
        frames, flows = (
            torch.cat([shards[number][row : row + 1] for number, row in places]).float()
            for shards in (self.frames, self.flows)
        )
        return frames / 255, flows

    def sample(self, generator: Generator, count: int, crop: int) -> tuple[float, Tensor, Tensor]:
        """A random batch: a time between the ends, frames (b, 3, 3, crop, crop), the first, that of this time and the
        last, and the flows (b, 2, 2, crop/2, crop/2). `crop` is even.

        Scenes are cropped, mirrored, transposed, reversed in time and get their colour channels in another order.
        """

        def integer(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        between, reverse = 1 + integer(FRAMES - 2), bool(integer(2))
        frames, flows = self.batch(torch.randint(len(self), (count,), generator=generator).tolist())
        crops = []
        for clip, flow in zip(frames[:, [0, between, -1]], flows, strict=True):
            y, x = (integer((SIDE - crop) // STRIDE + 1) for _ in range(2))
            clip = clip[:, torch.randperm(3, generator=generator), STRIDE * y :, STRIDE * x :][..., :crop, :crop]
            flow = flow[..., y:, x:][..., : crop // STRIDE, : crop // STRIDE]
            for axis, signs in ((-2, (1, -1)), (-1, (-1, 1))):
                if integer(2):
                    clip, flow = clip.flip(axis), flow.flip(axis) * torch.tensor(signs).to(flow).view(2, 1, 1)
            crops.append((clip.mT, flow.flip(1).mT) if integer(2) else (clip, flow))
        frames, flows = (torch.stack(parts) for parts in zip(*crops, strict=True))
        time = between / (FRAMES - 1)
        return (1 - time, frames.flip(1), flows.flip(1)) if reverse else (time, frames, flows)


def _tensor(path: Path, name: str, device: torch.device) -> Any:
    """A tensor of a shard, in the memory of a GPU, or a slice of its file."""
    file = safe_open(path, "pt", str(device))
    return file.get_slice(name) if device.type == "cpu" else file.get_tensor(name)
