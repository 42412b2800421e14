"""Continues a picture beyond its edges: what a camera uncovers is the picture mirrored along its own lines.

Plain mirroring breaks every line that meets the edge at an angle. Here a point outside is mirrored along the line of
equal brightness that runs through it: straight lines go on straight, and textures keep their contrast. The directions
of the lines at an edge are those of the structure tensor (Bigün and Granlund, ICCV 1987). What is mirrored says much of
the texture, but little of larger things: these fade towards what the edge itself says, prolonged along the lines.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTH = 1 / 24  # of the strip that tells the lines' directions, relative to the picture's width
WINDOWS = {1 / 3: 1.0, 1.0: 0.3, 3.0: 0.1}  # Gaussian windows along the edge, in depths, and their weights
TOWARDS_NORMAL = 0.05  # how much the directions tend to the edge's normal where the tensor tells little
MAX_SLOPE = 3.0
SMOOTHNESS = 0.3  # of values along the edge: the standard deviation of a blur, relative to the distance from the edge
FINE = 3.0  # pixels: the standard deviation of the blur that leaves larger things only
FADING = 0.5  # of larger things
SHARPENING = 0.2  # of the rest, which two interpolations and the autoencoder soften


@torch.no_grad()
def show_uncovered(frames: Tensor, pixels: Tensor, views: Tensor) -> Tensor:
    """Replace what lies outside of the picture in frames (b, t, 3, H, W) by its continuation; frames without such parts
    remain as they are, to the bit.

    pixels: the pictures, (b, 3, H, W) or of a divisor of b.
    views: affine maps (b, t, 2, 3) from places in the picture to places in the frame, both in pixels from the centre.
    """
    height, width = frames.shape[-2:]
    sources = _sources(views, height, width)
    half = sources.new_tensor([width / 2, height / 2])
    outside = (sources.abs() > half).any(dim=-1)
    right, down = width // 2, height // 2  # whatever is uncovered: a step must not ask the device how much that is
    canvas = continue_picture(pixels.to(frames.dtype), right, down)
    grid = (sources / (half + half.new_tensor([right, down]))).flatten(0, 1)
    canvas = canvas.repeat(len(views) // len(canvas), 1, 1, 1).repeat_interleave(views.shape[1], dim=0)
    continued = F.grid_sample(canvas, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where(outside[:, :, None], continued.clamp(0, 1).unflatten(0, views.shape[:2]), frames)


def least_zoom(views: Tensor, height: int, width: int) -> Tensor:
    """The least magnification (b,) of `views`, as in show_uncovered, at which no frame shows anything outside of the
    picture or of its outermost pixels; 1 where nothing outside is shown anyway, infinity where none is enough."""
    inverse = torch.linalg.inv(views[..., :2])
    half = views.new_tensor([width / 2, height / 2])
    shift = (inverse @ views[..., 2:]).abs()[..., 0]  # of the frame's centre, from the picture's
    seen = inverse.abs() @ (half - 0.5)  # from the frame's centre to its outermost pixels
    zoom = seen / (half - 1.5 - shift).clamp(min=1e-20)
    covered = (shift + seen <= half).all(dim=-1).all(dim=-1)
    return torch.where(covered, 1.0, zoom.amax((1, 2)).clamp(min=1))


def _sources(views: Tensor, height: int, width: int) -> Tensor:
    """Where in the picture each pixel of frames comes from, (b, t, H, W, 2): x and y in pixels from the centre. `views`
    as in show_uncovered."""
    inverse = torch.linalg.inv(views[..., :2])
    y, x = (torch.arange(n, device=views.device) - (n - 1) / 2 for n in (height, width))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    return torch.einsum("btij,bthwj->bthwi", inverse, places - views[..., None, None, :, 2])


@torch.no_grad()
def continue_picture(pixels: Tensor, right: int, down: int) -> Tensor:
    """Pictures (n, 3, H, W) in [0, 1] to (n, 3, H + 2·down, W + 2·right), with the pictures in the middle."""
    for margin in (right, down):
        sides = [_beyond_right(picture, margin) for picture in (pixels.flip(-1), pixels)] if margin else []
        pixels = torch.cat([sides[0].flip(-1), pixels, sides[1]], dim=-1) if margin else pixels
        pixels = pixels.transpose(-1, -2)
    return pixels


def _beyond_right(pixels: Tensor, margin: int) -> Tensor:
    """The continuation (n, 3, H, margin) of pictures (n, 3, H, W) beyond their right edge."""
    height, width = pixels.shape[-2:]
    distance = torch.arange(margin, device=pixels.device)[:, None] + 0.5
    origins, slopes = _trace(_slopes(pixels), margin)
    rows = torch.arange(height, device=pixels.device)
    origins = rows + _smooth(origins - rows, SMOOTHNESS * distance)
    rows = origins - _smooth(slopes, SMOOTHNESS * distance) * distance
    columns = (width - 0.5 - distance).expand_as(rows)
    grid = torch.stack([(2 * _fold(columns, width) + 1) / width - 1, (2 * _fold(rows, height) + 1) / height - 1], -1)
    mirrored = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    edge = _smooth(pixels[..., None, :, -1], SMOOTHNESS * distance)  # (n, 3, margin, H), blurred as far as it is away
    prolonged = _between(edge, _fold(origins, height)[:, None].expand_as(edge))
    detail, coarse = mirrored - _blur(mirrored), _blur(mirrored - prolonged)
    return (mirrored + SHARPENING * detail - FADING * coarse).clamp(0, 1).transpose(-1, -2)


def _slopes(pixels: Tensor) -> Tensor:
    """The slopes (n, H), rows per column, of the lines of equal brightness at the right edge of pictures (n, 3, H, W).

    The slope m minimises Σ(g_x + m·g_y)², with gradients g, over a window.
    """
    depth = max(4, round(DEPTH * pixels.shape[-1]))
    strip = F.pad(pixels[..., -depth - 2 :], (0, 0, 1, 1), mode="replicate")
    strip = F.avg_pool2d(F.pad(strip, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    across = (strip[..., 1:-1, 2:] - strip[..., 1:-1, :-2]) / 2
    along = (strip[..., 2:, 1:-1] - strip[..., :-2, 1:-1]) / 2
    weights = torch.exp((torch.arange(across.shape[-1], device=pixels.device) - depth) / (depth / 2))
    products = torch.stack([across * along, along**2, across**2])
    products = (products * weights).sum((2, 4))  # (3, n, H)
    windows = [weight * _smooth(products, products.new_tensor(size * depth)) for size, weight in WINDOWS.items()]
    mixed, along, across = torch.stack(windows).sum(0)
    return (-mixed / (along + TOWARDS_NORMAL * (along + across) + 1e-6)).clamp(-MAX_SLOPE, MAX_SLOPE)


def _trace(slopes: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Where the line through each point outside meets the edge, and its slope there: both (n, margin, H), for points at
    distances of 0.5, 1.5, … from the edge, from the lines' slopes (n, H)."""
    height = slopes.shape[-1]
    rows = torch.arange(height, device=slopes.device, dtype=slopes.dtype)
    origin, traced = rows.expand_as(slopes), []
    for column in range(margin):  # a point's line is that of a point one column nearer to the edge
        place = rows - slopes * (1.0 if column else 0.5)
        origin, slopes = _between(origin, place) + place - place.clamp(0, height - 1), _between(slopes, place)
        traced.append((origin, slopes))
    origins, traced_slopes = (torch.stack(values, dim=1) for values in zip(*traced, strict=True))
    return origins, traced_slopes


def _between(values: Tensor, places: Tensor) -> Tensor:
    """Interpolate values (…, H) along H, linearly, at places (…, H) in pixels, of which those outside are moved in."""
    places = places.clamp(0, values.shape[-1] - 1)
    low = places.long().clamp(max=values.shape[-1] - 2)
    return torch.lerp(values.gather(-1, low), values.gather(-1, low + 1), places - low)


def _blur(maps: Tensor) -> Tensor:
    """Blur maps (…, H, W) by a Gaussian of FINE pixels in both directions."""
    sigma = maps.new_tensor(FINE)
    return _smooth(_smooth(maps, sigma).transpose(-1, -2), sigma).transpose(-1, -2)


def _smooth(values: Tensor, sigma: Tensor) -> Tensor:
    """Blur values (…, H) along H by a Gaussian of standard deviation `sigma`, broadcast to (…, 1), in pixels. The
    values are mirrored at both ends."""
    count = values.shape[-1]
    spectrum = torch.fft.rfft(torch.cat([values, values.flip(-1)], dim=-1))
    frequency = torch.arange(spectrum.shape[-1], device=values.device) * (math.pi / count)
    return torch.fft.irfft(spectrum * torch.exp(-((sigma * frequency) ** 2) / 2), n=2 * count)[..., :count]


def _fold(places: Tensor, size: int) -> Tensor:
    """Mirror pixel coordinates into [−0.5, size − 0.5], as often as it takes."""
    folded = (places + 0.5) % (2 * size)
    return torch.minimum(folded, 2 * size - folded) - 0.5
