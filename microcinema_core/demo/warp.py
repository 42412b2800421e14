"""The forward warp of the base model: moves the condition's pixels along trajectories that depend on the text."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MicroCinemaError
from ..model.autoencoder import Autoencoder
from ..model.layers import ResBlock, SpatialTransformer, zero
from .captions import COLOURS
from .config import DemoNetworkConfig
from .edges import least_zoom, show_uncovered
from .splat import compose, downsample, splat_clip

WarpInputs = tuple[Tensor, Tensor]  # pixels (clips, 3, H, W), and features (clips, C, h, w)

REGIONS = 16  # regions of the picture with a velocity relative to the camera
CELLS_PER_UNIT = 8.0  # the unit of length of velocities, in latent cells
WEIGHT_SCALE = 0.2  # of weights, so that a step of the optimiser changes a velocity by much less than a cell
FEATURE_CHANNELS = 24  # of the features at half the resolution of the picture
MOTION_CHANNELS = 48  # of the features and the pixels together
CHANNELS_PER_LEVEL = 24  # added at each lower resolution of the refinement
VELOCITY_TOLERANCE = 0.02  # units per τ: the standard deviation within which velocities count as equal
MIN_VELOCITY = 0.05  # units per τ: half the velocity of the slowest thing
FRONT_LOGIT = 2  # added to the nearness of moving pixels, which are in front of the background
MAX_ZOOM = 4  # of overscan
BACKGROUND_LOGIT = 12  # subtracted from the background logit around moving pixels, which are no background


class ForwardWarp(nn.Module):
    """Moves every pixel of a picture along a trajectory that a text describes, and encodes the frames as latents.

    The position of a pixel x at time τ is exp(τM)·x + τ·v(x), where τ is the signed time from the picture. M is an
    affine motion of the whole picture (pan, zoom, roll) and linear in the pooled text. v(x) is the sum Σ_j g_j(x)·v_j
    over regions, replaced by the nearest velocity of a thing in the text, or by 0. The v_j are linear in the text; the
    masks g_j of the regions are computed from the picture and the text.

    Holes are filled with the nearest pixels that have a high background logit; what the camera uncovers beyond the
    edges of the picture is the picture continued (edges.py), in `forward`. Pixels are warped instead of latents,
    which would lose detail; the model's autoencoder, with frozen weights, converts between them. So the trajectories
    get no gradient from the loss of the latents, and are learned from `flow` and `render`. The initial weights result
    in no motion for any text.
    """

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        assert config.forward_warp is not None
        width, context_dim, factor = config.model_channels, config.context_dim, config.forward_warp.factor
        self.autoencoder = Autoencoder(config.forward_warp, operations=operations, **kw).requires_grad_(False)
        self.unit = CELLS_PER_UNIT * factor  # the unit of length in pixels

        def conv(channels, out_channels, size):
            return operations.Conv2d(channels, out_channels, size, padding=size // 2, **kw)

        def linear(out_channels):
            return operations.Linear(context_dim, out_channels, bias=False, **kw)

        self.features_in = conv(width + config.latent_channels, 2 * width, 3)
        self.features_norm = operations.GroupNorm(config.norm_groups, 2 * width, **kw)
        self.features_mid = conv(2 * width, 2 * width, 3)
        self.upsample = nn.Sequential(
            conv(2 * width, FEATURE_CHANNELS * (factor // 2) ** 2, 1), nn.PixelShuffle(factor // 2)
        )
        self.pixels_in = conv(FEATURE_CHANNELS + 12, MOTION_CHANNELS, 3)
        self.pixels_norm = operations.GroupNorm(config.norm_groups, MOTION_CHANNELS, **kw)
        self.head = nn.Sequential(
            conv(MOTION_CHANNELS, MOTION_CHANNELS, 3), nn.SiLU(), conv(MOTION_CHANNELS, 4 * (REGIONS + 2), 1)
        )
        self.region_velocities = zero(linear(2 * (REGIONS + 3)))
        self.colour_velocities = zero(linear(2 * len(COLOURS))).requires_grad_(False)
        self.text_modulation = linear(2 * (2 * width + MOTION_CHANNELS))
        self.refine = _Refinement(config, int(math.log2(factor)) - 1, operations=operations, **kw)

    def encode(self, latents: Tensor, features: Tensor, pixels: Tensor | None = None) -> WarpInputs:
        """Compute what is the same for all texts and times, once per clip.

        From a picture's latents (clips, C, h, w) and AppearNet's last features (clips, C', h, w): its pixels
        (clips, 3, H, W), which are decoded unless given, and features (clips, 2·C', h, w).
        """
        if pixels is None:
            with torch.no_grad():
                pixels = self.autoencoder.decode(latents).clamp(0, 1)
        return pixels, self.features_in(torch.cat([features, latents], dim=1))

    @torch.no_grad()
    def forward(
        self, inputs: WarpInputs, text: Tensor, times: Tensor, zoom: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Warp clips: returns latents (b·t, C, h, w) and their visibility (b·t, 1, h, w), 0 to 1.

        inputs: the result of `encode` for b clips, or for a divisor of b.
        text: (b, D), pooled.
        times: (t,) or (b, t), τ.
        zoom: (b,), the magnification of all frames.
        """
        motion = self.estimate(inputs, text)
        rendered, visibility = self.render(inputs[0], motion, text, times, zoom)
        views = self._views(motion, text, times)
        views = views if zoom is None else zoom.view(-1, 1, 1, 1) * views
        rendered = show_uncovered(rendered, inputs[0], views)
        rendered, visibility = (x.flatten(0, 1).to(inputs[1].dtype) for x in (rendered, visibility))
        latents = self.autoencoder.encode(rendered.contiguous(memory_format=torch.channels_last))
        return latents, F.avg_pool2d(visibility, self.autoencoder.config.factor)

    def estimate(self, inputs: WarpInputs, text: Tensor) -> Tensor:
        """Estimate the motion of each pixel, (b, 4, H, W): its velocity relative to the camera, right and down in
        units per τ, and two logits, for how near it is and how suitable as background.

        The layers work at half the picture's resolution, on blocks of 2×2 pixels.
        """
        pixels, features = inputs
        h, fine = self.features_norm(features), F.pixel_unshuffle(pixels, 2).to(features.dtype)
        h, fine = (x.repeat(len(text) // len(x), 1, 1, 1) for x in (h, fine))
        text_in = text.to(h.dtype)
        modulation = WEIGHT_SCALE * self.text_modulation(text_in)[..., None, None]
        scale, shift, fine_scale, fine_shift = modulation.split([h.shape[1]] * 2 + [MOTION_CHANNELS] * 2, dim=1)
        h = self.upsample(F.silu(self.features_mid(F.silu(h * (1 + scale) + shift))))
        h = self.pixels_norm(self.pixels_in(torch.cat([h, fine], dim=1)))
        h = self.refine(h * (1 + fine_scale) + fine_shift, text_in)
        regions, logits = self.head(F.silu(h)).float().unflatten(1, (-1, 4)).split([REGIONS, 2], dim=1)
        masks = torch.sigmoid(4 * regions - 2)  # (b, REGIONS, 4, H/2, W/2), with the pixels of a block in dimension 2
        velocities = torch.einsum("bjshw,bji->bishw", masks, self._vectors_of(text)[:, :REGIONS])
        return F.pixel_shuffle(torch.cat([velocities, logits], dim=1).flatten(1, 2), 2)

    def render(
        self, pixels: Tensor, motion: Tensor, text: Tensor, times: Tensor, zoom: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Render frames: pixels (b, t, 3, H, W) and their visibility (b, t, 1, H, W), 0 to 1.

        pixels: (clips, 3, H, W); motion: the result of `estimate`, (b, 4, H, W); the rest as in `forward`.
        """
        motion = _dilate_moving(torch.cat([self._snap_velocities(motion[:, :2], text), motion[:, 2:]], dim=1))
        velocities, nearness, background = motion.split([2, 1, 1], dim=1)
        pixels = pixels.float().repeat(len(motion) // len(pixels), 1, 1, 1)
        # Nearer pixels cover farther ones. The background fills the holes, at half the resolution.
        weights = (4 * torch.tanh(nearness / 4)).exp(), torch.sigmoid(background)
        front, back = (torch.cat([weight * pixels, weight], dim=1) for weight in weights)
        places = self._trajectories(velocities, text, times)
        if zoom is not None:
            middle = self._pixel_grid(motion)[1]
            places = middle + zoom.view(-1, 1, 1, 1, 1) * (places - middle)
        return compose(splat_clip(front, places), splat_clip(downsample(back), (downsample(places) - 0.5) / 2))

    @torch.no_grad()
    def overscan(self, inputs: WarpInputs, text: Tensor, times: Tensor) -> Tensor:
        """The least magnification (b,) at which frames at these times (t,) show nothing outside of the picture; 1 where
        they show nothing without it. The arguments are those of `forward`.

        Raises MicroCinemaError where the camera leaves the picture, or nearly.
        """
        zoom = least_zoom(self._views(self.estimate(inputs, text), text, times), *inputs[0].shape[-2:])
        if not (zoom <= MAX_ZOOM).all():
            raise MicroCinemaError(
                f"the camera goes too far for overscan, which would enlarge the picture more than {MAX_ZOOM} times: "
                "give fewer frames, a slower move or a smaller motion"
            )
        return zoom

    def flow(self, motion: Tensor, text: Tensor) -> Tensor:
        """The velocity of every pixel of the picture, with the camera's, (b, 2, H, W): right and down, in pixels per
        τ."""
        affine, (places, _) = self._camera(text), self._pixel_grid(motion)
        camera = torch.einsum("bij,jhw->bihw", affine[:, :2, :2], places) + affine[:, :2, 2, None, None]
        return self.unit * (motion[:, :2] + camera)

    def _trajectories(self, velocities: Tensor, text: Tensor, times: Tensor) -> Tensor:
        """The position of each pixel at each time, (b, t, 2, H, W): x and y in pixels, from velocities (b, 2, H, W)."""
        places, middle = self._pixel_grid(velocities)
        moves = self._camera_moves(text, times)
        camera = torch.einsum("btij,jhw->btihw", moves[..., :2], places) + moves[..., 2, None, None]
        return middle + self.unit * (camera + times[..., None, None, None] * velocities[:, None])

    def _camera_moves(self, text: Tensor, times: Tensor) -> Tensor:
        """exp(τM) of pooled texts at times as in `forward`, without its last row: (b, t, 2, 3), in units."""
        return torch.linalg.matrix_exp(times[..., None, None] * self._camera(text)[:, None])[..., :2, :]

    def _views(self, motion: Tensor, text: Tensor, times: Tensor) -> Tensor:
        """Where the whole picture goes, affine maps (b, t, 2, 3) from the picture to the frame, both in pixels from the
        centre. In camera moves the regions take part: most of a pan is the velocity that all pixels have in common, the
        median of those of a motion (b, 4, H, W)."""
        moves = self._camera_moves(text, times)
        common = self._snap_velocities(motion[:, :2], text).flatten(2).median(dim=-1).values
        offsets = self.unit * (moves[..., 2] + times[..., None] * common[:, None])
        return torch.cat([moves[..., :2], offsets[..., None]], dim=-1)

    def _vectors_of(self, text: Tensor) -> Tensor:
        """Pooled texts (b, D) to vectors (b, REGIONS + 3, 2): the velocities of the regions, the columns of M."""
        return WEIGHT_SCALE * self.region_velocities(text).float().unflatten(1, (-1, 2))

    def _snap_velocities(self, velocities: Tensor, text: Tensor) -> Tensor:
        """Replace velocities (b, 2, H, W) by the nearest velocity of a thing in the text, or by 0, since the text
        determines them exactly. Velocities remain unchanged for a text without moving things."""
        named = self.colour_velocities(text).float().unflatten(1, (-1, 2))
        moving = (named.norm(dim=2) / MIN_VELOCITY).clamp(max=1)
        weights, choices = F.pad(moving, (1, 0), value=1.0), F.pad(named, (0, 0, 1, 0))[..., None, None]  # 0 first
        distance = (velocities[:, None] - choices).square().sum(2)
        chosen = torch.softmax(weights.log()[..., None, None] - distance / (2 * VELOCITY_TOLERANCE**2), dim=1)
        snapped = (chosen[:, :, None] * choices).sum(1)
        return torch.lerp(velocities, snapped, moving.amax(dim=1).view(-1, 1, 1, 1))

    def _camera(self, text: Tensor) -> Tensor:
        """The camera's motion M of pooled texts, (b, 3, 3); its last row is zero."""
        return F.pad(self._vectors_of(text)[:, REGIONS:].transpose(1, 2), (0, 0, 0, 1))

    def _pixel_grid(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """The positions (2, H, W) of the pixels of maps (…, H, W) from the picture's centre, in units, and the position
        (2, 1, 1) of the centre, in pixels."""
        y, x = (torch.arange(n, device=motion.device) - (n - 1) / 2 for n in motion.shape[-2:])
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"))
        return places / self.unit, -places[:, :1, :1]


class _Refinement(nn.Module):
    """A U-Net from half the picture's resolution down to that of the latents, modulated by the text at every level.

    It has a larger receptive field, to distinguish the thing in the text from similar ones. It starts as the identity.
    """

    def __init__(self, config: DemoNetworkConfig, levels: int, *, operations: Any = nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        widths = [MOTION_CHANNELS + CHANNELS_PER_LEVEL * level for level in range(levels + 1)]

        def res(channels):
            return ResBlock(channels, config.context_dim, channels, config.norm_groups, True, **parts)

        self.text_in = operations.Linear(config.context_dim, config.context_dim, **kw)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width, wider in pairwise(widths):
            shrink = nn.Sequential(operations.Conv2d(width, wider, 3, stride=2, padding=1, **kw))
            enlarge = zero(nn.Sequential(operations.Conv2d(wider, 4 * width, 1, **kw), nn.PixelShuffle(2)))
            self.down.append(nn.ModuleList([shrink, res(wider)]))
            self.up.insert(0, nn.ModuleList([enlarge, res(width)]))
        lowest, _ = self.down[-1].children()
        assert isinstance(lowest, nn.Sequential)
        channels = widths[-1]
        lowest.append(SpatialTransformer(channels, channels // CHANNELS_PER_LEVEL, config.norm_groups, **parts))

    def forward(self, h: Tensor, text: Tensor) -> Tensor:
        """h (b, MOTION_CHANNELS, H/2, W/2) and pooled texts (b, D) to the shape of h."""
        text_in, skips = self.text_in(text), []
        for level in self.down:
            shrink, block = level.children()
            skips.append(h)
            h = block(shrink(h), text_in)
        for level in self.up:
            enlarge, block = level.children()
            h = block(skips.pop() + enlarge(h), text_in)
        return h


def _dilate_moving(motion: Tensor) -> Tensor:
    """Dilate the moving regions of a motion (b, 4, H, W), because the autoencoder blurs a thing into the pixels around
    it: these get the thing's velocity and nearness, and do not fill the hole that it leaves."""
    velocities, nearness, background = motion.split([2, 1, 1], dim=1)
    speed = velocities.norm(dim=1, keepdim=True)
    moving = (speed / MIN_VELOCITY).clamp(max=1)
    _, fastest = F.max_pool2d(speed, 3, stride=1, padding=1, return_indices=True)
    velocities = velocities.flatten(2).gather(2, fastest.flatten(2).expand(-1, 2, -1)).view_as(velocities)
    background = background - BACKGROUND_LOGIT * F.max_pool2d(moving, 5, stride=1, padding=2)
    return torch.cat([velocities, nearness + FRONT_LOGIT * moving, background], dim=1)
