"""Optical flow without weights: the dense inverse search of Kroeger et al. (ECCV 2016), for batches.

From coarse to fine, the displacement of overlapping patches is found by gradient descent, in which the gradients of the
first picture's patches are computed once. The flow of a pixel is the mean of the displacements of its patches, those
that explain it better counting more. Two things are added, since a patch may start far from the truth: it also tries
no motion and, at coarse levels, the displacements of patches around it, as in PatchMatch (Barnes et al., 2009).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..optical_flow import blurred, warp, window_mean

STRIDE = 2  # of the result: the finest level is at half the resolution
COARSEST = 8  # pixels: the smallest side of the pyramid
PATCH, PATCH_STRIDE = 8, 4  # pixels of a level
STEPS = 8  # of the descent
MAX_STEP = 2.0  # pixels of a level
ROUNDS = 2  # at levels of fewer than SMALL pixels: in each, the patches around tell a patch their displacements
NEIGHBOURS = 2  # patches: how far away these are
SMALL = 128  # pixels, of the longer side
TEXTURE = 1e-4  # added to the squared gradients of a patch: one without texture does not move
PREFERENCE = 2e-5  # of the coarser level's displacement, in squared error
STILL = 0.5  # a place stands still where no motion leaves less than this share of the flow's squared error
STILL_WINDOW = 11  # pixels: the side of the windows over which these errors are summed
SMOOTHNESS = 1.0  # pixels of a level: the standard deviation of the blur after each level


def inverse_search(first: Tensor, last: Tensor) -> Tensor:
    """The flow (n, 2, H/2, W/2) from pictures (n, 3, H, W) in [0, 1] to others, right and down in pixels of them."""
    pyramid = [(first.mean(1, keepdim=True), last.mean(1, keepdim=True))]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * COARSEST or len(pyramid) == 1:
        finer = pyramid[-1]
        pyramid.append((F.avg_pool2d(finer[0], 2), F.avg_pool2d(finer[1], 2)))
    flow = first.new_zeros(len(first), 2, 1, 1)
    for level in reversed(pyramid[1:]):
        size = level[0].shape[-2:]
        scale = size[-1] / flow.shape[-1] if flow.shape[-1] > 1 else 1
        flow = scale * F.interpolate(flow, size, mode="bilinear")
        flow = blurred(_Level(*level).refined(flow), SMOOTHNESS)
    return STRIDE * flow * (1 - F.avg_pool2d(_still(*pyramid[0], STRIDE * flow).to(flow), STRIDE))


def _still(first: Tensor, last: Tensor, flow: Tensor) -> Tensor:
    """Where pictures (n, 1, H, W) agree better without the flow (n, 2, H/2, W/2), (n, 1, H, W)."""
    moved = warp(last, F.interpolate(flow, first.shape[-2:], mode="bilinear"))
    without, error = (window_mean((other - first).square(), STILL_WINDOW) for other in (last, moved))
    return without < STILL * error


class _Level:
    """Two pictures (n, 1, h, w), the first one in P overlapping patches of K = PATCH² pixels, (n, K, P)."""

    def __init__(self, first: Tensor, last: Tensor):
        self.last, self.size = last, first.shape[-2:]
        height, width = self.size
        # The last row and column are repeated until patches cover everything.
        self.padding = (0, _rest(width), 0, _rest(height))
        first = F.pad(first, self.padding, mode="replicate")
        around = F.pad(first, [1] * 4, mode="replicate")
        right = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
        down = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
        y, x = torch.meshgrid(*(torch.arange(side, device=first.device) for side in first.shape[-2:]), indexing="ij")
        places = _patches(torch.stack([x, y])[None].to(first)).unflatten(1, (2, -1)).movedim(1, -1)  # (1, K, P, 2)
        sides = places.new_tensor([width, height])
        self.grid, self.pixel = (2 * places + 1) / sides - 1, 2 / sides  # grid_sample's coordinates
        self.patches = _patches(first)
        # Without their mean, so that a change of the light leaves the descent as it is.
        right, down = (values - values.mean(1, keepdim=True) for values in (_patches(right), _patches(down)))
        self.right, self.down = right, down
        xx, yy = (values.square().sum(1) + TEXTURE for values in (right, down))
        xy = (right * down).sum(1)
        self.inverse = torch.stack([yy, -xy, -xy, xx], 1).unflatten(1, (2, 2)) / (xx * yy - xy.square())[:, None, None]

    def refined(self, flow: Tensor) -> Tensor:
        """The flow (n, 2, h, w) after the descent of all patches from it."""
        means = F.avg_pool2d(F.pad(flow, self.padding, mode="replicate"), PATCH, PATCH_STRIDE)
        found, is_small = means.flatten(2), max(self.size) < SMALL
        for _ in range(ROUNDS if is_small else 1):
            around = self._around(found.unflatten(2, means.shape[-2:])) if is_small else []
            found = self._descended(self._best([found, torch.zeros_like(found), *around]))
        return self._densified(found)

    def _descended(self, start: Tensor) -> Tensor:
        """The displacements (n, 2, P) after the descent from others, which stay where it does not help."""
        moved = start
        for _ in range(STEPS):
            difference = self._difference(moved)
            slope = torch.stack([(self.right * difference).sum(1), (self.down * difference).sum(1)], 1)
            moved = moved - torch.einsum("nijp,njp->nip", self.inverse, slope).clamp(-MAX_STEP, MAX_STEP)
        lost = ((moved - start).norm(dim=1) > PATCH) | (self._cost(moved) > self._cost(start))
        return torch.where(lost[:, None], start, moved)

    def _around(self, means: Tensor) -> list[Tensor]:
        """The displacements (n, 2, P) of the patches around each one."""
        rows, columns = means.shape[-2:]
        wide = F.pad(means, [NEIGHBOURS] * 4, mode="replicate")
        offsets = (0, NEIGHBOURS, 2 * NEIGHBOURS)
        return [wide[..., y : y + rows, x : x + columns].flatten(2) for y in offsets for x in offsets]

    def _best(self, displacements: list[Tensor]) -> Tensor:
        """For each patch the displacement that explains it best."""
        best, cost = displacements[0], self._cost(displacements[0]) - PREFERENCE
        for candidate in displacements[1:]:
            other = self._cost(candidate)
            best, cost = torch.where((other < cost)[:, None], candidate, best), torch.minimum(other, cost)
        return best

    def _difference(self, displacement: Tensor) -> Tensor:
        """What the last picture shows at the displaced patches, less what the first shows, (n, K, P)."""
        grid = self.grid + (displacement.mT * self.pixel)[:, None]
        return F.grid_sample(self.last, grid, padding_mode="border", align_corners=False)[:, 0] - self.patches

    def _cost(self, displacement: Tensor) -> Tensor:
        """The mean square of the difference, less that of each patch's mean, which changes with the light."""
        difference = self._difference(displacement)
        return difference.square().mean(1) - difference.mean(1).square()

    def _densified(self, displacement: Tensor) -> Tensor:
        """The flow (n, 2, h, w) of displaced patches (n, 2, P)."""
        height, width = self.size
        padded = height + self.padding[3], width + self.padding[1]
        weights = 1 / (255 * self._difference(displacement)).square().clamp(min=1)
        sums = F.fold((weights[:, None] * displacement[:, :, None]).flatten(1, 2), padded, PATCH, stride=PATCH_STRIDE)
        return (sums / F.fold(weights, padded, PATCH, stride=PATCH_STRIDE))[..., :height, :width]


def _rest(side: int) -> int:
    return max(PATCH - side, (PATCH - side) % PATCH_STRIDE)


def _patches(maps: Tensor) -> Tensor:
    return F.unfold(maps, PATCH, stride=PATCH_STRIDE)
