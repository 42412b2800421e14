"""The flow network of the interpolation model: two pictures and a time between them become the frame of that time.

The motion is found without weights, from each picture to the other one (inverse_search.py). At the frame's time each of
the two flows tells a velocity for every pixel, and each velocity takes a pixel from both pictures. These four and the
two pictures as they are make six candidates for the frame. Where a flow is right, its two candidates agree; where
something is covered, one candidate is right; where nothing moves, the pictures as they are. A small U-Net sees the
candidates and how far they agree, and tells for every pixel how much each one counts, and what their mean lacks. So it
never invents a motion.

Related: Super SloMo (Jiang et al., CVPR 2018) for the weights of warped pictures by what is visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.layers import zero
from ..optical_flow import warp, window_mean
from .inverse_search import STRIDE, inverse_search

WIDTHS = (48, 64, 96, 128)  # of the U-Net, at 1/2, 1/4, 1/8 and 1/16 of the resolution
COARSEST = 2 ** len(WIDTHS)
PAIRS = 3  # of candidates: by the flow of the first picture, by that of the last one, and without motion
INPUTS = 4 * 3 * 2 * PAIRS + 2 * PAIRS + 4 * (PAIRS - 1)  # pixels, differences near and wide, two flows of each
WITHOUT_MOTION = -2.0  # the logit of the pair without motion beside the others', at first
AGREEMENT_STRIDE = 4  # pixels, the side of the cells in which wide differences are measured
AGREEMENT_WINDOW = 9  # cells, the side of the window around each one
SMALL_DIFFERENCE = 1 / 255  # of colours from 0 to 1: below it, the frame goes over into the pictures' linear blend
USUAL_DIFFERENCE = 0.03  # of colours: the one that is 0 on the network's logarithmic scale, nearly
SLOPE = 0.1  # of the leaky ReLUs


@dataclass
class Interpolated:
    """The result of FlowNetwork: maps of the frame at time t.

    frame: (b, 3, H, W), not clamped.
    blended: (b, 3, H, W), the candidates' mean: the frame without what it lacks.
    velocity: (b, 2, H, W), right and down in pixels between the two pictures.
    disagreement: (b, 1, H, W), how far the candidates of one pair differ, in colours.
    moving: (b, 1, H, W), how much the pairs with motion count; 0 where the frame is the pictures' linear blend.
    """

    frame: Tensor
    blended: Tensor
    velocity: Tensor
    disagreement: Tensor
    moving: Tensor

    def cropped(self, height: int, width: int) -> Interpolated:
        """The maps without what is to the right of and below this size."""
        return Interpolated(*(maps[..., :height, :width] for maps in vars(self).values()))


class FlowNetwork(nn.Module):
    """Interpolates between pictures (b, 2, 3, H, W) in [0, 1], whose sides are multiples of COARSEST."""

    def __init__(self, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            layer = operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **kw)
            return nn.Sequential(layer, nn.LeakyReLU(SLOPE, inplace=True))

        self.conv_in = conv(INPUTS, WIDTHS[0])
        levels = list(pairwise(WIDTHS))
        self.down = nn.ModuleList(nn.Sequential(conv(fine, coarse, 2), conv(coarse, coarse)) for fine, coarse in levels)
        self.enlarge = nn.ModuleList(operations.Conv2d(coarse, fine, 1, **kw) for fine, coarse in levels)
        self.up = nn.ModuleList(conv(fine, fine) for fine, _ in levels)
        self.conv_out = operations.Conv2d(WIDTHS[0], 4 * (2 * PAIRS + 3), 3, padding=1, **kw)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Kaiming initialisation, and zeros in the last layer: at first the frame is the candidates' prior mean."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight is not None and not layer.weight.is_meta:
                nn.init.kaiming_normal_(layer.weight, SLOPE, nonlinearity="leaky_relu")
                if layer.bias is not None:
                    layer.bias.zero_()
        zero(self.conv_out)

    def forward(self, pictures: Tensor, time: float, flows: Tensor | None = None) -> Interpolated:
        """The frame at a time from 0 to 1. `flows` is the result of `both_ways`, if it was called before."""
        flows = both_ways(pictures) if flows is None else flows
        velocities = [_enlarged(velocity) for velocity in _velocities(flows, time)]
        first, last = pictures.unbind(1)
        pairs = [(warp(first, -time * v), warp(last, (1 - time) * v)) for v in velocities] + [(first, last)]
        candidates = [candidate for pair in pairs for candidate in pair]
        differences = torch.cat([(a - b).abs().mean(1, keepdim=True) for a, b in pairs], 1)
        near = F.avg_pool2d(differences, 2)
        wide = window_mean(F.avg_pool2d(near, AGREEMENT_STRIDE // 2), AGREEMENT_WINDOW)
        maps = self._unet([
            F.pixel_unshuffle(2 * torch.cat(candidates, 1) - 1, 2),
            *(_logarithm(near), _enlarged(_logarithm(wide), AGREEMENT_STRIDE // 2)),
            *(F.avg_pool2d(torch.cat([-time * v, (1 - time) * v], 1), 2) / COARSEST for v in velocities),
        ])  # fmt: skip
        logits, lacking = maps.split([2 * PAIRS, 3], 1)
        logits = torch.cat([maps + prior for maps, prior in zip(logits.split(1, 1), _priors(time), strict=True)], 1)
        weights = torch.softmax(logits, 1).unflatten(1, (PAIRS, 2))
        shares = weights.sum(2)  # of the pairs
        blended = _weighted(weights.flatten(1, 2), candidates)
        velocity = _weighted(shares[:, :-1], velocities)
        differ = (_enlarged(wide[:, -1:], AGREEMENT_STRIDE) / SMALL_DIFFERENCE).clamp(0, 1)
        frame = torch.lerp(torch.lerp(first, last, time), blended + lacking, differ)
        disagreement = (shares * differences).sum(1, keepdim=True)
        return Interpolated(frame, blended, velocity, disagreement, differ * (1 - shares[:, -1:]))

    def _unet(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps at half the resolution to the logits of the candidates and what their mean lacks, at the full one."""
        # In channels_last: joined in another order of memory, they take twice the time.
        h = self.conv_in(torch.cat([maps.contiguous(memory_format=torch.channels_last) for maps in inputs], 1))
        skips = []
        for layers in self.down:
            skips.append(h)
            h = layers(h)
        for enlarge, layers in zip(reversed(self.enlarge), reversed(self.up), strict=True):
            h = layers(skips.pop() + _enlarged(enlarge(h)))
        return F.pixel_shuffle(self.conv_out(h), 2)


@torch.no_grad()
def both_ways(pictures: Tensor) -> Tensor:
    """The flow (b, 2, 2, H/2, W/2) in pixels from each of the pictures (b, 2, 3, H, W) to the other one."""
    pair, other = (order.flatten(0, 1).float() for order in (pictures, pictures.flip(1)))
    return inverse_search(pair, other).unflatten(0, (-1, 2)).to(pictures)


def halfway(pictures: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
    """Both pictures (b, 3, H/2, W/2), at half the resolution, moved half of the way to each other: by the mean of what
    both flows tell, so that only pictures of one scene meet."""
    velocity = torch.stack(_velocities(flows, 0.5)).mean(0)
    first, last = F.avg_pool2d(pictures.flatten(0, 1), STRIDE).unflatten(0, (-1, 2)).unbind(1)
    return warp(first, -0.5 * velocity / STRIDE), warp(last, 0.5 * velocity / STRIDE)


def _velocities(flows: Tensor, time: float) -> list[Tensor]:
    """The velocities (b, 2, h, w) that the flow of each picture tells for the frame at a time: those of the places that
    they lead to, found by a fixed-point iteration."""
    velocities = []
    for given, way in ((flows[:, 0], -time), (-flows[:, 1], 1 - time)):
        velocity = given
        for _ in range(2):
            velocity = warp(given, way * velocity / STRIDE)
        velocities.append(velocity)
    return velocities


def _priors(time: float) -> list[float]:
    """The logits of the candidates by which each pair is a linear blend, and that without motion counts less."""
    biases = (*(0.0 for _ in range(PAIRS - 1)), WITHOUT_MOTION)
    return [bias + math.log(share) for bias in biases for share in (1 - time, time)]


def _weighted(weights: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The sum (b, C, H, W) of maps, each by its channel of the weights (b, n, H, W)."""
    total = torch.zeros_like(maps[0])
    for weight, values in zip(weights.split(1, 1), maps, strict=True):
        total = total + weight * values
    return total


def _logarithm(differences: Tensor) -> Tensor:
    """Differences of colours on a scale on which small ones tell as much as large ones."""
    return ((differences + SMALL_DIFFERENCE) / USUAL_DIFFERENCE).log()


def _enlarged(maps: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear")
