"""The image autoencoder: SD's AutoencoderKL (Rombach et al. 2022) at any width, with the same keys.

ResNet blocks of group-norm, SiLU and 3×3 convolutions, one attention layer at the lowest resolution, KL-regularised
latents. SD2.1's own VAE can be loaded; the demo models contain a small one of the same layout.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig


class _ResBlock(nn.Module):
    def __init__(self, channels, out_channels, groups, *, operations: Any = nn, **kw):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.conv1 = operations.Conv2d(channels, out_channels, 3, padding=1, **kw)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=1e-6, **kw)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **kw)
        self.nin_shortcut: nn.Conv2d | None = None  # the name of the 1×1 convolution in SD's checkpoints
        if channels != out_channels:
            self.nin_shortcut = operations.Conv2d(channels, out_channels, 1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


def _first_shortcut(blocks: nn.ModuleList) -> nn.Conv2d:
    block = blocks[0]
    assert isinstance(block, _ResBlock) and block.nin_shortcut is not None
    return block.nin_shortcut


class _Attention(nn.Module):
    """Single-head attention between the cells of a picture."""

    def __init__(self, channels, groups, *, operations: Any = nn, **kw):
        super().__init__()
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.q, self.k, self.v, self.proj_out = (operations.Conv2d(channels, channels, 1, **kw) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class _Middle(nn.Module):
    def __init__(self, channels, groups, **kw):
        super().__init__()
        self.block_1 = _ResBlock(channels, channels, groups, **kw)
        self.attn_1 = _Attention(channels, groups, **kw)
        self.block_2 = _ResBlock(channels, channels, groups, **kw)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class _Downsample(nn.Module):
    def __init__(self, channels, *, operations: Any = nn, **kw):
        super().__init__()
        self.conv: nn.Conv2d = operations.Conv2d(channels, channels, 3, stride=2, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # SD pads only on the right and at the bottom


class _Upsample(nn.Module):
    def __init__(self, channels, shuffle, *, operations: Any = nn, **kw):
        super().__init__()
        self.shuffle = shuffle
        self.conv: nn.Conv2d = operations.Conv2d(channels, 4 * channels if shuffle else channels, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        if self.shuffle:
            return F.pixel_shuffle(self.conv(x), 2)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The ResBlocks at one resolution."""

    def __init__(self, channels, out_channels, count, groups, **kw):
        super().__init__()
        widths = [channels, *[out_channels] * count]
        self.block = nn.ModuleList(_ResBlock(*pair, groups, **kw) for pair in pairwise(widths))

    @property
    def first_shortcut(self) -> nn.Conv2d:
        """The 1×1 convolution of the first ResBlock, for a level that changes the number of channels."""
        return _first_shortcut(self.block)

    def forward(self, h: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, out_channels, h, w)."""
        for block in self.block:
            h = block(h)
        return h


class EncoderLevel(_Level):
    """A level that halves the resolution after its ResBlocks, except the lowest one."""

    def __init__(self, channels, out_channels, count, groups, *, downsample: bool, **kw):
        super().__init__(channels, out_channels, count, groups, **kw)
        self.downsample = _Downsample(out_channels, **kw) if downsample else None

    def forward(self, h: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, out_channels, h, w), or half the height and width."""
        h = super().forward(h)
        return h if self.downsample is None else self.downsample(h)


class DecoderLevel(_Level):
    """A level that doubles the resolution after its ResBlocks, except the highest one."""

    def __init__(self, channels, out_channels, count, groups, *, upsample: bool, shuffle: bool, **kw):
        super().__init__(channels, out_channels, count, groups, **kw)
        self.upsample = _Upsample(out_channels, shuffle, **kw) if upsample else None

    def forward(self, h: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, out_channels, h, w), or twice the height and width."""
        h = super().forward(h)
        return h if self.upsample is None else self.upsample(h)


class Encoder(nn.Module):
    """(b, 3, h, w) in [-1, 1] → (b, 2·latent_channels, h/f, w/f), mean and log-variance before `quant_conv`."""

    def __init__(self, config: AutoencoderConfig, *, operations: Any = nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        groups, channels = config.norm_groups, config.channels
        self.conv_in = operations.Conv2d(3, channels, 3, padding=1, **kw)
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.channel_multipliers):
            width, downsample = config.channels * multiplier, level < len(config.channel_multipliers) - 1
            self.down.append(EncoderLevel(channels, width, config.res_blocks, groups, downsample=downsample, **parts))
            channels = width
        self.mid = _Middle(channels, groups, **parts)
        self.norm_out = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.conv_out = operations.Conv2d(channels, 2 * config.latent_channels, 3, padding=1, **kw)

    @property
    def levels(self) -> list[EncoderLevel]:
        """The levels from the highest to the lowest resolution."""
        return [level for level in self.down if isinstance(level, EncoderLevel)]

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to the moments of their latents, with the shapes above."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(b, latent_channels, h, w) after `post_quant_conv` → (b, 3, h·f, w·f) in [-1, 1]."""

    def __init__(self, config: AutoencoderConfig, *, operations: Any = nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        groups = config.norm_groups
        channels = config.channels * config.channel_multipliers[-1]
        self.conv_in = operations.Conv2d(config.latent_channels, channels, 3, padding=1, **kw)
        self.mid = _Middle(channels, groups, **parts)
        levels, shuffle = [], config.pixel_shuffle
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            width, count = config.channels * multiplier, config.res_blocks + 1
            levels.insert(0, DecoderLevel(channels, width, count, groups, upsample=level > 0, shuffle=shuffle, **parts))
            channels = width
        self.up = nn.ModuleList(levels)
        self.norm_out = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.conv_out = operations.Conv2d(channels, 3, 3, padding=1, **kw)

    @property
    def levels(self) -> list[DecoderLevel]:
        """The levels from the highest to the lowest resolution, in which they run from last to first."""
        return [level for level in self.up if isinstance(level, DecoderLevel)]

    def forward(self, z: Tensor) -> Tensor:
        """Latents to pictures, with the shapes above."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.levels):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """Pictures to latents and back. Latents are scaled for the model: they are multiplied by config.scale."""

    def __init__(self, config: AutoencoderConfig, *, operations: Any = nn, **kw):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, operations=operations, **kw)
        self.decoder = Decoder(config, operations=operations, **kw)
        self.quant_conv = operations.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1, **kw)
        self.post_quant_conv = operations.Conv2d(config.latent_channels, config.latent_channels, 1, **kw)

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Unscaled mean and log-variance (b, c, h/f, w/f) of pictures (b, 3, h, w) in [0, 1]."""
        mean, log_variance = self.quant_conv(self.encoder(pictures * 2 - 1)).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) in [0, 1] → scaled latents (b, c, h/f, w/f), the posterior mean."""
        return self.moments(pictures)[0] * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) → pictures (b, 3, h·f, w·f) in [0, 1], not clamped."""
        return (self.decoder(self.post_quant_conv(latents / self.config.scale)) + 1) / 2
