"""What a clip does: motion, fidelity to the picture it began with, consistency, colour.

Motion and consistency belong together: a clip that stands still is perfectly consistent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import fit
from ..optical_flow import optical_flow, warp
from .quality import SSIM_WINDOW, psnr, ssim

LONG_SIDE = 512  # pixels: larger frames are reduced for the flow, whose values are of the full size all the same
MOVING = 0.5  # pixels a frame: what moves less counts as still
PAIRS = 8  # pairs of frames at a time


@dataclass(frozen=True)
class ClipReport:
    """The figures of a clip; `steps` holds those from each frame to the next."""

    motion: float  # the mean length of the flow, pixels a frame
    motion_95: float  # its 95th percentile
    moving: float  # the share of pixels that move by more than MOVING
    consistency: float  # dB: the PSNR of each frame with the next one, warped back by the flow
    colour_drift: float  # the largest change of a frame's mean colour, of 1
    fidelity: float | None  # dB: the PSNR of the given frame with the picture; None without a picture
    similarity: float | None  # SSIM of the same; None for a clip smaller than its window
    steps: list[dict[str, float]]

    def to_json(self) -> dict:
        """The report as a JSON object."""
        return asdict(self)

    def words(self) -> str:
        """The report in a few lines."""
        lines = [
            f"motion {self.motion:.2f} px a frame (95 %: {self.motion_95:.2f}), {self.moving:.0%} of the pixels move",
            f"consistency {self.consistency:.1f} dB, colour drift {self.colour_drift:.3f}",
        ]
        if self.fidelity is not None:
            lines.append(f"given frame: {self.fidelity:.1f} dB")
        if self.similarity is not None:
            lines[-1] += f", SSIM {self.similarity:.3f}"
        return "\n".join(lines)


def clip_report(frames: Tensor, picture: Tensor | None = None, given: int = 0) -> ClipReport:
    """Report on frames (t, 3, h, w) in [0, 1], t of 1 or more. picture: (3, H, W), of any size, which frame `given` is
    to show."""
    height, width = frames.shape[-2:]
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = [max(1, round(side * scale)) for side in (height, width)]
    steps, lengths = [], []
    for start in range(0, len(frames) - 1, PAIRS):
        part = frames[start : start + PAIRS + 1].float()
        part = part if scale == 1 else F.interpolate(part, size, mode="area")
        flow = optical_flow(part[:-1], part[1:])
        for before, after, motion in zip(part[:-1], part[1:], flow, strict=True):
            length = motion.norm(dim=0) * width / size[1]
            error = psnr(warp(after[None], motion[None])[0], before)
            steps.append({"motion": length.mean().item(), "consistency": error})
            lengths.append(length.flatten()[:: max(1, length.numel() // 10_000)].cpu())
    length = torch.cat(lengths) if lengths else torch.zeros(1)
    colours = frames.float().mean((-2, -1))
    fidelity = similarity = None
    if picture is not None:
        expected, found = fit(picture.to(frames.device).float(), width, height), frames[given].float()
        fidelity = psnr(found, expected)
        similarity = ssim(found, expected) if min(height, width) >= SSIM_WINDOW else None
    mean = {key: sum(step[key] for step in steps) / max(len(steps), 1) for key in ("motion", "consistency")}
    return ClipReport(
        mean["motion"], float(np.quantile(length.numpy(), 0.95)), (length > MOVING).float().mean().item(),
        mean["consistency"], (colours - colours[given]).abs().max().item(), fidelity, similarity, steps,
    )  # fmt: skip
