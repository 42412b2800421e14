"""Model files: one `.safetensors` with the configuration in its header, never pickle.

The header is checked before any tensor is read; header.py says what it holds and what keys there are.
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
from .header import (  # noqa: F401 (finding a file belongs to loading it)
    AUTOENCODER,
    CONFIG,
    HOSTS_OWN,
    NETWORK,
    TEXT,
    WARP,
    WARPS_AUTOENCODER,
    bundled_models,
    header,
    read_config,
    resolve,
)  # fmt: skip
from .images import whole_file
from .model import MicroCinemaUNet
from .model.autoencoder import Autoencoder
from .model.text import TextEncoder

OLDER_TEXT = TEXT + "transformer.text_model."  # files written with transformers below 5.6 have this level


@dataclass
class LoadedModel:
    config: ModelConfig
    network: MicroCinemaUNet | None  # None only when an autoencoder alone is saved
    autoencoder: Autoencoder | None
    text: TextEncoder | None


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
            with torch.device("meta"):
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
    """A file's tensors, with those that a forward warp shares with the autoencoder, and the text tower's under the
    names that it has today."""
    tensors = {key.replace(OLDER_TEXT, TEXT + "transformer.", 1): value for key, value in tensors.items()}
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
