"""What all parts of a model file share: its tensors, every key accounted for, and what stands for a part it lacks."""

from __future__ import annotations

import comfy.utils
import torch
from torch import Tensor, nn

from ...microcinema_core.checkpoint import complete
from ...microcinema_core.errors import MicroCinemaError

# Building a module draws its first weights, which the file's replace: the host's random state is left as it was.
fork_rng = torch.random.fork_rng(devices=[])


def part_of(path, prefix: str) -> dict[str, Tensor]:
    """The file's tensors under `prefix`, by their names behind it."""
    tensors = complete(comfy.utils.load_torch_file(str(path), safe_load=True))
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def check_keys(path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Every key accounted for, of the right shape; the host itself only logs what is missing."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    wrong = sorted(
        key for key in expected.keys() | tensors.keys()
        if key not in tensors or tensors[key].shape != expected.get(key)
    )  # fmt: skip
    if wrong:
        raise MicroCinemaError(f"'{path}' does not hold what its header says ('{wrong[0]}'): fetch it again")


class Absent:
    """Stands for a part that the file does not hold; whoever uses it is told where to get one."""

    _message = ""  # of a copy in the making

    def __init__(self, message: str):
        self._message = message

    def __getattr__(self, name):
        raise AbsentPart(self._message)


class AbsentPart(MicroCinemaError, AttributeError):
    """Also an AttributeError, for the host looks into all outputs with getattr and hasattr."""
