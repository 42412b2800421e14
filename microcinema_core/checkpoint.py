"""Model files: one `.safetensors` with the configuration in its header, never pickle.

Keys: `model.diffusion_model.` (network), `first_stage_model.` (autoencoder), `cond_stage_model.` (text encoder); the
last two only in an all-in-one file. The autoencoder within a forward warp is the file's own, stored once. The header is
checked before any tensor is read. ComfyUI's ModelSave and CheckpointSave write a header of their own: in their files
the configuration is a tensor, `microcinema.config`, its JSON as uint8.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .config import ModelConfig
from .errors import MicroCinemaError
from .images import whole_file
from .model import MicroCinemaUNet
from .model.autoencoder import Autoencoder
from .model.text import TextEncoder
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


@dataclass
class LoadedModel:
    config: ModelConfig
    network: MicroCinemaUNet | None  # None only when an autoencoder alone is saved
    autoencoder: Autoencoder | None
    text: TextEncoder | None


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


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in the header; no tensor is read. Raises MicroCinemaError on a file that is not ours, and on a
    header that asks for a model much larger than the file."""
    try:
        with safe_open(path, "pt") as file:
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
    metadata = json.loads(bytes(file.get_tensor(CONFIG).tolist()))
    return metadata if isinstance(metadata, dict) else {}


def _check_room(config: ModelConfig, keys: list[str], size: int) -> None:
    """Raise ValueError where a part of which the file holds tensors has more parameters than `size` bytes can hold."""
    for part, prefix in ((config.network, NETWORK), (config.autoencoder, AUTOENCODER), (config.text, TEXT)):
        if part and any(key.startswith(prefix) for key in keys) and part.least_parameters > 2 * size:  # of 4 bits
            raise ValueError(f"it tells of {part.least_parameters:,} parameters or more in a file of {size:,} bytes")


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = None,
) -> LoadedModel:
    """Load what the file holds, for inference, every key accounted for.

    A text encoder without a vocabulary of its own needs CLIP's `tokenizer`, the folder of vocab.json and merges.txt.
    """
    config = read_config(path)
    with safe_open(path, "pt") as file:
        keys = file.keys()
        network = MicroCinemaUNet(config.network, device="meta")
        parts: dict[str, nn.Module | None] = {NETWORK: network, AUTOENCODER: None, TEXT: None}
        if any(key.startswith(AUTOENCODER) for key in keys):
            parts[AUTOENCODER] = Autoencoder(config.autoencoder)
        if config.text and any(key.startswith(TEXT) for key in keys):
            parts[TEXT] = TextEncoder(config.text, tokenizer)
        tensors = complete({key: file.get_tensor(key).to(dtype) for key in keys if key not in (CONFIG, *HOSTS_OWN)})
    for prefix, module in parts.items():
        if module is not None:
            state = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            _fill(module, state, path)
            module.to(device, dtype, memory_format=torch.channels_last)
    if tensors:
        raise MicroCinemaError(f"'{path}' holds an unknown tensor '{min(tensors)}': it is of another version")
    return LoadedModel(config, network, parts[AUTOENCODER], parts[TEXT])


def complete(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's tensors, with those that a forward warp shares with the autoencoder."""
    if not any(key.startswith(WARP) for key in tensors):
        return tensors
    shared = {key: value for key, value in tensors.items() if key.startswith(AUTOENCODER)}
    return {key.replace(AUTOENCODER, WARPS_AUTOENCODER): value for key, value in shared.items()} | tensors


def load_autoencoder(path: str | Path) -> Autoencoder:
    """The autoencoder of any file of ours, without reading the rest. Raises MicroCinemaError where there is none."""
    autoencoder = Autoencoder(read_config(path).autoencoder)
    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(AUTOENCODER)]  # noqa: SIM118 (a safe_open is no dict)
        state = {key.removeprefix(AUTOENCODER): file.get_tensor(key).float() for key in keys}
    if not state:
        raise MicroCinemaError(f"'{path}' holds no autoencoder: use that of configs/demo-autoencoder.toml")
    return _fill(autoencoder, state, path).to(memory_format=torch.channels_last)


def _fill(module: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> nn.Module:
    """The module with these tensors, for inference."""
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = shorten(str(error).splitlines()[-1], 160, placeholder=" …")  # it names every key
        raise MicroCinemaError(f"'{path}' does not hold what its header says ({problem}): fetch it again") from error
    return module.eval().requires_grad_(False)


def save_model(path: Path, model: LoadedModel, dtype: torch.dtype = torch.float16) -> None:
    """Write one all-in-one file, whole or not at all."""
    tensors = {}
    for prefix, module in ((NETWORK, model.network), (AUTOENCODER, model.autoencoder), (TEXT, model.text)):
        if module is not None:
            tensors |= {prefix + key: value.to("cpu", dtype).contiguous() for key, value in module.state_dict().items()}
    if model.autoencoder is not None:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(WARPS_AUTOENCODER)}
    with whole_file(path) as part:
        try:
            save_file(tensors, part, header(model.config))
        except SafetensorError as error:  # its name for a full disk or a missing folder
            raise OSError(error) from error


def config_tensor(config: ModelConfig) -> dict[str, torch.Tensor]:
    """The header once more, as a tensor for files whose header somebody else writes."""
    return {CONFIG: torch.tensor(list(json.dumps(header(config)).encode()), dtype=torch.uint8)}


def header(config: ModelConfig) -> dict[str, str]:
    """The metadata that make a safetensors file one of ours."""
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(config.to_json())}
