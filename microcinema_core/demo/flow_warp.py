"""The flow warp of the interpolation model: moves the pixels of the end frames to the frames between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.autoencoder import Autoencoder
from ..model.layers import zero
from ..optical_flow import window_mean
from .config import DemoNetworkConfig
from .flow import AGREEMENT_STRIDE, COARSEST, FlowNetwork, Interpolated, both_ways, halfway

MAX_RESIDUAL = 0.1  # of a colour, from 0 to 1: the most that the diffusion model changes a pixel by
# End frames, moved half of the way to each other, show different scenes where their details correlate less and their
# colours differ more. Of 128 held-out scenes the least correlation is 0.55, of 55 pairs of different photographs the
# largest is 0.41, and the least difference 0.13.
CUT_CORRELATION = 0.48
CUT_DIFFERENCE = 0.09
QUIET_SPEED = 2.0  # pixels between the end frames: slower places are quiet
QUIET_DIFFERENCE = 4 / 255  # of the end frames' colours: places that differ less are quiet
QUIET_WINDOW = 5  # cells of AGREEMENT_STRIDE pixels, the side of the window of both means


@dataclass
class WarpedFrames:
    """The frames at times from 0 to 1 between two end frames, for b windows.

    pixels: (b, t, 3, H, W).
    latents: (b, t, C, h, w), the autoencoder's of these pixels; those of the end frames are the condition's own.
    disagreement: (b, t, 1, h, w), the mean difference of the colours of both end frames, warped to the frame.
    moving: (b, t, 1, H, W), 0 where they are a blend of the end frames without motion, or copies of them.
    quiet: (b, t, 1, H, W), 1 where little moves or changes.
    is_cut: (b,), true where the end frames do not show the same scene. Such windows hold the nearer one.
    """

    pixels: Tensor
    latents: Tensor
    disagreement: Tensor
    moving: Tensor
    quiet: Tensor
    is_cut: Tensor


class FlowWarp(nn.Module):
    """The flow network, the model's autoencoder with frozen weights, and a linear map of latents to pixels.

    The frames at full resolution are the warped pixels. The diffusion model's residual around their latents is added by
    a linear map, so that no residual changes no pixel, and no decoder runs.
    """

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        assert config.flow_warp is not None
        factor = config.flow_warp.factor
        self.autoencoder = Autoencoder(config.flow_warp, operations=operations, **kw).requires_grad_(False)
        self.network = FlowNetwork(operations=operations, **kw)
        self.residual_out = zero(
            operations.Conv2d(config.latent_channels, 3 * factor**2, 3, padding=1, bias=False, **kw)
        )
        self.factor = factor

    @torch.no_grad()
    def forward(self, ends: Tensor, latents: Tensor, times: Sequence[float]) -> WarpedFrames:
        """The frames at `times` between end frames (b, 2, 3, H, W) with latents (b, 2, C, h, w)."""
        made, is_cut = self.between(ends, [time for time in times if 0 < time < 1])
        frames = iter(made)
        pixels, encoded, disagreement, moving, quiet = [], [], [], [], []
        cut = is_cut.view(-1, 1, 1, 1)
        for time in times:
            if time in (0, 1):
                pixels.append(ends[:, int(time)])
                encoded.append(latents[:, int(time)])
                disagreement.append(torch.zeros_like(latents[:, 0, :1]))
                moving.append(torch.zeros_like(ends[:, 0, :1]))
                quiet.append(moving[-1])
                continue
            result = next(frames)
            frame = torch.where(cut, ends[:, int(time > 0.5)], result.frame.clamp(0, 1))
            pixels.append(frame)
            encoded.append(self.autoencoder.encode(frame.contiguous(memory_format=torch.channels_last)))
            disagreement.append(F.avg_pool2d(result.disagreement, self.factor))
            moving.append(result.moving * ~cut)
            quiet.append(_quiet(ends, result) * ~cut)
        parts = (torch.stack(maps, 1) for maps in (pixels, encoded, disagreement, moving, quiet))
        return WarpedFrames(*parts, is_cut=is_cut)

    def between(self, ends: Tensor, times: Sequence[float]) -> tuple[list[Interpolated], Tensor]:
        """The flow network's results for end frames (b, 2, 3, H, W) of any size, and which of the pairs do not show one
        scene, (b,)."""
        height, width = ends.shape[-2:]
        flat = F.pad(ends.flatten(0, 1), (0, -width % COARSEST, 0, -height % COARSEST), mode="replicate")
        pictures = flat.unflatten(0, (-1, 2))
        flows = both_ways(pictures)
        made = [self.network(pictures, time, flows).cropped(height, width) for time in times]
        return made, _is_cut(*halfway(pictures, flows))

    @torch.no_grad()
    def compare(self, triples: Tensor) -> Tensor:
        """The sums (n, 2) for Trust of neighbours (n, 3, 3, H, W)."""
        ends, middle = triples[:, [0, 2]], triples[:, 1].float()
        [made], is_cut = self.between(ends, [0.5])
        frame, blend = made.frame.float().clamp(0, 1), ends.float().mean(1)
        weights = _quiet(ends, made, intervals=2) * ~is_cut.view(-1, 1, 1, 1)
        difference = weights * (frame - blend)
        products = ((middle - blend) * difference, (frame - blend) * difference)
        return torch.stack([values.sum((1, 2, 3)) for values in products], 1).cpu()

    def residual(self, latents: Tensor) -> Tensor:
        """Residual latents (n, C, h, w) to what they add to the pixels, (n, 3, H, W)."""
        pixels = F.pixel_shuffle(self.residual_out(latents), self.factor)
        return MAX_RESIDUAL * torch.tanh(pixels / MAX_RESIDUAL)


def _quiet(ends: Tensor, made: Interpolated, intervals: int = 1) -> Tensor:
    """Where frames that were made between end frames (b, 2, 3, H, W), so many intervals apart, are quiet, (b, 1, H, W):
    what is there moves slowly, or the end frames hardly differ."""
    velocity, difference = (
        F.avg_pool2d(maps, AGREEMENT_STRIDE)
        for maps in (made.velocity.float(), (ends[:, 0] - ends[:, 1]).abs().mean(1, keepdim=True))
    )
    speed = velocity.norm(dim=1, keepdim=True) / intervals
    speed, difference = (window_mean(maps.float(), QUIET_WINDOW) for maps in (speed, difference))
    quiet = ((speed < QUIET_SPEED) | (difference < QUIET_DIFFERENCE)).float()
    quiet = F.interpolate(window_mean(quiet, 3), ends.shape[-2:], mode="bilinear")
    return quiet.to(ends)


def _is_cut(first: Tensor, last: Tensor) -> Tensor:
    """Whether both end frames, moved half of the way (b, 3, H/2, W/2), show different scenes, (b,).

    The correlation is that of the luminance without slow gradients, which many pictures have in common. A flash changes
    the colours but not the details; dark noise differs in details but not in colours.
    """
    difference = (first - last).abs().mean((1, 2, 3))
    light = F.avg_pool2d(torch.stack([first, last], 1).mean(2), 2)
    light = light - F.avg_pool2d(light, 15, stride=1, padding=7, count_include_pad=False)
    first, last = light.flatten(2).unbind(1)
    flat = 1e-5 * first.shape[1]  # pictures without any details do not differ in them
    lengths = (first.square().sum(1) + flat) * (last.square().sum(1) + flat)
    correlation = ((first * last).sum(1) + flat) / lengths.sqrt()
    return (correlation < CUT_CORRELATION) & (difference > CUT_DIFFERENCE)
