"""`microcinema init`: a full-size model, ready to train, from Stable Diffusion 2.1 base.

The spatial layers are Stable Diffusion's, and AppearNet is a copy of them. The temporal layers are drawn at random, or
taken from a public video model, together with its spatial layers where these compute here what they compute there; all
other new layers are zero. The tensors are copied from file to file one at a time.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig
from ..errors import MicroCinemaError
from ..files import whole_file
from ..header import AUTOENCODER, NETWORK, TEXT, header
from ..model import build
from ..model.temporal import TemporalConv, TemporalTransformer
from . import donors
from .donors import Donor
from .stable_diffusion import stable_diffusion
from .stored import DTYPES, Source, Stored

SEED = 0  # of the random temporal layers
_PARTS = {NETWORK: "spatial layers", AUTOENCODER: "autoencoder", TEXT: "text encoder"}


@dataclass(frozen=True)
class Report:
    """What became of the tensors: the numbers taken from the sources and new in the file, by kind, and the names of
    those left out, by reason. And the video model of a warm start, with its licence."""

    config: ModelConfig
    taken: dict[str, int]
    new: dict[str, int]
    left: dict[str, list[str]]
    donor: Donor | None = None


def initialise(
    source: Path,
    output: Path,
    config: ModelConfig,
    warm_start: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write a model of `config` initialised from `source`, and from the video model `warm_start` if given.

    The file appears complete or not at all; its tensors have the dtype of the source. Raises MicroCinemaError as
    stable_diffusion and donors.warm_start do, and where the output is one of the sources.
    """
    if os.path.exists(output) and any(
        path and os.path.exists(path) and output.samefile(path) for path in (source, warm_start)
    ):
        raise MicroCinemaError(f"'{output}' is read and cannot be written at once: give the output another name")
    pictures = stable_diffusion(source, config)
    has = [part for part in _PARTS if any(key.startswith(part) for key in pictures.tensors)]
    warm = donors.warm_start(warm_start, donors.open_donor(warm_start), config, has) if warm_start else None
    tensors, report = plan(config, pictures, warm)
    _write(output, report.config, tensors, progress)
    return report


def plan(
    config: ModelConfig, pictures: Source, warm: donors.WarmStart | None = None
) -> tuple[dict[str, Stored], Report]:
    """All tensors of a model of `config` by key, none of which is read yet, and where they come from.

    pictures: from Stable Diffusion. warm: from a video model. What both have is the video model's, except AppearNet:
    it sees pictures, not clips, and is a copy of Stable Diffusion.
    """
    sources = [pictures, warm.source] if warm else [pictures]
    if warm:
        config = replace(config, network=warm.network)
    tensors = {key: tensor for source in sources for key, tensor in source.tensors.items()}
    taken = Counter(map(_kind, tensors))
    new = _add_new(tensors, config, pictures)
    left: dict[str, list[str]] = {}
    for source in sources:
        for reason, names in source.left.items():
            left[reason] = left.get(reason, []) + sorted(names)
    used = set(map(id, tensors.values()))
    if warm and (replaced := [tensor.key for tensor in pictures.tensors.values() if id(tensor) not in used]):
        left[f"Stable Diffusion's layers, in place of which those of {warm.donor.name} are taken"] = sorted(replaced)
    return tensors, Report(config, taken, new, left, warm.donor if warm else None)


def _kind(key: str) -> str:
    kind = next(name for part, name in _PARTS.items() if key.startswith(part))
    name = key.removeprefix(NETWORK)
    return "temporal layers" if name.startswith("temporal") else "condition input" if "condition_in" in name else kind


def _add_new(tensors: dict[str, Stored], config: ModelConfig, pictures: Source) -> dict[str, int]:
    """Add the network's tensors that the sources lack. Returns how many of each kind were added."""
    network = build(config.network, device="meta")
    dtype = tensors[f"{NETWORK}input_blocks.0.0.weight"].dtype
    parts = {
        name: module for name, module in network.named_modules() if type(module) in (TemporalConv, TemporalTransformer)
    }

    @lru_cache(maxsize=1)  # the tensors of a part are written one after another
    def drawn(name: str) -> dict[str, torch.Tensor]:
        part = deepcopy(parts[name]).to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + list(parts).index(name))
            for module in reversed(list(part.modules())):  # the innermost first
                if reset := getattr(module, "reset_parameters", None):
                    reset()
        return part.state_dict()

    new = Counter()
    for key, value in network.state_dict().items():
        shape = tuple(value.shape)
        part = next((name for name in parts if key.startswith(name + ".")), None)
        if NETWORK + key in tensors:
            continue
        if key.startswith("appearance."):
            kind, stored = "copies for AppearNet", pictures.tensors[NETWORK + key.removeprefix("appearance.")]
        elif part:
            rest = key.removeprefix(part + ".")
            kind = "temporal layers"
            stored = Stored(key, shape, dtype, lambda part=part, rest=rest: drawn(part)[rest])
        else:
            kind, stored = "zeros", Stored(key, shape, dtype, lambda shape=shape: torch.zeros(shape))
        new[kind] += 1
        tensors[NETWORK + key] = stored
    return new


def _write(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, Stored],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write a safetensors file: the header's length in 8 bytes, the header as JSON, the tensors one after another."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    # The largest dtypes come first, so that all tensors are aligned, as the format demands.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].known_dtype.itemsize, item[0]))
    description: dict[str, Any] = {"__metadata__": header(config)}
    end = 0
    for key, tensor in ordered:
        dtype = tensor.known_dtype
        start, end = end, end + torch.Size(tensor.shape).numel() * dtype.itemsize
        description[key] = {"dtype": codes[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for done, (_, tensor) in enumerate(ordered, 1):
            values = tensor.read().to(tensor.dtype).contiguous()
            file.write(values.flatten().view(torch.uint8).numpy().data)
            if progress:
                progress(done, len(ordered))
