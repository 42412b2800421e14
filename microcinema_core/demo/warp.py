"""The forward warp of the base model: moves the condition's pixels as the text says."""

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

WIDTHS = (48, 72, 96)  # of the velocity choice, at 1/2, 1/4 and less of the picture's resolution
HEAD_CHANNELS = 24  # of its attention
MIN_VELOCITY = 3.0  # pixels per τ: half the velocity of the slowest thing
SAME_VELOCITY = 1.0  # pixels per τ: the standard deviation within which velocities count as equal
FRONT_WEIGHT = 6.0  # of moving pixels, which are in front, relative to others
HIDDEN_WEIGHT = 1e-5  # of moving pixels, and of those around them, as a background
MAX_ZOOM = 4  # of overscan


class ForwardWarp(nn.Module):
    """Moves every pixel of a picture along a trajectory that a text describes, and encodes the frames as latents.

    The position of a pixel x at time τ is exp(τM)·(x + τ·v(x)), where τ is the signed time from the picture. M is an
    affine motion of the whole picture (pan, zoom, roll), and v(x) is 0 or the velocity of a thing that the text names
    by its colour. M and these velocities are linear in the pooled text, and known once the text tower is trained; what
    remains to be learned is which of the velocities each pixel has.

    Holes are filled with the nearest pixels that do not move; what the camera uncovers beyond the edges of the picture
    is the picture continued (edges.py). Pixels are warped instead of latents, which would lose detail; the model's
    autoencoder, with frozen weights, converts between them. The initial weights result in no motion for any text.
    """

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, dtype=None, device=None):
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        assert config.forward_warp is not None and config.context_dim is not None

        def fixed(out_channels):
            layer = operations.Linear(config.context_dim, out_channels, bias=False, dtype=dtype, device=device)
            if layer.weight is not None:  # a host may create it when it loads a file
                zero(layer)
            return layer.requires_grad_(False)

        # Rounded to fp8, its few weights would change a clip more than all others together.
        precise = torch.float16 if dtype is not None and dtype.itemsize == 1 else dtype
        self.autoencoder = Autoencoder(config.forward_warp, **kw | {"dtype": precise}).requires_grad_(False)
        self.camera = fixed(6)  # the first two rows of M, (2, 3), in pixels per τ
        self.colour_velocities = fixed(2 * len(COLOURS))  # right and down, in pixels per τ
        self.choice = VelocityChoice(config, **kw)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The pixels (clips, 3, H, W) of pictures, from their latents (clips, C, h, w)."""
        return self.autoencoder.decode(latents).clamp(0, 1)

    @torch.no_grad()
    def forward(
        self, pixels: Tensor, velocities: Tensor, text: Tensor, times: Tensor, zoom: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Warp clips: returns latents (b·t, C, h, w) and their visibility (b·t, 1, h, w), 0 to 1.

        pixels: (clips, 3, H, W), of b clips or a divisor of b.
        velocities: the result of `estimate`, (b, 2, H, W).
        text: (b, D), pooled.
        times: (t,) or (b, t), τ.
        zoom: (b,), the magnification of all frames.
        """
        views = self._views(text, times, zoom)
        rendered, visibility = render(pixels, velocities, views, times)
        rendered = show_uncovered(rendered, pixels, views).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        latents = self.autoencoder.encode(rendered.to(pixels.dtype))
        return latents, F.avg_pool2d(visibility.flatten(0, 1).to(pixels.dtype), self.autoencoder.config.factor)

    @torch.no_grad()
    def estimate(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The most probable velocity of each pixel relative to the camera, right and down in pixels per τ,
        (b, 2, H, W). pixels and text as in `forward`."""
        chosen = self.log_probabilities(pixels, text).argmax(dim=1).flatten(1)[:, None].expand(-1, 2, -1)
        velocities = self.named_velocities(text).transpose(1, 2)
        return velocities.gather(2, chosen).unflatten(2, pixels.shape[-2:])

    def log_probabilities(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The logarithm of the probability of each of the named velocities in each pixel, (b, 1 + colours, H, W); that
        of colours that do not move is (nearly) −∞."""
        speeds = self.named_velocities(text)[:, 1:].norm(dim=2)
        named = F.pad((speeds / MIN_VELOCITY).clamp(1e-20, 1), (1, 0), value=1.0)
        return torch.log_softmax(self.choice(pixels, text).float() + named.log()[..., None, None], dim=1)

    def named_velocities(self, text: Tensor) -> Tensor:
        """0, and the velocity of the thing of each colour in the text, (b, 1 + colours, 2)."""
        return F.pad(self.colour_velocities(text).float().unflatten(1, (-1, 2)), (0, 0, 1, 0))

    def log_likelihood(self, pixels: Tensor, text: Tensor, velocities: Tensor) -> Tensor:
        """The logarithm of the likelihood of the true velocities (b, 2, H, W), in pixels per τ, up to a constant, in
        each pixel, (b, H, W): each of the named velocities stands for those around it."""
        named = self.named_velocities(text)[..., None, None]
        exponents = -(velocities[:, None] - named).square().sum(2) / (2 * SAME_VELOCITY**2)
        return torch.logsumexp(self.log_probabilities(pixels, text) + exponents, dim=1)

    @torch.no_grad()
    def overscan(self, text: Tensor, times: Tensor, height: int, width: int) -> Tensor:
        """The least magnification (b,) at which frames of height × width pixels at these times (t,) show nothing
        outside the picture; 1 where they show nothing without it. text: (b, D), pooled.

        Raises MicroCinemaError where the camera leaves the picture, or nearly.
        """
        zoom = least_zoom(self._views(text, times, None), height, width)
        if not (zoom <= MAX_ZOOM).all():
            raise MicroCinemaError(
                f"the camera goes too far for overscan, which would enlarge the picture more than {MAX_ZOOM} times: "
                "give fewer frames, a slower move or a smaller motion"
            )
        return zoom

    def _views(self, text: Tensor, times: Tensor, zoom: Tensor | None) -> Tensor:
        """Where the camera takes the picture: affine maps (b, t, 2, 3) from the picture to the frame, both in pixels
        from the centre, for pooled texts, times and magnifications as in `forward`."""
        motion = F.pad(self.camera(text).float().unflatten(1, (2, 3)), (0, 0, 0, 1))
        views = torch.linalg.matrix_exp(times[..., None, None] * motion[:, None])[..., :2, :]
        return views if zoom is None else zoom.view(-1, 1, 1, 1) * views


def render(pixels: Tensor, velocities: Tensor, views: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Render frames: pixels (b, t, 3, H, W) and their visibility (b, t, 1, H, W), 0 to 1.

    pixels: (clips, 3, H, W), of b clips or a divisor of b.
    velocities: (b, 2, H, W), relative to the camera, in pixels per τ.
    views: affine maps (b, t, 2, 3) from the picture to the frame, both in pixels from the centre.
    times: (t,) or (b, t), τ.
    """
    velocities, moving, hidden = _dilate_moving(velocities)
    pixels = pixels.float().repeat(len(velocities) // len(pixels), 1, 1, 1)
    y, x = (torch.arange(n, device=pixels.device) - (n - 1) / 2 for n in pixels.shape[-2:])
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    moved = places + times[..., None, None, None] * velocities[:, None]
    moved = torch.einsum("btij,btjhw->btihw", views[..., :2], moved) + views[..., 2, None, None] - places[:, :1, :1]
    # Moving pixels cover others. The others fill the holes, at half the resolution.
    weights = 1 + (FRONT_WEIGHT - 1) * moving, 1 - (1 - HIDDEN_WEIGHT) * hidden
    front, back = (torch.cat([weight * pixels, weight], dim=1) for weight in weights)
    return compose(splat_clip(front, moved), splat_clip(downsample(back), (downsample(moved) - 0.5) / 2))


def _dilate_moving(velocities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dilate the moving regions of velocities (b, 2, H, W), as the autoencoder blurs things into what is around them.
    Also returns whether each pixel moves, and whether one beside it does, (b, 1, H, W), from 0 to 1."""
    speed = velocities.norm(dim=1, keepdim=True)
    speed, fastest = F.max_pool2d(speed, 3, stride=1, padding=1, return_indices=True)
    velocities = velocities.flatten(2).gather(2, fastest.flatten(2).expand(-1, 2, -1)).view_as(velocities)
    moving = (speed / MIN_VELOCITY).clamp(max=1)
    return velocities, moving, F.max_pool2d(moving, 3, stride=1, padding=1)


class VelocityChoice(nn.Module):
    """A U-Net that tells where in a picture the things of a text are: pixels and a pooled text to the logits of the
    velocities that the text names.

    It works from half the picture's resolution down to that of the latents, modulated by the text at every level.
    """

    def __init__(self, config: DemoNetworkConfig, *, operations: Any = nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        assert config.forward_warp is not None
        levels = int(math.log2(config.forward_warp.factor))
        widths = [WIDTHS[min(level, len(WIDTHS) - 1)] for level in range(levels)]

        def block(width):
            return ResBlock(width, config.context_dim, width, config.norm_groups, True, **parts)

        self.conv_in = operations.Conv2d(12, widths[0], 3, padding=1, **kw)
        self.block_in = block(widths[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width, wider in pairwise(widths):
            shrink = operations.Conv2d(width, wider, 3, stride=2, padding=1, **kw)
            enlarge = nn.Sequential(operations.Conv2d(wider, 4 * width, 1, **kw), nn.PixelShuffle(2))
            self.down.append(nn.ModuleList([shrink, block(wider)]))
            self.up.insert(0, nn.ModuleList([enlarge, block(width)]))
        heads = widths[-1] // HEAD_CHANNELS
        self.attention = SpatialTransformer(widths[-1], heads, config.norm_groups, **parts)
        self.block_mid = block(widths[-1])
        self.norm_out = operations.GroupNorm(config.norm_groups, widths[0], **kw)
        self.conv_out = operations.Conv2d(widths[0], 4 * (1 + len(COLOURS)), 3, padding=1, **kw)

    def forward(self, pixels: Tensor, text: Tensor) -> Tensor:
        """pixels (clips, 3, H, W), of b clips or a divisor of b, and pooled texts (b, D) to (b, 1 + colours, H, W)."""
        emb, skips = text.to(pixels.dtype), []
        h = self.conv_in(F.pixel_unshuffle(2 * pixels - 1, 2))
        h = self.block_in(torch.cat([h] * (len(text) // len(h))), emb)  # keeps channels_last, unlike `repeat`
        for shrink, block in (level.children() for level in self.down):
            skips.append(h)
            h = block(shrink(h), emb)
        h = self.block_mid(self.attention(h), emb)
        for enlarge, block in (level.children() for level in self.up):
            h = block(skips.pop() + enlarge(h), emb)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), 2)
