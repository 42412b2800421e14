"""The inputs of the network: encoded condition pictures, and a batch of clips that are conditioned on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MicroCinemaError
from .spatial import Control, Patches


@dataclass
class Condition:
    """A condition of k pictures (1: the centre frame; 2: first and last frame), encoded once for all steps of a run.

    latents: (clips, k, C, h, w), the latents that were encoded.
    planes: (clips, k, C, h, w), the condition's part of the first convolution's output.
    modulations: for each ResBlock, in the order of execution, scale = 1 + γ(f) and shift = β(f), each
        (clips, k, C, h, w).
    pixels: (clips, k, 3, H, W), the pictures themselves, where they were given.
    """

    latents: Tensor
    planes: Tensor
    modulations: list[tuple[Tensor, Tensor]]
    pixels: Tensor | None = None

    @property
    def clips(self) -> int:
        """The number of clips that the pictures belong to."""
        return self.planes.shape[0]


def over_frames(encoded: Tensor, frames: int) -> Tensor:
    """(clips, k, C, h, w) to (clips, frames, C, h, w): one picture is expanded without a copy, two are interpolated.

    A convolution without activation commutes with the interpolation, so it can run before it, on two pictures instead
    of all frames.
    """
    if encoded.shape[1] == 1:
        return encoded.expand(-1, frames, -1, -1, -1)
    weights = torch.linspace(0, 1, frames, dtype=encoded.dtype, device=encoded.device)
    return torch.lerp(encoded[:, :1], encoded[:, 1:], weights.view(-1, 1, 1, 1))


@dataclass
class Clips:
    """The batch of one forward pass: b clips of t frames. MicroCinemaUNet.forward describes the fields."""

    x: Tensor  # (b·t, C, h, w)
    timesteps: Tensor  # (b·t,)
    context: Tensor | None
    condition: Condition
    offsets: Tensor  # (t,)
    control: Control | None = None
    patches: Patches | None = None


def check_batch(x: Tensor, condition: Condition, frames: int) -> None:
    """Raise MicroCinemaError unless the rows of x are whole clips of `frames` frames, a multiple of the condition's."""
    clips, rest = divmod(x.shape[0], frames)
    if rest or clips % condition.clips:
        raise MicroCinemaError(
            f"A batch of {x.shape[0]} frames cannot be divided into clips of {frames} frames for {condition.clips} "
            "condition picture(s): make the batch a multiple of their product."
        )
