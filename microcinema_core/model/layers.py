"""The layers of Stable Diffusion's UNet, with the names of its checkpoints (Rombach et al. 2022, LDM).

Frames are folded into the batch, so a tensor here is (rows, C, h, w) with rows = clips · frames. Every layer preserves
channels_last memory: pictures are reshaped to tokens, and batches to clips, by views, without copies.

`operations` is a namespace with Linear, Conv2d, GroupNorm and LayerNorm: `torch.nn`, or ComfyUI's own.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def channels_last(
    module: _Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> _Module:
    """Convert a module's weights in place to channels_last memory, and to a device and dtype if given."""
    # torch documents `memory_format`, but its annotated overloads lack it.
    return module.to(device, dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of positions (n,), in steps or frames: (n, width) in float32, cosines, then sines, with
    periods 2π … 20000π."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=positions.device) / half)
    angles = positions[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero(module: _Module) -> _Module:
    """Set every parameter of a module to zero. A residual branch that ends in the module starts as the identity."""
    for parameter in module.parameters():
        parameter.detach().zero_()
    return module


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention with heads: q (n, Lq, C), k and v (n, Lk, C) to (n, Lq, C)."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # On the CPU, the backward pass of scaled_dot_product_attention took a third of a training step.
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        out = weights.softmax(dim=3) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention of tokens to a context, or without one to themselves."""

    def __init__(self, width, heads, context_dim=None, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        source = context_dim or width
        self.heads = heads
        self.to_q = operations.Linear(width, width, bias=False, **kw)
        self.to_k = operations.Linear(source, width, bias=False, **kw)
        self.to_v = operations.Linear(source, width, bias=False, **kw)
        self.to_out = nn.Sequential(operations.Linear(width, width, **kw))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (rows, L, C) to (rows, L, C). A context (clips, Lc, D) is shared by all frames of its clip: their tokens
        form one query, so that keys and values are computed once per clip and not once per frame."""
        context = x if context is None else context
        q = self.to_q(x)
        out = attention(q.view(context.shape[0], -1, q.shape[2]), self.to_k(context), self.to_v(context), self.heads)
        return self.to_out(out.view(q.shape))


class GEGLU(nn.Module):
    """A linear layer with a GELU gate (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width, inner, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (…, width) to (…, inner)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """The feed-forward network of a transformer block, with GEGLU and four times the width inside."""

    def __init__(self, width, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        gated = GEGLU(width, 4 * width, operations=operations, **kw)
        self.net = nn.Sequential(gated, nn.Identity(), operations.Linear(4 * width, width, **kw))  # 1: LDM's dropout

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (…, width) to the same shape."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (only with a context_dim) and feed-forward, each residual after a layer norm."""

    def __init__(self, width, heads, context_dim=None, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.attn1 = Attention(width, heads, operations=operations, **kw)
        self.norm1 = operations.LayerNorm(width, **kw)
        self.attn2 = None
        if context_dim is not None:
            self.attn2 = Attention(width, heads, context_dim, operations=operations, **kw)
            self.norm2 = operations.LayerNorm(width, **kw)
        self.ff = FeedForward(width, operations=operations, **kw)
        self.norm3 = operations.LayerNorm(width, **kw)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (rows, L, C) and context as in Attention; without a context the cross-attention attends to x itself."""
        x = x + self.attn1(self.norm1(x))
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Attention between the cells of each frame, and of the cells to the text."""

    index: int  # among the transformers of a SpatialUNet

    def __init__(self, channels, heads, groups, context_dim=None, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.proj_in = operations.Linear(channels, channels, **kw)
        block = TransformerBlock(channels, heads, context_dim, operations=operations, **kw)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = zero(operations.Linear(channels, channels, **kw))

    def forward(self, x: Tensor, context: Tensor | None = None, run=TransformerBlock.__call__) -> Tensor:
        """x (rows, C, h, w), context (n, L, D) with n a divisor of rows. `run(block, tokens, context)` runs a block."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = run(block, tokens, context)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class ResBlock(nn.Module):
    """Two convolutions, with the time embedding between them.

    The embedding is added before the second group-norm or, with scale_shift_norm, scales and shifts its output. A
    modulation by the appearance network scales and shifts the same output first.
    """

    index: int  # among the ResBlocks of a SpatialUNet

    def __init__(
        self, channels, emb_dim, out_channels, groups, scale_shift_norm=False,
        *, operations: Any = nn, dtype=None, device=None,
    ):  # fmt: skip
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.scale_shift_norm = scale_shift_norm
        self.in_layers = nn.Sequential(
            operations.GroupNorm(groups, channels, **kw),
            nn.SiLU(),
            operations.Conv2d(channels, out_channels, 3, padding=1, **kw),
        )
        emb_channels = 2 * out_channels if scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_dim, emb_channels, **kw))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(groups, out_channels, **kw),
            nn.SiLU(),
            nn.Identity(),  # LDM's dropout
            zero(operations.Conv2d(out_channels, out_channels, 3, padding=1, **kw)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else operations.Conv2d(channels, out_channels, 1, **kw)

    def forward(self, x: Tensor, emb: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (rows, C, h, w) and emb (rows, E) to (rows, C', h, w). modulation: scale and shift, each
        (clips, frames, C', h, w) for rows = n · clips · frames, applied as h · scale + shift."""
        h = self.in_layers(x)
        emb = self.emb_layers(emb)[:, :, None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if not self.scale_shift_norm:
            h = h + emb
        h = norm(h)
        if modulation is not None:
            scale, shift = modulation
            h = torch.addcmul(shift, h.view(-1, *scale.shape), scale).flatten(0, 2)
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return self.skip_connection(x) + rest(h)


class Downsample(nn.Module):
    """A 3×3 convolution of stride 2."""

    def __init__(self, channels, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, C, h, w) to half its height and width, rounded up."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3×3 convolution."""

    def __init__(self, channels, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x (rows, C, h, w) to (rows, C, *size). `size` is that of the next skip connection: twice h and w, or one less
        where the size before the downsampling is odd."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
