"""Measurements of clips, none of which needs a download.

Pictures are (3, h, w) and clips (t, 3, h, w), floats in [0, 1]. Motion is measured in pixels a frame: a drawn thing by
the path of its mask over the known background, the camera by global optical flow, a four-parameter Lucas-Kanade fit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HIGHEST_PSNR = 100.0  # of equal pictures; finite, so that means and JSON stay finite


class Motion(NamedTuple):
    name: str  # one of captions.MOTIONS
    magnitude: float  # pixels a frame; zoom and roll: of a typical pixel, see `lever`


# --- pictures ---


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB over everything given, or over the pixels (…, h, w) bool of `where`."""
    error = (a.float() - b.float()).square().mean(-3)
    error = float(error.mean() if where is None else error[where].mean())
    return min(-10 * math.log10(max(error, 1e-30)), HIGHEST_PSNR)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11, deviation 1.5), mean over frames and colours."""
    offsets = torch.arange(-5, 6, dtype=torch.float32, device=a.device)
    line = (-(offsets**2) / (2 * 1.5**2)).exp()
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), window)

    a, b = a.float(), b.float()
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, covariance = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * covariance + c2) / (var_a + var_b + c2)).mean())


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two bool masks; 1 for two empty ones."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def colour_drift(frames: Tensor, truth: Tensor) -> float:
    """The largest difference, over frames and colours, between a frame's mean colour and the true one's."""
    return float((frames.mean((-2, -1)) - truth.mean((-2, -1))).abs().max())


# --- a drawn thing ---


def thing_masks(
    frames: Tensor, background: Tensor, centre: Tensor, mask: Tensor, other_masks: Tensor | None = None
) -> Tensor:
    """Where each frame shows the thing: (t, h, w) bool.

    `centre` is the true centre frame and `mask` (h, w) the thing in it: they give the thing's colours. A pixel belongs
    to the thing when it lies nearer to one of these than to `background` (3, h, w), the same place without things; so
    on an anti-aliased edge coverage above one half counts. Where a second thing is nearer still, it wins, but a colour
    that both have (a gloss, a shade) is its own only in its true place, `other_masks` (t, h, w).
    """
    pixels = frames.movedim(1, -1)
    from_background = (pixels - background.movedim(0, -1)).norm(dim=-1)
    from_thing = _distance_to_colours(pixels, centre, mask)
    found = (from_background > 0.1) & (from_thing < from_background)
    if other_masks is not None and (other := other_masks[len(frames) // 2]).any():
        shared = (from_thing < 0.15) & ~other_masks
        found &= (from_thing < _distance_to_colours(pixels, centre, other)) | shared
    neighbours = 9 * F.avg_pool2d(found.float()[:, None], 3, stride=1, padding=1)[:, 0]
    return found & (neighbours > 3.5)  # drop speckles: pixels with fewer than three neighbours


def _distance_to_colours(pixels: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    inner = F.max_pool2d((~mask).float()[None], 3, stride=1, padding=1)[0] == 0  # without the blend at its edge
    colours = picture.movedim(0, -1)[inner if inner.sum() >= 8 else mask]
    colours = colours[torch.linspace(0, len(colours) - 1, 64, device=colours.device).long()]
    return torch.cdist(pixels.reshape(1, -1, 3), colours[None], compute_mode="donot_use_mm_for_euclid_dist")[0].amin(
        1
    ).reshape(pixels.shape[:-1])  # fmt: skip


def thing_path(masks: Tensor) -> Tensor:
    """Centroid (x, y) in pixels per frame, (t, 2); NaN where the thing is not found."""
    _, height, width = masks.shape
    weight = masks.float()
    area = weight.sum((1, 2))
    x = (weight.sum(1) * torch.arange(width, device=masks.device)).sum(1) / area
    y = (weight.sum(2) * torch.arange(height, device=masks.device)).sum(1) / area
    return torch.stack((x, y), 1)


def thing_motion(masks: Tensor, least: float) -> Motion | None:
    """How the thing moves: the median slope of its path (Theil-Sen), below `least` pixels a frame "still".

    None when fewer than half of the frames show it.
    """
    path = thing_path(masks)
    times = torch.arange(len(path), device=path.device)[path.isfinite().all(1)]
    if 2 * len(times) <= len(path):
        return None
    path = path[times]
    first, second = torch.triu_indices(len(times), len(times), 1, device=path.device)
    slopes = (path[second] - path[first]) / (times[second] - times[first])[:, None]
    right, down = slopes.median(0).values.tolist()
    return _dominant({"right": right, "down": down}, least)


# --- the camera ---


def lever(height: int, width: int) -> float:
    """Root mean square distance of a pixel from the picture's centre: turns zoom and roll into pixels."""
    return math.sqrt((height**2 + width**2) / 12)


def camera_motion(frames: Tensor, least: float) -> Motion:
    """What the camera does: the largest component of the median step, below `least` pixels a frame "still"."""
    arm = lever(*frames.shape[-2:])
    right, down, out, clockwise = camera_steps(frames).median(0).values.tolist()
    return _dominant({"right": right, "down": down, "out": arm * out, "clockwise": arm * clockwise}, least)


_OPPOSITES = {"right": "left", "down": "up", "out": "in", "clockwise": "counterclockwise"}


def _dominant(components: dict[str, float], least: float) -> Motion:
    name = max(components, key=lambda key: abs(components[key]))
    value = components[name]
    if abs(value) < least:
        return Motion("still", abs(value))
    return Motion(name if value > 0 else _OPPOSITES[name], abs(value))


def camera_steps(frames: Tensor) -> Tensor:
    """The camera's step from each frame to the next: (t-1, 4) = pixels right, pixels down, log zoom out, roll.

    Roll is clockwise in radians. Step s says that frame n+1 at p shows what frame n shows at e^out·R(roll)·p + (right,
    down), p from the picture's centre. Fitted coarse to fine by Gauss-Newton with weights that ignore outliers.
    """
    frames = frames.float()
    pyramid = [frames]
    while min(pyramid[-1].shape[-2:]) > 32:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    steps = frames.new_zeros(len(frames) - 1, 4)
    for level in reversed(range(len(pyramid))):
        steps[:, :2] /= 2**level  # pixels of this level
        for _ in range(8):
            update = _gauss_newton(pyramid[level][:-1], pyramid[level][1:], steps)
            steps = steps + update
            if update[:, :2].abs().max() < 0.01 and update[:, 2:].abs().max() < 0.0003:
                break
        steps[:, :2] *= 2**level
    return steps


def _gauss_newton(before: Tensor, after: Tensor, steps: Tensor) -> Tensor:
    """One update (b, 4) of `steps` that brings `before`, seen through them, closer to `after`, (b, 3, h, w)."""
    warped, inside, points = warp(before, steps, return_points=True)
    x, y = points.unbind(-1)
    # Derivatives of the warped picture by source position: those by output position, turned and scaled back.
    dx = (warped.roll(-1, -1) - warped.roll(1, -1)) / 2
    dy = (warped.roll(-1, -2) - warped.roll(1, -2)) / 2
    scale, cos, sin = steps[:, 2].exp(), steps[:, 3].cos(), steps[:, 3].sin()
    cos, sin, scale = (v[:, None, None, None] for v in (cos, sin, scale))
    dx, dy = (cos * dx - sin * dy) / scale, (sin * dx + cos * dy) / scale
    x, y = ((points - steps[:, None, None, :2]).movedim(-1, 0)).unsqueeze(2)  # relative to the moved centre
    jacobian = torch.stack((dx, dy, dx * x + dy * y, dy * x - dx * y), -1)  # (b, 3, h, w, 4)
    residual = after - warped
    inside = inside.clone()
    inside[..., [0, -1], :] = inside[..., :, [0, -1]] = False  # the derivatives above wrap around
    weight = inside[:, None] / (1 + residual.square() / 0.1**2) ** 2  # Geman-McClure
    weighted = (jacobian * weight[..., None]).flatten(1, 3)
    hessian = weighted.mT @ jacobian.flatten(1, 3)
    gradient = weighted.mT @ residual.flatten(1)[..., None]
    # Damping in pixels: a direction in which the picture hardly changes does not run away.
    arm = lever(*before.shape[-2:])
    damping = torch.tensor([1.0, 1.0, arm**2, arm**2], device=before.device) * 1e-6 * inside[0].numel()
    return torch.linalg.solve(hessian + damping.diag(), gradient)[..., 0]


def warp(pictures: Tensor, steps: Tensor, *, return_points: bool = False) -> tuple[Tensor, ...]:
    """`pictures` (b, 3, h, w) after the camera made `steps` (b, 4), and where they know what it shows, (b, h, w)."""
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=pictures.device) - (height - 1) / 2,
        torch.arange(width, device=pictures.device) - (width - 1) / 2,
        indexing="ij",
    )
    right, down, out, roll = (v[:, None, None] for v in steps.unbind(1))
    cos, sin = out.exp() * roll.cos(), out.exp() * roll.sin()
    points = torch.stack((cos * x - sin * y + right, sin * x + cos * y + down), -1)
    grid = points / points.new_tensor([width / 2, height / 2])
    warped = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)
    edge = 1 - 1 / points.new_tensor([width, height])
    inside = (grid.abs() <= edge).all(-1)
    return (warped, inside, points) if return_points else (warped, inside)


# --- consistency: how well each frame follows from the one before it ---


def camera_consistency(frames: Tensor) -> float:
    """PSNR between each frame and the one before it, moved by the measured step of the camera."""
    warped, inside = warp(frames[:-1].float(), camera_steps(frames))
    return psnr(warped, frames[1:], inside)


def background_consistency(frames: Tensor, masks: Tensor) -> float:
    """PSNR between neighbouring frames outside the moving things' `masks` (t, h, w) and a margin of two pixels."""
    near = F.max_pool2d(masks.float()[:, None], 5, stride=1, padding=2)[:, 0] > 0
    return psnr(frames[:-1], frames[1:], ~(near[:-1] | near[1:]))
