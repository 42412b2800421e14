"""Model files: one `.safetensors` with the configuration in its header, never pickle.

The header is checked before any tensor is read; header.py describes it and the keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .config import ModelConfig
from .errors import MicroCinemaError
from .files import whole_file
from .header import (  # noqa: F401 (names that belong to loading a model as well)
    AUTOENCODER,
    CONFIG,
    HOST_MARKS,
    NETWORK,
    TEXT,
    bundled_models,
    header,
    read_config,
    resolve,
)  # fmt: skip
from .model import MicroCinemaUNet, build
from .model.autoencoder import Autoencoder
from .model.layers import channels_last
from .model.text import TextEncoder

OLDER_TEXT = TEXT + "transformer.text_model."  # the prefix in files written with transformers below 5.6


_Part = TypeVar("_Part", bound=nn.Module)


@dataclass
class LoadedModel:
    """The parts of a model file with their weights; None for a part that the file does not contain."""

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
    """Load all parts of a model file for inference, in channels_last.

    `tokenizer` is the folder of CLIP's vocab.json and merges.txt, which a text encoder without a vocabulary of its own
    needs. Raises MicroCinemaError as read_config does, and where a tensor is missing, unknown or of the wrong shape.
    """
    config = read_config(path)
    with safe_open(path, "pt") as file:
        keys = file.keys()
        network, autoencoder, text = build(config.network, device="meta"), None, None
        if any(key.startswith(AUTOENCODER) for key in keys):
            autoencoder = Autoencoder(config.autoencoder)
        if config.text and any(key.startswith(TEXT) for key in keys):
            with torch.device("meta"):
                text = TextEncoder(config.text, tokenizer)
        tensors = translated(
            config, {key: file.get_tensor(key).to(dtype) for key in keys if key not in (CONFIG, *HOST_MARKS)}
        )
    for prefix, module in ((NETWORK, network), (AUTOENCODER, autoencoder), (TEXT, text)):
        if module is not None:
            state = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            channels_last(_fill(module, state, path), device, dtype)
    if tensors:
        raise MicroCinemaError(f"'{path}' holds an unknown tensor '{min(tensors)}': it is of another version")
    return LoadedModel(config, network, autoencoder, text)


def translated(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a file, by key, to the modules' current names. All older names are handled here."""
    tensors = {key.replace(OLDER_TEXT, TEXT + "transformer.", 1): value for key, value in tensors.items()}
    return config.from_file(tensors)


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Load only the autoencoder of a model file, in float32, for inference.

    Raises MicroCinemaError as load_model does, and where the file contains no autoencoder.
    """
    state = _part(path, AUTOENCODER)
    if not state:
        raise MicroCinemaError(f"'{path}' holds no autoencoder: use that of configs/demo-autoencoder.toml")
    return channels_last(_fill(Autoencoder(read_config(path).autoencoder), state, path))


def load_text(path: str | Path, tokenizer: Path | None = None) -> TextEncoder:
    """Load only the text encoder of a model file, in float32, for inference; `tokenizer` as in load_model.

    Raises MicroCinemaError as load_model does, and where the file contains no text encoder.
    """
    config, state = read_config(path).text, _part(path, TEXT)
    if config is None or not state:
        raise MicroCinemaError(f"'{path}' holds no text encoder: give a model file with one, such as 'demo-base'")
    return _fill(TextEncoder(config, tokenizer), state, path)


def _part(path: str | Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one part of a model file, in float32."""
    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (a safe_open is no dict)
        return {key.removeprefix(prefix): file.get_tensor(key).float() for key in keys}


def _fill(module: _Part, state: dict[str, torch.Tensor], path: str | Path) -> _Part:
    """The module with these tensors assigned, in evaluation mode and without gradients."""
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = shorten(str(error).splitlines()[-1], 160, placeholder=" …")  # the message lists all keys
        raise MicroCinemaError(f"'{path}' does not hold what its header says ({problem}): fetch it again") from error
    return module.eval().requires_grad_(False)


def save_model(path: Path, model: LoadedModel, dtype: torch.dtype = torch.float16) -> None:
    """Write a model file with all parts that `model` has. It appears complete or not at all."""
    tensors = {}
    for prefix, module in ((NETWORK, model.network), (AUTOENCODER, model.autoencoder), (TEXT, model.text)):
        if module is not None:
            tensors |= {prefix + key: value for key, value in module.state_dict().items()}
    write_model(path, model.config, tensors, dtype)


def write_model(
    path: Path, config: ModelConfig, tensors: dict[str, torch.Tensor], dtype: torch.dtype, training: str = ""
) -> None:
    """Write a model file from tensors by their keys. `training` is kept in the header: how the model was trained."""
    tensors = {key: value.to("cpu", dtype).contiguous() for key, value in config.to_file(tensors).items()}
    with whole_file(path) as part:
        save_file(tensors, part, header(config) | ({"training": training} if training else {}))


def config_tensor(config: ModelConfig) -> dict[str, torch.Tensor]:
    """The header as a tensor, for files whose header another program writes."""
    return {CONFIG: torch.tensor(list(json.dumps(header(config)).encode()), dtype=torch.uint8)}
