"""The image autoencoder: SD's AutoencoderKL, key for key, at any width.

Group-norm + SiLU + 3×3 ResNet blocks, one attention at the bottom, KL-regularised latents. SD2.1's own VAE loads as it
is; the demo models carry a small one of the same layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import AutoencoderConfig


class _ResBlock(nn.Module):
    def __init__(self, channels, out_channels, groups, *, operations=nn, **kw):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.conv1 = operations.Conv2d(channels, out_channels, 3, padding=1, **kw)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=1e-6, **kw)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **kw)
        if channels != out_channels:
            self.nin_shortcut = operations.Conv2d(channels, out_channels, 1, **kw)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class _Attention(nn.Module):
    def __init__(self, channels, groups, *, operations=nn, **kw):
        super().__init__()
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.q, self.k, self.v, self.proj_out = (operations.Conv2d(channels, channels, 1, **kw) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


def _middle(channels, groups, **kw):
    mid = nn.Module()
    mid.block_1 = _ResBlock(channels, channels, groups, **kw)
    mid.attn_1 = _Attention(channels, groups, **kw)
    mid.block_2 = _ResBlock(channels, channels, groups, **kw)
    return mid


def _run_middle(mid, h):
    return mid.block_2(mid.attn_1(mid.block_1(h)))


class _Downsample(nn.Module):
    def __init__(self, channels, *, operations=nn, **kw):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **kw)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # SD pads on the right and below only


class _Upsample(nn.Module):
    def __init__(self, channels, shuffle, *, operations=nn, **kw):
        super().__init__()
        self.shuffle = shuffle
        self.conv = operations.Conv2d(channels, 4 * channels if shuffle else channels, 3, padding=1, **kw)

    def forward(self, x):
        if self.shuffle:
            return F.pixel_shuffle(self.conv(x), 2)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """(b, 3, h, w) in [-1, 1] → (b, 2·latent_channels, h/f, w/f), mean and log-variance before `quant_conv`."""

    def __init__(self, config: AutoencoderConfig, *, operations=nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        groups, channels = config.norm_groups, config.channels
        self.conv_in = operations.Conv2d(3, channels, 3, padding=1, **kw)
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.channel_multipliers):
            stage, width = nn.Module(), config.channels * multiplier
            stage.block = nn.ModuleList()
            for _ in range(config.res_blocks):
                stage.block.append(_ResBlock(channels, width, groups, **parts))
                channels = width
            if level < len(config.channel_multipliers) - 1:
                stage.downsample = _Downsample(channels, **parts)
            self.down.append(stage)
        self.mid = _middle(channels, groups, **parts)
        self.norm_out = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.conv_out = operations.Conv2d(channels, 2 * config.latent_channels, 3, padding=1, **kw)

    def forward(self, x):
        h = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        return self.conv_out(F.silu(self.norm_out(_run_middle(self.mid, h))))


class Decoder(nn.Module):
    """(b, latent_channels, h, w) after `post_quant_conv` → (b, 3, h·f, w·f) in [-1, 1]."""

    def __init__(self, config: AutoencoderConfig, *, operations=nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        groups = config.norm_groups
        channels = config.channels * config.channel_multipliers[-1]
        self.conv_in = operations.Conv2d(config.latent_channels, channels, 3, padding=1, **kw)
        self.mid = _middle(channels, groups, **parts)
        stages = []
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            stage, width = nn.Module(), config.channels * multiplier
            stage.block = nn.ModuleList()
            for _ in range(config.res_blocks + 1):
                stage.block.append(_ResBlock(channels, width, groups, **parts))
                channels = width
            if level > 0:
                stage.upsample = _Upsample(channels, config.pixel_shuffle, **parts)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = operations.GroupNorm(groups, channels, eps=1e-6, **kw)
        self.conv_out = operations.Conv2d(channels, 3, 3, padding=1, **kw)

    def forward(self, z):
        h = _run_middle(self.mid, self.conv_in(z))
        for stage in reversed(self.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """Pictures to model latents and back. Latents here are always scaled for the model (config.scale applied)."""

    def __init__(self, config: AutoencoderConfig, *, operations=nn, **kw):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, operations=operations, **kw)
        self.decoder = Decoder(config, operations=operations, **kw)
        self.quant_conv = operations.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1, **kw)
        self.post_quant_conv = operations.Conv2d(config.latent_channels, config.latent_channels, 1, **kw)

    def moments(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unscaled mean and log-variance (b, c, h/f, w/f) of pictures (b, 3, h, w) in [0, 1]."""
        mean, log_variance = self.quant_conv(self.encoder(pictures * 2 - 1)).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (b, 3, h, w) in [0, 1] → scaled latents (b, c, h/f, w/f), the posterior mean."""
        return self.moments(pictures)[0] * self.config.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents → pictures in [0, 1], not clamped."""
        return (self.decoder(self.post_quant_conv(latents / self.config.scale)) + 1) / 2

    @torch.no_grad()
    def fold_normalisation(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Rewrite the 1×1 convolutions so that scaled latents have zero mean and unit variance per channel.

        `mean` and `std` (c,) are those of the unscaled latents now. What is decoded does not change, and one scalar
        scale stays true inside and outside of ComfyUI.
        """
        gain = 1 / (std * self.config.scale)
        c = self.config.latent_channels
        q, p = self.quant_conv, self.post_quant_conv
        q.weight[:c] *= gain[:, None, None, None]
        q.bias[:c] = (q.bias[:c] - mean) * gain
        q.bias[c:] += 2 * gain.log()
        p.bias += p.weight[:, :, 0, 0] @ mean
        p.weight /= gain[None, :, None, None]
