"""Clips that are drawn by a program, with captions and the exact optical flow.

There are three kinds: one thing that moves over a static textured background, two things, and a camera that moves over
a textured picture. A clip is a function of one integer, its seed. Frame t//2 is the centre frame, the condition of the
base model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from .captions import CAMERA_VERBS, COLOURS, DIGITS, DIRECTIONS, SHAPES, SPEEDS, camera_caption, thing_caption

DRAWING = 1  # the version of the drawing, to be raised with every change of it; it is part of the names of shards
REFERENCE_SIZE = 96  # the size of a picture, in pixels, to which the speeds in pixels refer
SPEED_PIXELS = {"slowly": 1.5, "": 3.0, "quickly": 5.0}  # of things, pan and tilt: pixels per frame
SPEED_ZOOM = {"slowly": 1.02, "": 1.04, "quickly": 1.07}  # of zoom: magnification per frame
SPEED_ROLL = {"slowly": 1.5, "": 3.0, "quickly": 5.0}  # of roll: degrees per frame
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


@dataclass
class Clip:
    """A drawn clip and the data from which it was drawn."""

    frames: torch.Tensor  # (t, 3, h, w) in [0, 1]
    caption: str
    flow: torch.Tensor  # (t, 2, h, w), the motion to the next frame: pixels right and down
    kind: str  # "thing", "things" or "camera"
    motion: str
    speed: str
    background: torch.Tensor | None = None  # (3, h, w), the scene without its things; None for camera moves
    masks: torch.Tensor | None = None  # (t, h, w), boolean: the first thing of the caption; None for camera moves
    other_masks: torch.Tensor | None = None  # the same of the second thing, if there are two
    colour: torch.Tensor | None = None  # (3,), of the first thing of the caption


def draw_clip(
    seed: int, *, frames: int = 9, size: int = REFERENCE_SIZE, kind: str | None = None, rate: float = 1.0
) -> Clip:
    """Draw the clip of `seed`, with frames of size × size pixels.

    Unless `kind` is given, it is a camera move with a probability of 45 %, one thing with 40 %, two things with 15 %.
    `rate` is the time between two frames, in frames of the base model: 1/4 for the frames that one pass of temporal
    interpolation inserts.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.choice(["camera", "thing", "things"], p=[0.45, 0.4, 0.15])
    kind = kind or str(drawn)
    offsets = ((torch.arange(frames) - frames // 2) * rate).tolist()
    clip = _draw_camera(rng, offsets, size) if kind == "camera" else _draw_things(rng, offsets, size, kind)
    clip.flow *= rate
    return clip


def camera_transforms(motion: str, speed: str, offsets: Sequence[float], size: int) -> torch.Tensor:
    """The part of a picture that each frame shows: affine maps (t, 2, 3) from pixels of the frame to pixels of the
    picture, both from the centre.

    `offsets` are the times of the frames from the centre frame, in frames of the base model.
    """
    maps = torch.zeros(len(offsets), 2, 3)
    for i, offset in enumerate(offsets):
        scale, angle, dx, dy = 1.0, 0.0, 0.0, 0.0
        if motion in ("in", "out"):
            scale = SPEED_ZOOM[speed] ** (-offset if motion == "in" else offset)
        elif motion in ("clockwise", "counterclockwise"):
            angle = math.radians(SPEED_ROLL[speed] * offset) * (1 if motion == "clockwise" else -1)
        else:
            dx, dy = (step * SPEED_PIXELS[speed] * offset * size / REFERENCE_SIZE for step in STEPS[motion])
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        maps[i] = torch.tensor([[cos, -sin, dx], [sin, cos, dy]])
    return maps


def camera_move(
    picture: torch.Tensor, motion: str, speed: str, *, frames: int = 9, canvas: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a camera over `picture` (3, h, w), or over a larger `canvas` (3, H, W) with the picture in its middle.

    Returns the clip (t, 3, h, w), whose centre frame is the picture, and a boolean mask (t, h, w) of the pixels that
    lie within the picture. The picture turns counterclockwise when the camera rolls clockwise.
    """
    height, width = picture.shape[-2:]
    offsets = list(range(-(frames // 2), frames - frames // 2))
    maps = camera_transforms(motion, speed, offsets, min(height, width))
    clip, inside = _resample(picture, maps, height, width)
    if canvas is not None:
        clip, _ = _resample(canvas, maps, height, width)
    clip[frames // 2] = picture
    return clip, inside


def _resample(canvas: torch.Tensor, maps: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (t, 3, height, width) of a canvas (3, h, w), and a boolean mask of the pixels that lie within it. `maps`
    as camera_transforms returns them."""
    source = torch.einsum("tij,hwj->thwi", maps, _centred(height, width))
    grid = source / torch.tensor([canvas.shape[-1] / 2, canvas.shape[-2] / 2])
    clip = F.grid_sample(
        canvas.expand(len(maps), -1, -1, -1), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    inside = grid.abs().amax(-1) <= 1 - 2 / min(canvas.shape[-2:])
    return clip.clamp_(0, 1), inside


def _centred(height: int, width: int) -> torch.Tensor:
    """Homogeneous coordinates (x, y, 1) of every pixel from the picture's centre, (h, w, 3)."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return torch.stack((x, y, torch.ones_like(x)), -1).float()


def _draw_camera(rng: np.random.Generator, offsets: list[float], size: int) -> Clip:
    motion = str(rng.choice([*CAMERA_VERBS, "still"], p=[0.11] * 4 + [0.14] * 2 + [0.12] * 2 + [0.04]))
    speed = str(rng.choice(SPEEDS))
    canvas = draw_picture(rng, 2 * size, things=int(rng.integers(0, 7)))
    clip, _ = _resample(canvas, camera_transforms(motion, speed, offsets, size), size, size)
    before, after = camera_transforms(motion, speed, [-0.01, 0.01], size)
    flow = torch.einsum("ij,hwj->ihw", (before - after) / 0.02, _centred(size, size))
    flow = flow.repeat(len(offsets), 1, 1, 1)
    return Clip(clip, camera_caption(motion, speed, _style(rng)), flow, "camera", motion, speed)


def _draw_things(rng: np.random.Generator, offsets: list[float], size: int, kind: str) -> Clip:
    background = draw_picture(rng, size)
    scale = size / REFERENCE_SIZE
    times = torch.tensor(offsets)[:, None]
    placed, layers, clauses, motions = [], [], [], []
    for index in range(1 if kind == "thing" else 2):
        moves = index == 0 or rng.random() < 0.6
        motion = str(rng.choice([*DIRECTIONS, "still"], p=[0.235] * 4 + [0.06])) if moves else "still"
        speed = str(rng.choice(SPEEDS))
        radius = rng.uniform(10, 18 if kind == "thing" else 14) * scale
        reach = np.abs(STEPS[motion]) * SPEED_PIXELS[speed] * scale * max(map(abs, offsets))
        low = np.minimum(radius + reach + 1, size / 2)
        centre = _free_centre(rng, low, size - low, radius, placed)
        placed.append((centre, radius))
        step = torch.tensor(STEPS[motion]) * SPEED_PIXELS[speed] * scale
        path = torch.tensor(centre, dtype=torch.float32) + times * step
        name = str(rng.choice(SHAPES + DIGITS))
        colour_name, colour = _contrasting_colour(rng, background, used={w for c in clauses for w in c.split()})
        paint = torch.tensor(colour, dtype=torch.float32)
        layers.append((*_draw_thing(rng, name, colour, path, radius, size), paint, step.float()))
        if index == 0 or moves:
            clauses.append(thing_caption(colour_name, name, motion, speed, _style(rng)))
        motions.append((motion, speed))
    clip = background.expand(len(offsets), -1, -1, -1)
    flow = torch.zeros(len(offsets), 2, size, size)
    for alpha, paint, _, step in reversed(layers):  # the first thing of the caption is in front
        clip = clip + alpha[:, None] * (paint - clip)
        flow = torch.where(alpha[:, None] > 0.5, step[:, None, None], flow)
    return Clip(
        clip.clamp(0, 1), " and ".join(clauses), flow, kind, *motions[0], background=background,
        masks=layers[0][0] > 0.5, other_masks=layers[1][0] > 0.5 if len(layers) > 1 else None, colour=layers[0][2],
    )  # fmt: skip


def _free_centre(
    rng: np.random.Generator,
    low: np.ndarray,
    high: np.ndarray,
    radius: float,
    placed: list[tuple[np.ndarray, float]],
) -> np.ndarray:
    """A random centre (x, y) between `low` and `high` for a thing of this radius. Of up to 20 draws it is the first one
    at a distance from the things that are `placed`, with their centres and radii, or the last one."""
    centre = rng.uniform(low, high)
    for _ in range(19):
        if all(np.hypot(*(centre - c)) > 1.2 * (radius + r) for c, r in placed):
            break
        centre = rng.uniform(low, high)
    return centre


def _style(rng: np.random.Generator) -> int:
    """A random style of a caption, mostly the basic one."""
    return int(rng.choice(6, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))


def _contrasting_colour(rng: np.random.Generator, background: torch.Tensor, used: set[str]) -> tuple[str, np.ndarray]:
    """The name and the RGB values of a random colour not in `used` that differs from the background's mean colour."""
    mean = background.mean((1, 2)).numpy()
    names = [n for n in COLOURS if np.linalg.norm(mean - COLOURS[n]) > 0.45 and n not in used]
    name = str(rng.choice(names))
    return name, np.clip(np.array(COLOURS[name]) + rng.normal(0, 0.025, 3), 0, 1)


# --- things, as signed distances in units of the radius, negative inside ---


def _polygon(x: torch.Tensor, y: torch.Tensor, corners: np.ndarray) -> torch.Tensor:
    """The signed distance of points to a closed polygon with these corners (n, 2)."""
    distance, sign = torch.full_like(x, 9.0), torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, 0), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, torch.hypot(wx - ex * along, wy - ey * along))
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        crossing = (above & below & left) | (~above & ~below & ~left)
        sign = torch.where(crossing, -sign, sign)
    return sign * distance


def _regular(n: int, inner: float = 1.0) -> np.ndarray:
    """The corners of a regular polygon or, with `inner` < 1, of a star with n points and that inner radius."""
    count = n if inner == 1.0 else 2 * n
    radii = np.where(np.arange(count) % 2, inner, 1.0)
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), 1)


_ARM = 0.36
_CROSS = np.array(
    [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM), (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM),
     (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]
)  # fmt: skip
_TURN = np.linspace(0, 2 * np.pi, 36, endpoint=False)
_HEART = np.stack(
    (
        np.sin(_TURN) ** 3,
        -(13 * np.cos(_TURN) - 5 * np.cos(2 * _TURN) - 2 * np.cos(3 * _TURN) - np.cos(4 * _TURN)) / 16,
    ),
    1,
)
_POLYGONS = {
    "square": np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]), "triangle": _regular(3),
    "star": _regular(5, 0.42), "cross": _CROSS, "diamond": np.array([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]),
    "heart": _HEART,
}  # fmt: skip


def _distance(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The signed distance of points to the outline of a thing of this name, except for digits."""
    if name in ("disc", "ball"):
        return torch.hypot(x, y) - 0.92
    if name == "ring":
        return (torch.hypot(x, y) - 0.7).abs() - 0.25
    if name == "egg":
        return torch.hypot(x / (0.68 - 0.12 * y), y) * 0.75 - 0.75
    return _polygon(x, y, _POLYGONS[name])


@lru_cache(maxsize=len(DIGITS))
def _glyph(digit: int) -> torch.Tensor:
    """The coverage (1, 1, 64, 64) of a digit."""
    image = Image.new("L", (64, 64))
    font = ImageFont.load_default(size=78)
    ImageDraw.Draw(image).text((32, 32), str(digit), 255, font, anchor="mm", stroke_width=2)
    return torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None]


def _draw_thing(
    rng: np.random.Generator, name: str, colour: np.ndarray, path: torch.Tensor, radius: float, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The coverage (t, h, w) and the colours (t, 3, h, w) of a thing whose centre follows `path` (t, 2) in pixels."""
    line = torch.arange(size) + 0.5
    x = (line[None, None, :] - path[:, 0, None, None]) / radius
    y = (line[None, :, None] - path[:, 1, None, None]) / radius
    x, y = torch.broadcast_tensors(x, y)
    tilt = rng.uniform(-0.3, 0.3)
    x, y = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)
    if name in DIGITS:
        grid = torch.stack((x, y), -1)
        glyph = _glyph(DIGITS.index(name))
        if radius < 24:  # smaller than the glyph: halved first against aliasing
            glyph = F.avg_pool2d(glyph, 2)
        alpha = F.grid_sample(glyph.expand(len(path), -1, -1, -1), grid, align_corners=False)[:, 0]
    else:
        alpha = (0.5 - _distance(name, x, y) * radius).clamp(0, 1)
    base = torch.tensor(colour, dtype=torch.float32)[:, None, None]
    if name in ("ball", "egg"):  # a sphere with light from one side
        height = (1 - (x**2 + y**2).clamp(max=1)).sqrt()
        light = 0.45 + 0.65 * (0.6 * height - 0.45 * x - 0.6 * y).clamp(0, 1.2)
        gloss = (1 - ((x + 0.32) ** 2 + (y + 0.38) ** 2) / 0.05).clamp(0, 1) * 0.6
        paint = base * light[:, None] + gloss[:, None]
    else:  # flat, or shaded from one side to the other
        slope, angle = rng.choice([0.0, 0.25]), rng.uniform(0, 2 * math.pi)
        paint = base * (1 + slope * (x * math.cos(angle) + y * math.sin(angle)))[:, None]
    return alpha, paint.clamp(0, 1)


# --- pictures and textures ---


def draw_picture(rng: np.random.Generator, size: int, things: int = 0) -> torch.Tensor:
    """A random picture (3, size, size): one texture, or two with an edge between them, uneven light, and `things` small
    things."""
    picture = _texture(rng, size)
    if rng.random() < 0.35:
        a, b = rng.normal(size=2)
        line = torch.linspace(-1, 1, size)
        ramp = (a * line[None, :] + b * line[:, None]) / math.hypot(a, b) + rng.uniform(-0.4, 0.4)
        ramp = ramp + 0.15 * _octaves(rng, size, 1, 2.0)[0]
        edge = torch.sigmoid(ramp * rng.choice([8.0, size / 2]))
        picture = picture + edge * (_texture(rng, size) - picture)
    for _ in range(things):
        name = str(rng.choice(SHAPES + DIGITS))
        path = torch.tensor(rng.uniform(0, size, (1, 2)), dtype=torch.float32)
        colour = np.array(list(COLOURS.values()))[rng.integers(len(COLOURS))]
        alpha, paint = _draw_thing(rng, name, colour, path, rng.uniform(0.05, 0.12) * size, size)
        picture = picture + alpha * (paint[0] - picture)
    light = 1 + rng.uniform(0, 0.35) * _octaves(rng, size, 1, 2.5, cells=2)
    return (picture * light).clamp(0, 1)


def _texture(rng: np.random.Generator, size: int) -> torch.Tensor:
    """A random texture (3, size, size)."""
    kind = rng.choice(["gradient", "noise", "leaves", "stripes"], p=[0.15, 0.25, 0.45, 0.15])
    if kind == "leaves":
        return _dead_leaves(rng, size)
    first, second = (torch.tensor(c, dtype=torch.float32)[:, None, None] for c in _palette(rng, 2))
    line = torch.linspace(-1, 1, size)
    angle = rng.uniform(0, math.pi)
    ramp = math.cos(angle) * line[None, :] + math.sin(angle) * line[:, None]
    if kind == "gradient":
        blend = (ramp / 2 + 0.5) if rng.random() < 0.6 else torch.hypot(line[None, :], line[:, None]) / 1.42
        grain = rng.choice([0.0, 0.015]) * _octaves(rng, size, 3, 1.5)
    elif kind == "stripes":
        wave = torch.sin(ramp * rng.uniform(4, 28) + rng.uniform(0, 6))
        if rng.random() < 0.3:  # a chequered pattern
            across = math.sin(angle) * line[None, :] - math.cos(angle) * line[:, None]
            wave = wave * torch.sin(across * rng.uniform(4, 28))
        blend = torch.sigmoid(wave * rng.choice([1.5, 12.0]))
        grain = 0.02 * _octaves(rng, size, 3, 1.5)
    else:
        blend = torch.sigmoid(rng.uniform(1, 3) * _octaves(rng, size, 1, rng.uniform(1.6, 2.6))[0])
        grain = rng.uniform(0, 0.08) * _octaves(rng, size, 3, rng.uniform(1.4, 2.4))
    return (first + blend * (second - first) + grain).clamp(0, 1)


def _octaves(rng: np.random.Generator, size: int, channels: int, slope: float, cells: int = 3) -> torch.Tensor:
    """Noise (channels, size, size) of about unit variance, whose power falls with frequency."""
    total, weight, norm = torch.zeros(channels, size, size), 1.0, 0.0
    while cells < size:
        noise = torch.from_numpy(rng.standard_normal((1, channels, cells, cells), dtype=np.float32))
        total += weight * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)[0]
        norm += weight**2
        weight, cells = weight * 2 ** (-slope / 2), cells * 2
    return total * (1.5 / math.sqrt(norm))


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random colours (count, 3) as in photographs: of any brightness, mostly of low saturation."""
    brightness = rng.uniform(0.1, 0.9, (count, 1))
    hue = rng.normal(size=(count, 3))
    hue -= hue.mean(1, keepdims=True)
    hue /= np.abs(hue).max(1, keepdims=True)
    return np.clip(brightness + hue * rng.beta(1.2, 3.5, (count, 1)) * 0.6, 0, 1)


def _dead_leaves(rng: np.random.Generator, size: int) -> torch.Tensor:
    """The dead leaves model (Lee, Mumford and Huang 2001): opaque polygons of power-law sizes that cover one another,
    with the occlusion statistics of photographs, (3, size, size)."""
    over = 2  # drawn at twice the size, against aliasing
    image = Image.new("RGB", (size * over, size * over))
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(30, 100))
    colours = _palette(rng, 12)
    radii = np.sort(0.03 / rng.uniform(0.05, 0.5, count) ** 0.8)[::-1] * size * over * rng.uniform(0.6, 1.6)
    centres = rng.uniform(-0.1, 1.1, (count, 2)) * size * over
    draw.rectangle((0, 0, size * over, size * over), tuple(int(255 * c) for c in colours[0]))
    for radius, (cx, cy) in zip(radii, centres, strict=True):
        fill = np.clip(colours[rng.integers(12)] + rng.normal(0, 0.04, 3), 0, 1)
        fill = tuple(int(255 * c) for c in fill)
        stretch, turn = rng.uniform(0.4, 1), rng.uniform(0, np.pi)
        corners = int(rng.choice([3, 4, 5, 24]))
        angles = np.arange(corners) * 2 * np.pi / corners
        px, py = np.cos(angles) * radius, np.sin(angles) * radius * stretch
        points = np.stack((cx + px * np.cos(turn) - py * np.sin(turn), cy + px * np.sin(turn) + py * np.cos(turn)), 1)
        draw.polygon([tuple(p) for p in points], fill)
    leaves = torch.from_numpy(np.asarray(image.reduce(over), np.float32) / 255).permute(2, 0, 1)
    grain = rng.uniform(0, 0.06) * _octaves(rng, size, 3, rng.uniform(1.4, 2.2))
    return (leaves + grain).clamp(0, 1)
