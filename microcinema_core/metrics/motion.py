"""The motion of things and of the camera in a clip, in pixels per frame.

Pictures are (3, h, w) and clips (t, 3, h, w), floats in [0, 1]. A thing is segmented against a given background. The
motion of the camera is a global optical flow of four parameters, fitted as by Lucas and Kanade (1981).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Motion(NamedTuple):
    """A measured motion: its direction and its speed."""

    name: str  # one of "still", left, right, up, down, in, out, clockwise, counterclockwise
    magnitude: float  # pixels per frame; for zoom and roll the root mean square over the pixels, see `lever`


# --- a drawn thing ---


def thing_masks(
    frames: Tensor, background: Tensor, centre: Tensor, mask: Tensor, other_masks: Tensor | None = None
) -> Tensor:
    """Segment a thing: a boolean mask (t, h, w) of its pixels in each frame.

    The thing's colours are those of the true centre frame `centre` within `mask` (h, w). A pixel belongs to the thing
    if its colour is nearer to one of these than to its colour in `background` (3, h, w), the scene without things; on
    an anti-aliased edge these are the pixels that the thing covers by more than one half. With a second thing, whose
    true masks are `other_masks` (t, h, w), its colours must be farther away as well, except where a colour of the
    first thing is very near and the pixel outside of the second thing's true mask: both may have a gloss or a shade.
    """
    pixels = frames.movedim(1, -1)
    from_background = (pixels - background.movedim(0, -1)).norm(dim=-1)
    from_thing = _distance_to_colours(pixels, centre, mask)
    masks = (from_background > 0.1) & (from_thing < from_background)
    if other_masks is not None and (other := other_masks[len(frames) // 2]).any():
        shared = (from_thing < 0.15) & ~other_masks
        masks &= (from_thing < _distance_to_colours(pixels, centre, other)) | shared
    neighbours = 9 * F.avg_pool2d(masks.float()[:, None], 3, stride=1, padding=1)[:, 0]
    return masks & (neighbours > 3.5)  # without isolated pixels, which have less than three neighbours


def _distance_to_colours(pixels: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    """The distance of pixels (…, 3) to the nearest of 64 colours of `picture` (3, h, w) within `mask` (h, w): (…)."""
    inner = F.max_pool2d((~mask).float()[None], 3, stride=1, padding=1)[0] == 0  # without the blended edge
    colours = picture.movedim(0, -1)[inner if inner.sum() >= 8 else mask]
    colours = colours[torch.linspace(0, len(colours) - 1, 64, device=colours.device).long()]
    distances = torch.cdist(pixels.reshape(1, -1, 3), colours[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    return distances.amin(1).reshape(pixels.shape[:-1])


def thing_path(masks: Tensor) -> Tensor:
    """The centroid (x, y) of the mask in each frame, in pixels: (t, 2); NaN where the mask is empty."""
    _, height, width = masks.shape
    weight = masks.float()
    area = weight.sum((1, 2))
    x = (weight.sum(1) * torch.arange(width, device=masks.device)).sum(1) / area
    y = (weight.sum(2) * torch.arange(height, device=masks.device)).sum(1) / area
    return torch.stack((x, y), 1)


def thing_motion(masks: Tensor, minimum: float) -> Motion | None:
    """The motion of a thing: the median slope of its path (the Theil-Sen estimator); "still" below `minimum` pixels per
    frame.

    None where at most half of the frames contain the thing.
    """
    path = thing_path(masks)
    times = torch.arange(len(path), device=path.device)[path.isfinite().all(1)]
    if 2 * len(times) <= len(path):
        return None
    path = path[times]
    first, second = torch.triu_indices(len(times), len(times), 1, device=path.device)
    slopes = (path[second] - path[first]) / (times[second] - times[first])[:, None]
    right, down = slopes.median(0).values.tolist()
    return _dominant({"right": right, "down": down}, minimum)


# --- the camera ---


def lever(height: int, width: int) -> float:
    """The root mean square distance of the pixels from the picture's centre, by which zoom and roll are converted into
    pixels."""
    return math.sqrt((height**2 + width**2) / 12)


def camera_motion(frames: Tensor, minimum: float) -> Motion:
    """The motion of the camera: the largest component of the median step; "still" below `minimum` pixels per frame."""
    arm = lever(*frames.shape[-2:])
    right, down, out, clockwise = camera_steps(frames).median(0).values.tolist()
    return _dominant({"right": right, "down": down, "out": arm * out, "clockwise": arm * clockwise}, minimum)


_OPPOSITES = {"right": "left", "down": "up", "out": "in", "clockwise": "counterclockwise"}


def _dominant(components: dict[str, float], minimum: float) -> Motion:
    name = max(components, key=lambda key: abs(components[key]))
    value = components[name]
    if abs(value) < minimum:
        return Motion("still", abs(value))
    return Motion(name if value > 0 else _OPPOSITES[name], abs(value))


def camera_steps(frames: Tensor) -> Tensor:
    """The camera's step from each frame to the next: (t-1, 4) = pixels right, pixels down, log zoom out, roll.

    Roll is clockwise in radians. The pixel p of frame n+1, from the picture's centre, corresponds to the pixel
    e^out·R(roll)·p + (right, down) of frame n. The steps are fitted by robust Gauss-Newton from coarse to fine.
    """
    frames = frames.float()
    pyramid = [frames]
    while min(pyramid[-1].shape[-2:]) > 32:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    steps = frames.new_zeros(len(frames) - 1, 4)
    for level in reversed(range(len(pyramid))):
        steps[:, :2] /= 2**level  # in pixels of this level
        for _ in range(8):
            update = _gauss_newton(pyramid[level][:-1], pyramid[level][1:], steps)
            steps = steps + update
            if update[:, :2].abs().max() < 0.01 and update[:, 2:].abs().max() < 0.0003:
                break
        steps[:, :2] *= 2**level
    return steps


def _gauss_newton(before: Tensor, after: Tensor, steps: Tensor) -> Tensor:
    """The update (b, 4) of `steps` that reduces the difference between `before`, warped by them, and `after`, both
    (b, 3, h, w)."""
    warped, inside, points = _warp(before, steps)
    # Derivatives of the warped picture by source position: those by output position, rotated and scaled back.
    dx = (warped.roll(-1, -1) - warped.roll(1, -1)) / 2
    dy = (warped.roll(-1, -2) - warped.roll(1, -2)) / 2
    scale, cos, sin = steps[:, 2].exp(), steps[:, 3].cos(), steps[:, 3].sin()
    cos, sin, scale = (v[:, None, None, None] for v in (cos, sin, scale))
    dx, dy = (cos * dx - sin * dy) / scale, (sin * dx + cos * dy) / scale
    x, y = ((points - steps[:, None, None, :2]).movedim(-1, 0)).unsqueeze(2)  # relative to the centre after the step
    jacobian = torch.stack((dx, dy, dx * x + dy * y, dy * x - dx * y), -1)  # (b, 3, h, w, 4)
    residual = after - warped
    inside = inside.clone()
    inside[..., [0, -1], :] = inside[..., :, [0, -1]] = False  # the derivatives above wrap around
    weight = inside[:, None] / (1 + residual.square() / 0.1**2) ** 2  # Geman-McClure
    weighted = (jacobian * weight[..., None]).flatten(1, 3)
    hessian = weighted.mT @ jacobian.flatten(1, 3)
    gradient = weighted.mT @ residual.flatten(1)[..., None]
    # Damping in pixels, for directions in which the picture hardly changes.
    arm = lever(*before.shape[-2:])
    damping = torch.tensor([1.0, 1.0, arm**2, arm**2], device=before.device) * 1e-6 * inside[0].numel()
    return torch.linalg.solve(hessian + damping.diag(), gradient)[..., 0]


def move_camera(pictures: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (b, 3, h, w) warped by `steps` (b, 4) of the camera, and a boolean mask (b, h, w) of the pixels that lie
    within them."""
    warped, inside, _ = _warp(pictures, steps)
    return warped, inside


def _warp(pictures: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As move_camera, and the positions (b, h, w, 2) of the source pixels from the picture's centre, x and y."""
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
    return warped, inside, points
