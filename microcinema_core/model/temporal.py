"""The layers in which the frames of a clip meet. All end in a zero-initialised layer: at first they change nothing.

Rows are frames folded into the batch, (clips · frames, C, h, w). In channels_last that memory is
(clips, frames, h·w, C), and so is a channels_last picture (clips, C, frames, h·w): one view, no copy, makes the time
axis a picture's height.
"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import TransformerBlock, sinusoids, zero


def as_sheet(x: Tensor, frames: int) -> Tensor:
    """(clips · frames, C, h, w) to (clips, C, frames, h·w)."""
    # Cells first: flattened last, a single clip's stride would hide from the layers that this is channels_last.
    return x.flatten(2).unflatten(0, (-1, frames)).transpose(1, 2)


def from_sheet(sheet: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of as_sheet."""
    return sheet.transpose(1, 2).flatten(0, 1).unflatten(2, size)


class TemporalConv(nn.Module):
    """x + conv(silu(norm(x))), the convolution over three frames, the norm's statistics over all of them.

    With depth n, n such convolutions follow one another inside the one residual; only the last starts at zero.
    """

    def __init__(self, channels, groups, depth=1, *, operations=nn, dtype=None, device=None):
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
        """What remains to be done once the layers inside have drawn their own first weights."""
        zero(self.layers[-1][2])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h = as_sheet(x, frames)
        for layer in self.layers:
            h = layer(h)
        return x + from_sheet(h, x.shape[2:])


class TemporalTransformer(nn.Module):
    """Each cell attends to itself in the other frames of its clip. Positions are frames from the clip's middle, so a
    clip of another length keeps the centre frame at the position it was trained at, and a context window its place in
    the clip.

    Two attentions and no positions make it ModelScope's (and diffusers' TransformerTemporalModel).
    """

    def __init__(
        self, channels, heads, groups, attentions=1, positions=True, *, operations=nn, dtype=None, device=None
    ):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.positions = positions
        self.proj_in = operations.Linear(channels, channels, **kw)
        # A cross-attention that is given no context attends to the frames themselves.
        second = channels if attentions == 2 else None
        self.block = TransformerBlock(channels, heads, second, operations=operations, **kw)
        self.proj_out = operations.Linear(channels, channels, **kw)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero(self.proj_out)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """x (clips · frames, C, h, w); offsets (frames,): each frame's place, counted from the clip's middle."""
        frames = len(offsets)
        sheet = as_sheet(x, frames)
        clips, channels, _, cells = sheet.shape
        tokens = self.norm(sheet).permute(0, 3, 2, 1).reshape(clips * cells, frames, channels)
        tokens = self.proj_in(tokens)
        if self.positions:
            tokens = tokens + sinusoids(offsets, channels).to(x.dtype)
        tokens = self.proj_out(self.block(tokens)).view(clips, cells, frames, channels)
        return from_sheet(sheet + tokens.permute(0, 3, 2, 1), x.shape[2:])  # added before it is folded: no second copy
