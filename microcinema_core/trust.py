"""How far the motion that a model finds in quiet places of a clip is to be trusted: its own given frames tell.

Where little moves, a codec lets motion come in jumps, and the linear blend of two frames can be nearer to what lies
between them than their rightly moved pixels. Which of both is, differs from clip to clip. So a part of each given frame
is made from its two neighbours too: with F what it shows, W what the model makes and B the neighbours' blend, the share
of W − B that comes nearest to F − B is Σ(F − B)(W − B) / Σ(W − B)², summed over quiet places of the last frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

PART = 96  # pixels: the side of the part of each frame that is made
PLACES = ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0))  # of these parts, in turn
MEMORY = 0.9  # how much a frame counts, relative to the next one
# What is missing of a share of 1 counts more than it is: across two intervals, blends are worse than across one.
ACROSS_ONE = 1.5


class Trust:
    """The share of the model's motion in quiet places, as the frames so far have it, 1 before the first."""

    def __init__(self):
        self.products = torch.zeros(2)

    def after(self, products: Tensor) -> float:
        """The share after one more frame, with its sums of (F − B)(W − B) and of (W − B)², (2,)."""
        self.products = MEMORY * self.products + products
        return self.share

    @property
    def share(self) -> float:
        """From 0 to 1."""
        agreement, square = self.products.tolist()
        share = min(max(agreement / square, 0.0), 1.0) if square else 1.0
        return max(0.0, 1 - ACROSS_ONE * (1 - share))


def part_of(frames: Tensor, number: int) -> Tensor:
    """The part of frames (…, h, w) that is made of a given frame with this number: another place for each."""
    height, width = (min(side, PART) for side in frames.shape[-2:])
    down, right = PLACES[number % len(PLACES)]
    top, left = int(down * (frames.shape[-2] - height)), int(right * (frames.shape[-1] - width))
    return frames[..., top : top + height, left : left + width]
