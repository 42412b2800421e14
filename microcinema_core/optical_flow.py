"""Dense optical flow, and what it says of a clip: how much moves, and how well the frames agree.

Flow from coarse to fine by Lucas and Kanade (1981): at every pixel the displacement that explains the next frame best
within a Gaussian window. It needs no weights. Pictures are (b, 3, h, w), floats in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 2.5  # pixels: the standard deviation of the window
COARSEST = 16  # pixels: the smallest side of the pyramid
ITERATIONS = 4  # on each level
DAMPING = 1e-4  # of the squared gradients: a patch without texture keeps the flow of the coarser level


def optical_flow(
    before: Tensor, after: Tensor, *, coarsest: int = COARSEST, iterations: int = ITERATIONS, damping: float = DAMPING
) -> Tensor:
    """The flow (b, 2, h, w), x and y in pixels: what `before` shows at p, `after` shows at p + flow(p)."""
    pyramid = [(before.float(), after.float())]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * coarsest:
        first, second = pyramid[-1]
        pyramid.append((F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)))
    flow = torch.zeros_like(pyramid[-1][0][:, :2])
    for first, second in reversed(pyramid):
        scale = first.shape[-1] / flow.shape[-1]
        flow = scale * F.interpolate(flow, first.shape[-2:], mode="bilinear", align_corners=False)
        for _ in range(iterations):
            flow = blurred(flow + _update(first, second, flow, damping), 1.0)
    return flow


def _update(before: Tensor, after: Tensor, flow: Tensor, damping: float) -> Tensor:
    """The change of the flow that explains the difference of `before` and the warped `after`."""
    warped = warp(after, flow)
    padded = F.pad((warped + before) / 2, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    error = before - warped
    products = torch.stack([dx * dx, dx * dy, dy * dy, dx * error, dy * error], dim=1).sum(2)
    xx, xy, yy, xe, ye = blurred(products, WINDOW).unbind(1)
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy**2
    update = torch.stack([yy * xe - xy * ye, xx * ye - xy * xe], dim=1) / determinant[:, None]
    return update.clamp(-1, 1)  # a step that is larger belongs to a coarser level


def window_mean(maps: Tensor, side: int) -> Tensor:
    """The mean of maps (n, C, H, W) over the window of side × side pixels around each one, as far as it lies inside."""
    half = side // 2
    rows = F.avg_pool2d(maps, (side, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, half), count_include_pad=False)


def blurred(maps: Tensor, std: float) -> Tensor:
    """Maps (b, c, h, w) after a Gaussian filter."""
    radius = int(3 * std)
    x = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = (-(x**2) / (2 * std**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    b, c, h, w = maps.shape
    maps = F.pad(maps.reshape(b * c, 1, h, w), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(maps, kernel), kernel.mT).view(b, c, h, w)


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """The pictures (b, c, h, w) read at p + flow(p); outside of them their edge."""
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype),
        torch.arange(width, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    grid = torch.stack([(2 * (x + flow[:, 0]) + 1) / width - 1, (2 * (y + flow[:, 1]) + 1) / height - 1], dim=-1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
