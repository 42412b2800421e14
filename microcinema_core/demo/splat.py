"""Forward warping with soft visibility: pixels are splatted at their new positions, and holes filled from around them.

Niklaus and Liu, "Softmax Splatting for Video Frame Interpolation" (CVPR 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HOLE_WEIGHT = 0.02  # of the background, relative to a pixel that is splatted


def downsample(maps: Tensor) -> Tensor:
    """Maps (…, H, W) to (…, H/2, W/2), the means of 2×2 blocks."""
    return maps.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).mean((-3, -1))


def splat_clip(values: Tensor, places: Tensor) -> Tensor:
    """Run `splat` for every frame: values (b, C, H, W) at places (b, t, 2, H, W) to (b, t, C, H, W)."""
    frames = places.shape[1]
    return splat(values.repeat_interleave(frames, dim=0), places.flatten(0, 1)).unflatten(0, (-1, frames))


def compose(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Compose splatted pixels with a background.

    `front` is (b, t, C + 1, H, W), the sums of weighted pixels and, in the last channel, of weights; `back` is the same
    at half the resolution. Returns pixels (b, t, C, H, W) and their visibility (b, t, 1, H, W), 0 to 1.
    """
    filled = F.interpolate(_fill_holes(back.flatten(0, 1)), scale_factor=2, mode="bilinear")
    background = filled.unflatten(0, back.shape[:2])
    pixels, weight = front[:, :, :-1], front[:, :, -1:]
    return (pixels + HOLE_WEIGHT * background) / (weight + HOLE_WEIGHT), weight / (weight + 1)


def _fill_holes(sums: Tensor) -> Tensor:
    """Sums of weighted features and of weights (n, C + 1, H, W) to features (n, C, H, W) at every pixel, those of the
    nearest pixels with weight: pull-push on a pyramid (Gortler et al., "The Lumigraph", SIGGRAPH 1996)."""

    def push(sums):
        if min(sums.shape[-2:]) < 2:
            return sums
        coarse = push(F.avg_pool2d(sums, 2, ceil_mode=True))
        return sums + HOLE_WEIGHT * F.interpolate(coarse, size=sums.shape[-2:], mode="bilinear")

    total = push(sums)
    return total[:, :-1] / total[:, -1:].clamp(min=1e-20)  # 0 where no pixel lies within the picture


def splat(values: Tensor, places: Tensor) -> Tensor:
    """Add up the values (n, C, H, W) of pictures at places (n, 2, H, W), x and y in pixels: (n, C, H, W).

    Each value is distributed to the four nearest pixels by bilinear weights. Values outside of the picture are lost.
    """
    height, width = values.shape[-2:]
    values, (x, y) = values.flatten(2), places.flatten(2).unbind(1)
    left, top = x.floor(), y.floor()
    out = torch.zeros_like(values)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        # `where` excludes places that are outside or NaN from the index and from the sum.
        share = torch.where(inside, (1 - (x - column).abs()) * (1 - (y - row).abs()), 0)
        index = torch.where(inside, row * width + column, 0).long()
        out.scatter_add_(2, index[:, None].expand_as(values), values * share[:, None])
    return out.unflatten(2, (height, width))
