"""The tensors of a public checkpoint, by their names there. Every tensor is either taken, or left out for a reason.

Only headers are read here; a tensor is read when it is written to the new file.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import MicroCinemaError
from ..validated import shown

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name there and the function that reads it."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None for a dtype that is not in DTYPES
    read: Callable[[], Tensor]

    @property
    def known_dtype(self) -> torch.dtype:
        """The dtype of a tensor whose dtype is in DTYPES, as that of every tensor from `take`."""
        assert self.dtype is not None
        return self.dtype

    def third(self, index: int) -> Stored:
        """One of three tensors of equal size that are stored as one, concatenated along the first axis."""
        rows = self.shape[0] // 3
        part = slice(index * rows, (index + 1) * rows)
        return Stored(self.key, (rows, *self.shape[1:]), self.dtype, lambda: self.read()[part])

    def planes(self, start: int, stop: int) -> Stored:
        """The input planes from `start` to `stop` of a convolution's weight."""
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return Stored(self.key, shape, self.dtype, lambda: self.read()[:, start:stop])

    def shaped(self, shape: tuple[int, ...]) -> Stored:
        """The same tensor in another shape."""
        return Stored(self.key, shape, self.dtype, lambda: self.read().reshape(shape))


@dataclass(frozen=True)
class Source:
    """The tensors taken from a checkpoint, by our names, and the names of those left out there, by reason."""

    tensors: dict[str, Stored]
    left: dict[str, set[str]]


def open_tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a .safetensors file, or of a .ckpt, .pth or .bin that contains only weights.

    A tensor is read by its `read`. Raises MicroCinemaError for a missing, truncated or damaged file.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        name = shown(str(path), 300)
        raise MicroCinemaError(f"there is no checkpoint '{name}': give a .safetensors file or a folder of diffusers'")
    if path.suffix != ".safetensors":
        return _unpickled(path)
    try:
        file = safe_open(path, "pt")
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a safe_open is no dict)
    except (SafetensorError, OSError) as error:
        raise MicroCinemaError(f"'{path}' is truncated or no safetensors file ({error}): fetch it again") from error
    return {
        key: Stored(key, tuple(s.get_shape()), DTYPES.get(s.get_dtype()), lambda key=key: file.get_tensor(key))
        for key, s in slices.items()
    }


def _unpickled(path: Path) -> dict[str, Stored]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise MicroCinemaError(f"'{path}' is damaged or holds more than weights: use its .safetensors form") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise MicroCinemaError(f"'{path}' is truncated or no checkpoint: fetch it again, as .safetensors") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    supported = set(DTYPES.values())
    return {
        key: Stored(key, tuple(t.shape), t.dtype if t.dtype in supported else None, lambda t=t: t)
        for key, t in tensors.items()
    }


def weights_in(folder: Path) -> Path | None:
    """The weights' file in a part's folder, with diffusers' or transformers' name; preferably in full precision."""
    names = [
        stem + end for end in (".safetensors", ".fp16.safetensors") for stem in ("diffusion_pytorch_model", "model")
    ]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def take(
    path: Path, stored: dict[str, Stored], names: dict[str, list[str]], expected: dict[str, Tensor], model: str
) -> dict[str, Stored]:
    """Remove tensors from `stored` and return them by our keys. `names` lists for each key the names it may have there.

    The shapes must be those of `expected`, except for trailing sizes of 1: a linear layer equals a 1×1 convolution, a
    (3, 1) kernel a (3, 1, 1) one. Raises MicroCinemaError for a tensor that is missing, of another shape or of an
    unsupported dtype.
    """
    taken = {}
    for key, candidates in names.items():
        shape = tuple(expected[key].shape)
        name = next((name for name in candidates if name in stored), None)
        if name is None:
            raise MicroCinemaError(f"'{path}' lacks '{candidates[0]}', expected {shape}: give all of {model}")
        tensor = stored.pop(name)
        if _without_ones(tensor.shape) != _without_ones(shape):
            raise MicroCinemaError(f"'{path}' has '{name}' of shape {tensor.shape}, expected {shape}: give {model}")
        if tensor.dtype is None:
            raise MicroCinemaError(f"'{path}' has '{name}' in no format of {', '.join(DTYPES)}: give one of these")
        taken[key] = tensor.shaped(shape)
    return taken


def sort_rest(path: Path, stored: dict[str, Stored], reasons: dict[str, str]) -> dict[str, set[str]]:
    """The names of all remaining tensors in `stored`, by the reason of `reasons` whose pattern they match.

    Raises MicroCinemaError for a tensor that matches no pattern.
    """
    left: dict[str, set[str]] = {}
    for name, tensor in stored.items():
        reason = next((reason for reason, pattern in reasons.items() if re.match(pattern, name)), None)
        if reason is None:
            raise MicroCinemaError(
                f"'{path}' holds an unknown '{name}' of shape {tensor.shape}, expected none of that name: give the "
                "model as it was published"
            )
        left.setdefault(reason, set()).add(tensor.key)
    return left


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while shape[2:] and shape[-1] == 1:
        shape = shape[:-1]
    return shape
