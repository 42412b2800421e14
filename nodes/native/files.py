"""The tensors of a part of a model file, checked, and a placeholder for a part that the file lacks."""

from __future__ import annotations

import comfy.utils
import torch
from torch import Tensor, nn

from ...microcinema_core.checkpoint import read_config, translated
from ...microcinema_core.errors import MicroCinemaError

# Decorator that restores the host's random state: building a module draws initial weights, which the file's replace.
fork_rng = torch.random.fork_rng(devices=[])


def part_of(path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose keys start with `prefix`, by the rest of the key."""
    tensors = translated(read_config(path), comfy.utils.load_torch_file(str(path), safe_load=True))
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def check_keys(path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Raise MicroCinemaError for a tensor that is missing, unknown or of another shape; the host would only log it."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    mismatches = sorted(
        key for key in expected.keys() | tensors.keys()
        if key not in tensors or tensors[key].shape != expected.get(key)
    )  # fmt: skip
    if mismatches:
        raise MicroCinemaError(f"'{path}' does not hold what its header says ('{mismatches[0]}'): fetch it again")


class Absent:
    """A placeholder for a part that the file does not contain. Every use raises AbsentPart, with `message`."""

    _message = ""  # for copy.copy, which accesses attributes before it sets them

    def __init__(self, message: str):
        self._message = message

    def __getattr__(self, name):
        raise AbsentPart(self._message)


class AbsentPart(MicroCinemaError, AttributeError):
    """Also an AttributeError, because the host calls getattr and hasattr on all outputs."""
