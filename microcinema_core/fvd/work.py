"""A folder of features that many processes fill: shards of few clips, each there whole or not at all.

Shard k belongs to rank k % world, as torchrun's RANK and WORLD_SIZE tell it; ranks do not speak to each other. What is
in a shard does not depend on the rank, so that a killed run goes on with any number of processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import files
from ..errors import MicroCinemaError
from .sets import Item

SHARD = 8  # clips
SETTINGS, PROMPTS = "settings.json", "prompts.csv"


def rank_and_world() -> tuple[int, int]:
    """This process's number and that of all, from torchrun's environment; (0, 1) without it."""
    rank, world = (os.environ.get(name) or default for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise MicroCinemaError(f"RANK={rank} and WORLD_SIZE={world} do not fit: start with torchrun, or unset both")
    return int(rank), int(world)


def device_of_rank(name: str) -> str:
    """The device for this process: with torchrun on a machine of several GPUs, the LOCAL_RANK-th of them."""
    local = os.environ.get("LOCAL_RANK", "")
    if name not in ("auto", "cuda") or not local.isdecimal() or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


class Work:
    """The folder of one measurement and its settings."""

    def __init__(self, folder: Path, settings: dict):
        """Raises MicroCinemaError where the folder holds the features of other settings. Writes nothing."""
        self.folder, self.settings = folder, settings
        path = folder / SETTINGS
        if not path.exists():
            return
        try:
            stored = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise MicroCinemaError(f"'{path}' is damaged: take another folder with --work") from error
        for key in [*settings, *(key for key in stored if key not in settings)]:
            if stored.get(key) != settings.get(key):
                was, now = (str(values.get(key))[:80] for values in (stored, settings))
                raise MicroCinemaError(
                    f"'{folder}' holds a measurement with {key} {was}, not {now}: take the same settings again, or "
                    "another folder with --work"
                )

    def begin(self) -> None:
        """Make the folder and write its settings."""
        files.make_folder(self.folder)
        files.remove_stale(self.folder)
        with files.whole_file(self.folder / SETTINGS) as part:
            part.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    def shard(self, kind: str, index: int) -> Path:
        """The file of a shard of `kind`, "real" or "generated"."""
        return self.folder / f"{kind}-{index:05}.safetensors"

    def fill(
        self, kind: str, items: list[Item], clip: Callable[[Item], Tensor], features: Callable[[Tensor], Tensor],
        progress: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Make this rank's shards that are not there. `clip` gives (t, 3, h, w); `progress` is told of each item."""
        rank, world = rank_and_world()
        for index in range(rank, shards(items), world):
            part, path = items[index * SHARD :][:SHARD], self.shard(kind, index)
            if path.exists():
                progress(len(part))
                continue
            clips = []
            for item in part:
                clips.append(clip(item).transpose(0, 1))
                progress(1)
            found = features(torch.stack(clips))
            with files.whole_file(path) as temporary:
                save_file({"features": found.contiguous()}, temporary)

    def missing(self, kind: str, items: list[Item]) -> int:
        """How many shards are not there yet."""
        return sum(not self.shard(kind, index).exists() for index in range(shards(items)))

    def features(self, kind: str, items: list[Item]) -> Tensor:
        """The features (n, d) of all items. Raises MicroCinemaError for a damaged shard."""
        parts = []
        for index in range(shards(items)):
            path = self.shard(kind, index)
            try:
                part = load_file(path)["features"]
                if part.ndim != 2 or len(part) != len(items[index * SHARD :][:SHARD]):
                    raise ValueError(f"of shape {tuple(part.shape)}")
            except (OSError, KeyError, ValueError, SafetensorError) as error:
                raise MicroCinemaError(f"'{path}' is damaged ({error}): delete it and run the command again") from error
            parts.append(part)
        return torch.cat(parts)


def shards(items: list[Item]) -> int:
    """The number of shards for the items."""
    return -(-len(items) // SHARD)
