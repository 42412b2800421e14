"""The quality of pictures and clips in comparison with the true ones.

Pictures are (3, h, w) and clips (t, 3, h, w), floats in [0, 1].
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .motion import camera_steps, move_camera

SSIM_WINDOW = 11  # pixels
MAX_PSNR = 100.0  # of equal pictures; finite, so that means and JSON stay finite


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The peak signal-to-noise ratio in dB over all pixels of `a` and `b` (…, 3, h, w), or over those of the mask
    `where` (…, h, w)."""
    error = (a.float() - b.float()).square().mean(-3)
    error = float(error.mean() if where is None else error[where].mean())
    return min(-10 * math.log10(max(error, 1e-30)), MAX_PSNR)


def ssim(a: Tensor, b: Tensor) -> float:
    """The mean structural similarity (Wang et al. 2004) of pictures (…, 3, h, w), with a Gaussian window of 11 pixels
    and standard deviation 1.5."""
    from kornia.metrics import ssim as structural_similarity  # here, since its import takes a while

    a, b = (x.float().reshape(-1, *x.shape[-3:]) for x in (a, b))
    return float(structural_similarity(a, b, window_size=SSIM_WINDOW).mean())


def iou(a: Tensor, b: Tensor) -> float:
    """The intersection over union of two boolean masks; 1 for two empty ones."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def colour_drift(frames: Tensor, truth: Tensor) -> float:
    """The largest difference, over frames and colours, between a frame's mean colour and the true one's."""
    return float((frames.mean((-2, -1)) - truth.mean((-2, -1))).abs().max())


def camera_consistency(frames: Tensor) -> float:
    """The PSNR in dB between each frame and the previous one, warped by the measured motion of the camera."""
    warped, inside = move_camera(frames[:-1].float(), camera_steps(frames))
    return psnr(warped, frames[1:], inside)


def background_consistency(frames: Tensor, masks: Tensor) -> float:
    """The PSNR in dB between neighbouring frames outside of the moving things: of `masks` (t, h, w), widened by two
    pixels."""
    near = F.max_pool2d(masks.float()[:, None], 5, stride=1, padding=2)[:, 0] > 0
    return psnr(frames[:-1], frames[1:], ~(near[:-1] | near[1:]))
