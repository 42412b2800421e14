"""The layers that mix the frames of a clip. All end in a zero-initialised layer, so that they start as the identity.

Rows are frames folded into the batch, (clips · frames, C, h, w). In channels_last the memory layout is
(clips, frames, h·w, C), which is also that of a channels_last picture (clips, C, frames, h·w): a view without a copy
turns the time axis into the height of a picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import TransformerBlock, sinusoids, zero


def to_time_axis(x: Tensor, frames: int) -> Tensor:
    """(clips · frames, C, h, w) to (clips, C, frames, h·w)."""
    # The cells are flattened first; in the other order the strides of a single clip are not those of channels_last.
    return x.flatten(2).unflatten(0, (-1, frames)).transpose(1, 2)


def from_time_axis(clips: Tensor, size: torch.Size) -> Tensor:
    """The inverse of to_time_axis, for frames of the size (h, w)."""
    return clips.transpose(1, 2).flatten(0, 1).unflatten(2, size)


class TemporalConv(nn.Module):
    """x + conv(silu(norm(x))): the convolution covers three frames, the statistics of the norm all frames of the clip.

    With depth n, the residual branch has n such convolutions, of which only the last starts at zero.
    """

    def __init__(self, channels, groups, depth=1, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.layers = nn.ModuleList(
            nn.Sequential(
                operations.GroupNorm(groups, channels, **kw),
                nn.SiLU(),
                operations.Conv2d(channels, channels, (3, 1), padding=(1, 0), **kw),
            )
            for _ in range(depth)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the last convolution to zero. To be called after the inner layers' own reset_parameters."""
        last = self.layers[-1]
        assert isinstance(last, nn.Sequential)
        zero(last[2])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (clips · frames, C, h, w) to the same shape."""
        h = to_time_axis(x, frames)
        for layer in self.layers:
            h = layer(h)
        return x + from_time_axis(h, x.shape[2:])


class TemporalTransformer(nn.Module):
    """Attention between the frames of a clip, for each cell on its own.

    The position of a frame is its offset from the clip's centre frame. So the centre frame of a clip of any length has
    the position that it had in training, and the frames of a context window those that they have in the whole clip.
    With two attentions and no positions it is ModelScope's layer (and diffusers' TransformerTemporalModel). `inner` is
    the number of channels between the projections, by default that outside.
    """

    def __init__(
        self, channels, heads, groups, attentions=1, positions=True, inner=None,
        *, operations: Any = nn, dtype=None, device=None,
    ):  # fmt: skip
        super().__init__()
        kw, inner = {"dtype": dtype, "device": device}, inner or channels
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.positions = positions
        self.proj_in = operations.Linear(channels, inner, **kw)
        # A cross-attention without a context attends to the frames themselves.
        second = inner if attentions == 2 else None
        self.block = TransformerBlock(inner, heads, second, operations=operations, **kw)
        self.proj_out = operations.Linear(inner, channels, **kw)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the output projection to zero. To be called after the inner layers' own reset_parameters."""
        zero(self.proj_out)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """x (clips · frames, C, h, w) to the same shape. offsets (frames,): of the frames from the centre frame."""
        frames = len(offsets)
        h = to_time_axis(x, frames)
        clips, channels, _, cells = h.shape
        tokens = self.norm(h).permute(0, 3, 2, 1).reshape(clips * cells, frames, channels)
        tokens = self.proj_in(tokens)
        if self.positions:
            tokens = tokens + sinusoids(offsets, tokens.shape[2]).to(x.dtype)
        tokens = self.proj_out(self.block(tokens)).view(clips, cells, frames, channels)
        return from_time_axis(h + tokens.permute(0, 3, 2, 1), x.shape[2:])  # added as views, without a copy
