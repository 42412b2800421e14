"""The flow network of the interpolation model: two pictures and a time between them become the frame of that time.

The start is a flow without weights in both directions (inverse_search.py), and a comparison of patches of brightness
around it, as in block matching: they show most motion before any training. From 1/16 of the resolution to 1/2, each
level then warps the features of both pictures by the flow so far and correlates them. Three convolutions change three
maps of the frame at time t: the velocity v of what is visible there, in pixels
between the two pictures, a logit of the blend mask, and hidden features. A point on a straight path moves from the
first picture by t·v and to the last one by (1−t)·v, so one velocity is the flow to both. At the end a refinement at
full resolution changes both flows on their own, the mask, and adds a residual to the blended pictures. Where both
pictures agree without any motion, their linear blend is the frame: nothing can be won there.

Related: PWC-Net (Sun et al., CVPR 2018) for the pyramid with warping and correlation, BMBC (Park et al., ECCV 2020) for
the bilateral correlation at time t, IFRNet (Kong et al., CVPR 2022) for the refinement of flow together with features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..optical_flow import warp, window_mean
from .inverse_search import STRIDE, inverse_search

CHANNELS = (16, 32, 64, 96)  # of the pictures' features at 1/2, 1/4, 1/8 and 1/16 of the resolution
WIDTHS = (48, 64, 96, 128)  # of the layers at these levels
RADII = (0, 2, 3, 4)  # of the correlation, in cells of the level; at 1/2 there is none
PATCH = 5  # side of the patches of brightness that are compared at first, in cells of PATCH_STRIDE pixels
PATCH_STRIDE = 8
PATCH_RADIUS = 6  # of this comparison, in these cells: 48 pixels
FINE_CHANNELS = 9  # flow to both pictures, logits of the mask and of what moves, residual
MOVING_LOGIT = 2.0  # of what moves, at first
# Pictures are blended as they are where they differ by less than the first of DIFFERENCES, a mean over colours and a
# window, and warping them makes that better by less than the first of GAINS; from the second of either on they are not.
# They are as well where warping makes it worse: by the second of LOSSES not yet, by the first wholly.
DIFFERENCES = 3 / 255, 5 / 255
GAINS = 1.2, 1.6
LOSSES = 0.9, 1.1
AGREEMENT_STRIDE = 4  # pixels, the side of the cells in which this is computed
AGREEMENT_WINDOW = 9  # cells, the side of the window
COARSEST = 2 ** len(CHANNELS)
SLOPE = 0.1  # of the leaky ReLUs


class Estimate(NamedTuple):
    """Maps of the frame at time t, at the resolution of a level: the velocity (b, 2, h, w) in pixels of the pictures,
    the logit (b, 1, h, w) of the first picture's weight beyond that of a linear blend, and hidden features."""

    velocity: Tensor
    logit: Tensor
    hidden: Tensor


@dataclass
class Interpolated:
    """The result of FlowNetwork: maps of the frame at time t.

    frame: (b, 3, H, W), not clamped.
    flows: (b, 4, H, W), from the frame to the first and to the last picture, right and down in pixels.
    mask: (b, 1, H, W), the weight of the first picture.
    warped: (b, 6, H, W), the first and the last picture warped to the frame.
    moving: (b, 1, H, W), 0 where the frame is the pictures' linear blend.
    estimates: those of all levels, from coarse to fine.
    """

    frame: Tensor
    flows: Tensor
    mask: Tensor
    warped: Tensor
    moving: Tensor
    estimates: list[Estimate]

    def cropped(self, height: int, width: int) -> Interpolated:
        """The maps at full resolution without what is to the right of and below this size."""
        maps = (self.frame, self.flows, self.mask, self.warped, self.moving)
        frame, flows, mask, warped, moving = (values[..., :height, :width] for values in maps)
        return Interpolated(frame, flows, mask, warped, moving, self.estimates)


class FlowNetwork(nn.Module):
    """Interpolates between pictures (b, 3, H, W) in [0, 1], whose sides are multiples of COARSEST."""

    def __init__(self, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        self.encoder = nn.ModuleList(
            nn.Sequential(_conv(before, channels, 2, **kw), _conv(channels, channels, 1, **kw))
            for before, channels in zip((3, *CHANNELS), CHANNELS, strict=False)
        )
        coarser = (*WIDTHS[1:], (2 * PATCH_RADIUS + 1) ** 2)
        self.patch_sharpness = nn.Parameter(torch.tensor(20.0, dtype=dtype, device=device))
        self.levels = nn.ModuleList(_Level(level, coarser[level], **kw) for level in range(len(CHANNELS)))
        inner = WIDTHS[0]
        self.refine = nn.Sequential(
            _conv(5 * 12 + inner + 3, inner, 1, **kw), _conv(inner, inner, 1, **kw), _conv(inner, inner, 1, **kw)
        )
        self.fine = operations.Conv2d(inner, 4 * FINE_CHANNELS, 3, padding=1, dtype=dtype, device=device)
        initialise(self)

    def encode(self, pictures: Tensor) -> list[Tensor]:
        """The features of pictures (2·b, 3, H, W), the first and the last one of each pair in turn, from the finest
        level to the coarsest; then their patches, and the flow of the start from each to the other one of its pair."""
        features, h = [], 2 * pictures - 1
        for block in self.encoder:
            h = block(h)
            features.append(h)
        return [*features, _patches(pictures), _start(pictures)]

    def estimate(self, features: list[Tensor], time: float) -> list[Estimate]:
        """The estimates of all levels, from coarse to fine, for a time from 0 to 1 and the result of `encode`."""
        *ends, patches, flows = [maps.unflatten(0, (-1, 2)).unbind(1) for maps in features]
        start = _velocity_between(flows[0], flows[1], time)
        coarse = F.avg_pool2d(start, COARSEST // STRIDE)
        # The coarsest level estimates what the start lacks.
        ends[-1] = warp_pair(ends[-1], coarse / COARSEST, time)
        last = self.levels[-1](*ends[-1], time, self._compare(patches, coarse, time), coarse)
        estimates = [last]
        for level in range(2, len(CHANNELS) + 1):
            estimates.append(self.levels[-level](*ends[-level], time, estimates[-1], start))
        return estimates

    def _compare(self, patches: Sequence[Tensor], velocity: Tensor, time: float) -> Estimate:
        """The comparison of patches around a velocity (b, 2, H/16, W/16): the mean displacement by their correlations,
        which are the hidden features."""
        first, last = warp_pair(patches, _enlarge(velocity) / PATCH_STRIDE, time)
        correlation = F.avg_pool2d(correlate(first, last, time, PATCH_RADIUS), COARSEST // PATCH_STRIDE)
        displacement = PATCH_STRIDE * _expected_displacement(self.patch_sharpness * correlation)
        return Estimate(displacement, torch.zeros_like(displacement[:, :1]), correlation)

    def forward(self, pictures: Tensor, time: float, features: list[Tensor] | None = None) -> Interpolated:
        """Interpolate between pictures (b, 2, 3, H, W) at a time from 0 to 1. `features` is the result of `encode` for
        pictures.flatten(0, 1), if it was called before."""
        features = self.encode(pictures.flatten(0, 1)) if features is None else features
        return self.refined(pictures, time, self.estimate(features, time))

    def refined(self, pictures: Tensor, time: float, estimates: list[Estimate]) -> Interpolated:
        """The frame at full resolution, from the result of `estimate`."""
        velocity, logit, hidden = estimates[-1]
        flows = torch.cat([-time * velocity, (1 - time) * velocity], 1)
        flows, logits = _enlarge(flows), _enlarge(logit)
        first, last = pictures.unbind(1)
        warped = torch.cat([warp(first, flows[:, :2]), warp(last, flows[:, 2:])], 1)
        fine = F.pixel_unshuffle(torch.cat([first, last, warped, blend(warped, logits, time)], 1), 2)
        maps = self.fine(self.refine(_joined([2 * fine - 1, hidden, velocity / COARSEST, logit])))
        maps = F.pixel_shuffle(maps, 2)
        change, logit_change, moves, residual = maps.split([4, 1, 1, 3], 1)
        flows, logits = flows + change, logits + logit_change
        warped = torch.cat([warp(first, flows[:, :2]), warp(last, flows[:, 2:])], 1)
        mask = torch.sigmoid(logits + _prior(time))
        frame, linear = blend(warped, logits, time) + residual, torch.lerp(first, last, time)
        moving = torch.sigmoid(moves + MOVING_LOGIT) * _moving(first, last, warped)
        return Interpolated(torch.lerp(linear, frame, moving), flows, mask, warped, moving, estimates)


class _Level(nn.Module):
    """One level of FlowNetwork, at 1/2^(level + 1) of the resolution."""

    def __init__(self, level: int, coarser_width: int, *, operations: Any, **kw):
        super().__init__()
        self.stride, self.radius = 2 ** (level + 1), RADII[level]
        self.is_coarsest = self.stride == COARSEST
        channels, width = CHANNELS[level], WIDTHS[level]
        inputs = 2 * channels + 5 + width // 2
        if self.radius:
            inputs += (2 * self.radius + 1) ** 2
        if self.is_coarsest:
            self.sharpness = nn.Parameter(torch.tensor(10.0, dtype=kw["dtype"], device=kw["device"]))
            inputs += 2
        self.hidden_in = operations.Conv2d(coarser_width, width // 2, 1, **kw)
        self.layers = nn.Sequential(*(
            _conv(inputs if not i else width, width, 1, operations=operations, **kw) for i in range(3)
        ))  # fmt: skip
        self.head = operations.Conv2d(width, 3, 3, padding=1, **kw)

    def forward(self, first: Tensor, last: Tensor, time: float, coarser: Estimate, start: Tensor) -> Estimate:
        """The estimate from the features (b, C, h, w) of both pictures and that of the next coarser level, or of the
        comparison of patches, and the start's velocity. What the coarser level changed is added to the start."""
        velocity, logit, hidden = coarser.velocity, coarser.logit, self.hidden_in(coarser.hidden)
        inputs = []
        if self.is_coarsest:  # the features are warped by the start already
            inputs += [velocity / COARSEST, self._correlate(first, last, time)]
            inputs += [_expected_displacement(self.sharpness * inputs[-1])]
            velocity = start
        else:
            changed = velocity - F.avg_pool2d(start, 2 * self.stride // STRIDE)
            velocity = F.avg_pool2d(start, self.stride // STRIDE) + _enlarge(changed)
            logit, hidden = _enlarge(logit), _enlarge(hidden)
            first, last = warp_pair((first, last), velocity / self.stride, time)
            if self.radius:
                inputs += [self._correlate(first, last, time)]
            inputs += [_enlarge(changed) / self.stride]
        inputs += [hidden, first, last, velocity / COARSEST, logit]
        hidden = self.layers(_joined(inputs))
        change, logit_change = self.head(hidden).split([2, 1], 1)
        return Estimate(velocity + self.stride * change, logit + logit_change, hidden)

    def _correlate(self, first: Tensor, last: Tensor, time: float) -> Tensor:
        """The correlations of features without their common mean, which correlates everywhere, and of unit length."""
        mean = (first.mean((2, 3), keepdim=True) + last.mean((2, 3), keepdim=True)) / 2
        return correlate(_normalised(first - mean), _normalised(last - mean), time, self.radius)


def _expected_displacement(scores: Tensor) -> Tensor:
    """The mean displacement (b, 2, h, w), right and down in cells, by the softmax of scores (b, shifts, h, w)."""
    radius = (math.isqrt(scores.shape[1]) - 1) // 2
    side = torch.arange(-radius, radius + 1.0, device=scores.device)
    shifts = torch.stack(torch.meshgrid(side, side, indexing="xy")).flatten(1)
    return torch.einsum("bdhw,cd->bchw", torch.softmax(scores.float(), 1), shifts).to(scores)


@torch.no_grad()
def _start(pictures: Tensor) -> Tensor:
    """The flow (2·b, 2, H/2, W/2) in pixels of the pictures, from each to the other one of its pair."""
    other = pictures.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return inverse_search(pictures.float(), other.float()).to(pictures)


def _velocity_between(forward: Tensor, backward: Tensor, time: float) -> Tensor:
    """The velocity (b, 2, h, w) of the frame at a time, from the flow of both pictures to the other one: that of the
    places which it leads to itself, found by a fixed-point iteration."""
    velocity = (1 - time) * forward - time * backward
    for _ in range(2):
        first, last = warp_pair((forward, backward), velocity / STRIDE, time)
        velocity = (1 - time) * first - time * last
    return velocity


@torch.no_grad()
def _patches(pictures: Tensor) -> Tensor:
    """Patches of brightness (n, PATCH², H/8, W/8) of pictures, without their mean and normalised."""
    grey = F.avg_pool2d(pictures.float().mean(1, keepdim=True), PATCH_STRIDE)
    grey = F.pad(grey, [PATCH // 2] * 4, mode="replicate")
    patches = F.unfold(grey, PATCH).unflatten(2, [side - PATCH + 1 for side in grey.shape[-2:]])
    patches = patches - patches.mean(1, keepdim=True)
    return (patches * (patches.square().sum(1, keepdim=True) + 1e-3 * PATCH**2).rsqrt()).to(pictures)


def warp_pair(maps: Sequence[Tensor], velocity: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """The maps (b, C, h, w) of both pictures, warped to a time by a velocity (b, 2, h, w) in their pixels."""
    first, last = maps
    return warp(first, -time * velocity), warp(last, (1 - time) * velocity)


def correlate(first: Tensor, last: Tensor, time: float, radius: int) -> Tensor:
    """The correlations (b, (2·radius+1)², h, w) of maps (b, C, h, w) for all displacements d up to a radius, by rows.

    A displacement d means that what is at x − t·d in the first map is at x + (1−t)·d in the last one, with t·d rounded:
    so the correlation lies where the thing is at the time t.
    """
    return cast(Tensor, _Correlation.apply(first, last, time, radius))


class _Correlation(torch.autograd.Function):
    """`correlate` by products of whole rows, of which only some diagonals are used: faster than products of shifted
    maps, since it moves less memory."""

    @staticmethod
    def forward(ctx, first, last, time, radius):
        rows = [F.pad(maps.permute(0, 2, 3, 1), (0, 0, *[radius] * 4)).contiguous() for maps in (first, last)]
        ctx.save_for_backward(*rows)
        ctx.time, ctx.radius = time, radius
        count, _, height, width = first.shape
        out = first.new_empty(2 * radius + 1, 2 * radius + 1, count, height, width)
        for y, (a, b) in enumerate(_shifted_rows(rows, time, radius)):
            products = torch.bmm(a.flatten(0, 1), b.flatten(0, 1).mT)
            for x, diagonal in enumerate(_diagonals(products, time, radius)):
                out[y, x] = diagonal.unflatten(0, (count, height))
        return out.flatten(0, 1).movedim(0, 1).contiguous()

    @staticmethod
    def backward(ctx, grad):
        rows, time, radius = ctx.saved_tensors, ctx.time, ctx.radius
        grads = [torch.zeros_like(maps) for maps in rows]
        grad = grad.movedim(1, 0).unflatten(0, (2 * radius + 1, -1)).flatten(2, 3)
        pairs = zip(_shifted_rows(rows, time, radius), _shifted_rows(grads, time, radius), strict=True)
        for y, ((a, b), (grad_a, grad_b)) in enumerate(pairs):
            products = grad.new_zeros(a.shape[0] * a.shape[1], a.shape[2], a.shape[2])
            for x, diagonal in enumerate(_diagonals(products, time, radius)):
                diagonal.copy_(grad[y, x])
            grad_a += torch.bmm(products, b.flatten(0, 1)).view_as(a)
            grad_b += torch.bmm(products.mT, a.flatten(0, 1)).view_as(b)
        inner = slice(radius, -radius)
        first, last = (maps[:, inner, inner].permute(0, 3, 1, 2) for maps in grads)
        return first, last, None, None


def _shifted_rows(rows: Sequence[Tensor], time: float, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each displacement of rows, views (b, h, w + 2·radius, C) of both maps, which are padded by the radius."""
    first, last = rows
    height = first.shape[1] - 2 * radius
    for y in range(-radius, radius + 1):
        top = radius - round(time * y)
        yield first[:, top : top + height], last[:, top + y : top + y + height]


def _diagonals(products: Tensor, time: float, radius: int) -> Iterator[Tensor]:
    """For each displacement within a row, the diagonal (n, w) of the rows' products (n, w + 2·radius, w + 2·radius)."""
    width = products.shape[1] - 2 * radius
    for x in range(-radius, radius + 1):
        start = radius - round(time * x)  # the place in the first map, where `diagonal` counts from max(0, −x) on
        yield products.diagonal(x, 1, 2)[:, start + min(0, x) :][:, :width]


def blend(warped: Tensor, logits: Tensor, time: float) -> Tensor:
    """Both warped pictures (b, 6, H, W), blended (b, 3, H, W) by the logits (b, 1, H, W) of an Estimate."""
    first, last = warped.chunk(2, 1)
    return torch.lerp(last, first, torch.sigmoid(logits + _prior(time)))


@torch.no_grad()
def _moving(first: Tensor, last: Tensor, warped: Tensor) -> Tensor:
    """0 where pictures (b, 3, H, W) agree as well as when they are warped (b, 6, H, W), 1 where not, (b, 1, H, W)."""
    without, rest = (
        window_mean(F.avg_pool2d((a - b).abs().mean(1, keepdim=True), AGREEMENT_STRIDE), AGREEMENT_WINDOW)
        for a, b in ((first, last), warped.chunk(2, 1))
    )
    gained, lost = (_ramp(without, low * rest, high * rest + 1e-6) for low, high in (GAINS, LOSSES))
    moving = torch.minimum(torch.maximum(_ramp(without, *DIFFERENCES), gained), lost)
    return _enlarge(moving, AGREEMENT_STRIDE)


def _ramp(values: Tensor, low: Any, high: Any) -> Tensor:
    """Values as 0 up to `low`, as 1 from `high` on, and linear between."""
    return ((values - low) / (high - low)).clamp(0, 1)


def _prior(time: float) -> float:
    """The logit of the weight 1 − t of the first picture in a linear blend."""
    return math.log((1 - time) / time)


def _normalised(maps: Tensor) -> Tensor:
    return maps * (maps.square().sum(1, keepdim=True) + 1e-6).rsqrt()


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (b, C, h, w) side by side, in channels_last. Joined in another order of memory, they take twice the time."""
    return torch.cat([part.contiguous(memory_format=torch.channels_last) for part in maps], 1)


def _enlarge(maps: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear")


def _conv(inputs: int, outputs: int, stride: int, *, operations: Any, **kw) -> nn.Sequential:
    layer = operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **kw)
    return nn.Sequential(layer, nn.LeakyReLU(SLOPE, inplace=True))


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Kaiming initialisation, with small heads: PyTorch's own shrinks the features from layer to layer, until nothing
    is left to correlate."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight is not None and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, SLOPE, nonlinearity="leaky_relu")
            if name.endswith(("head", "fine")):
                layer.weight.mul_(0.02)
            if layer.bias is not None:
                layer.bias.zero_()
