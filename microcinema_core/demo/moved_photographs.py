"""Draws scenes of moved photographs for the training of the interpolation model.

A scene is a stack of 1 to 9 layers, each with a texture cut from a photograph, a mask and a motion: the camera's plus
its own, from sub-pixel to tens of pixels, with rotation, zoom, shear and local waves. Every point of a layer moves on a
straight line at constant speed, so that its velocity is the flow at every time. Focus, motion blur, shadows and changes
of the light belong to the scene; noise and compression are film.py's.

The pictures come from folders that the user names, or from those of Debian's packages:

    apt install gnome-backgrounds mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers \
        plasma-workspace-wallpapers tuxpaint-stamps-default

Their licences: CC-BY-SA-3.0 (gnome, ukui), GPL-2+ (mate, plasma), GPL-2 (tuxpaint); CC0, CC-BY-4.0, CC-BY-SA-3.0 and
CC-BY-SA-4.0 (lomiri).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from ..errors import MicroCinemaError

FOLDERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"), Path("/usr/share/tuxpaint/stamps"))
PACKAGES = (
    "gnome-backgrounds mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers "
    "plasma-workspace-wallpapers tuxpaint-stamps-default"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CANVAS = 320  # side of a layer's texture in pixels, around the origin of its coordinates
MIN_SIDE = 600  # of a photograph
CUT_OUT_SIDES = (180, 1200)  # shorter side of a picture with transparency that is used as a thing cut out
MAX_SIDE = 2048  # to which a photograph is reduced in memory
MIN_TEXTURE = 0.03  # mean difference of neighbouring pixels; less textured cuts are seldom used
DRAWING = 4  # changes with every change of what is drawn
MAX_SPEED = 60.0  # pixels between the end frames
HELD_OUT = 8  # one picture in so many is kept for validation


class Photographs:
    """The photographs and the things cut out in folders: those for training, those held out, or all (None)."""

    def __init__(self, folders: Sequence[Path], *, held_out: bool | None = False, min_side: int = MIN_SIDE):
        """Raises MicroCinemaError where the folders have fewer than two photographs."""
        files = sorted(
            (path.relative_to(folder).as_posix(), path)
            for folder in folders
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
        )
        files = [file for file in _largest(files) if held_out in (None, _is_held_out(file[0]))]
        self.photographs, self.cut_outs = [], []
        for name, path in files:
            with Image.open(path) as picture:
                side, transparent = min(picture.size), "A" in picture.getbands() or "transparency" in picture.info
            if transparent and CUT_OUT_SIDES[0] <= side < CUT_OUT_SIDES[1]:
                self.cut_outs.append((name, path))
            elif side >= min_side:
                self.photographs.append((name, path))
        if len(self.photographs) < 2:
            where = ", ".join(str(folder) for folder in folders)
            raise MicroCinemaError(
                f"there are too few photographs of {min_side} pixels or more in {where}: name a folder with "
                f"photographs, or install some with 'apt install {PACKAGES}'"
            )

    @property
    def identity(self) -> str:
        """A hash of the pictures' names."""
        names = [name for name, _ in self.photographs + self.cut_outs]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]

    def texture(self, generator: Generator, scale: float | None = None) -> Tensor:
        """A cut of a photograph, (3, CANVAS, CANVAS), reduced by a random factor or by `scale`."""
        cut = torch.zeros(3, CANVAS, CANVAS)
        for _ in range(4):
            pyramid = _photograph(choice(generator, self.photographs)[1])
            most = min(pyramid[0].size) / CANVAS
            factor = min(scale or most ** (uniform(generator) ** 0.7), most)
            level = min(int(math.log2(max(factor, 1))), len(pyramid) - 1)
            picture, side = pyramid[level], CANVAS * factor / 2**level
            left, top = (uniform(generator, 0, length - side) for length in picture.size)
            box = (left, top, left + side, top + side)
            cut = to_tensor(picture.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC, box))
            if (cut[..., 1:] - cut[..., :-1]).abs().mean() > MIN_TEXTURE or uniform(generator) < 0.3:
                break
        cut = torch.rot90(cut, int(uniform(generator, 0, 4)), (1, 2)) if uniform(generator) < 0.3 else cut
        return cut.flip(2) if uniform(generator) < 0.5 else cut

    def cut_out(self, generator: Generator, size: float) -> Tensor:
        """A thing with its own mask, (4, CANVAS, CANVAS), whose longer side is `size` pixels."""
        picture = _cut_out(choice(generator, self.cut_outs)[1])
        width, height = (max(4, round(side * size / max(picture.size))) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        canvas = Image.new("RGBA", (CANVAS, CANVAS))
        canvas.paste(picture, ((CANVAS - width) // 2, (CANVAS - height) // 2))
        thing = to_tensor(canvas)
        return thing.flip(2) if uniform(generator) < 0.5 else thing


def _largest(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Of files of one folder that are named by their size, such as 1920x1080.jpg, only the largest."""
    sizes: dict[str, tuple[int, tuple[str, Path]]] = {}
    for name, path in files:
        size = re.fullmatch(r"(\d+)x(\d+)", path.stem)
        area = int(size[1]) * int(size[2]) if size else 0
        key = str(Path(name).parent) if size else name
        if key not in sizes or area > sizes[key][0]:
            sizes[key] = area, (name, path)
    return [file for _, file in sizes.values()]


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0


@lru_cache(150)
def _photograph(path: Path) -> list[Image.Image]:
    """A photograph and its reductions by powers of two."""
    with Image.open(path) as picture:
        picture.draft("RGB", (MAX_SIDE, MAX_SIDE))
        picture = picture.convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    pyramid = [picture]
    while min(pyramid[-1].size) >= 2 * CANVAS:
        pyramid.append(pyramid[-1].reduce(2))
    return pyramid


@lru_cache(500)
def _cut_out(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    picture.thumbnail((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    return picture


# --- random numbers ---


def uniform(generator: Generator, low: float = 0.0, high: float = 1.0) -> float:
    """A random number between two others."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def normal(generator: Generator, std: float = 1.0) -> float:
    """A random number of a normal distribution."""
    return std * torch.randn((), generator=generator, dtype=torch.float64).item()


def choice(generator: Generator, values: Sequence):
    """One of the values."""
    return values[int(uniform(generator, 0, len(values)))]


def _velocity(generator: Generator, still: float, fast: float, median: float) -> Tensor:
    """A velocity (2,) in pixels between the end frames: 0 with the probability `still`, from 8 to 45 with `fast`,
    otherwise log-normal."""
    kind, angle = uniform(generator), uniform(generator, 0, 2 * math.pi)
    speed = median * math.exp(normal(generator))
    if kind < still:
        speed = 0.0
    elif kind < still + fast:
        speed = uniform(generator, 8, 45)
    vertical = choice(generator, (0.3, 1.0))  # most things and cameras move sideways
    return min(speed, MAX_SPEED) * torch.tensor([math.cos(angle), vertical * math.sin(angle)])


# --- layers ---


@dataclass
class Layer:
    """A texture with its motion.

    values: (5, CANVAS, CANVAS): colours times mask, mask, shadow.
    ends: (2, 2, 3): the affine maps of the layer's coordinates to the pixels of the first and of the last frame.
    waves: (n, 5): the wave vector, phase and displacement of local waves, in pixels of the layer.
    shadow: the strength of its shadow.
    """

    values: Tensor
    ends: Tensor
    waves: Tensor
    shadow: float = 0.0

    def displacement(self, places: Tensor) -> Tensor:
        """The waves' displacement (…, 2) between the end frames, at places (…, 2) of the layer."""
        phases = places @ self.waves[:, :2].mT + self.waves[:, 2]
        return phases.sin() @ self.waves[:, 3:]

    def places(self, pixels: Tensor, time: float) -> Tensor:
        """The places (…, 2) of the layer that are at pixels (…, 2) at a time from 0 to 1."""
        matrix = torch.lerp(self.ends[0], self.ends[1], time)
        moved = (pixels - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).mT
        places = moved
        for _ in range(4 if len(self.waves) else 0):  # the waves are flat enough for a fixed-point iteration
            places = moved - (time - 0.5) * self.displacement(places)
        return places

    def velocity(self, places: Tensor, time: float) -> Tensor:
        """The velocity (…, 2) of places of the layer, in pixels between the end frames."""
        matrix, change = torch.lerp(self.ends[0], self.ends[1], time), self.ends[1] - self.ends[0]
        waves = self.displacement(places)
        moved = places + (time - 0.5) * waves
        return moved @ change[:, :2].mT + change[:, 2] + waves @ matrix[:, :2].mT


def _affine(zoom: float, angle: float, shear: float, shift: Tensor) -> Tensor:
    """The 3×3 matrix of a zoom by e^zoom, a shear, a rotation and a shift (2,)."""
    cos, sin = math.exp(zoom) * math.cos(angle), math.exp(zoom) * math.sin(angle)
    linear = torch.tensor([[cos, -sin], [sin, cos]]) @ torch.tensor([[1.0, shear], [0.0, 1.0]])
    return F.pad(torch.cat([linear, shift[:, None]], 1), (0, 0, 0, 1)) + torch.tensor([[0.0] * 3] * 2 + [[0.0, 0.0, 1]])


def _motion(generator: Generator, velocity: Tensor, calm: float) -> Tensor:
    """The affine maps (2, 3, 3) at the end frames of a motion with this velocity, and with the probability 1 − `calm`
    also rotation, zoom and shear."""
    zoom = angle = shear = 0.0
    if uniform(generator) > calm:
        zoom, angle, shear = normal(generator, 0.05), normal(generator, 0.05), normal(generator, 0.03)
    return torch.stack([_affine(s * zoom, s * angle, s * shear, s * velocity) for s in (-0.5, 0.5)])


def _waves(generator: Generator) -> Tensor:
    count = int(uniform(generator, 1, 4))
    rows = []
    for _ in range(count):
        length, angle = uniform(generator, 40, 200), uniform(generator, 0, 2 * math.pi)
        size = uniform(generator, 0, length / 30)
        wave = [2 * math.pi / length * math.cos(angle), 2 * math.pi / length * math.sin(angle)]
        rows.append([*wave, uniform(generator, 0, 6.3), normal(generator, size), normal(generator, size)])
    return torch.tensor(rows)


def _mask(generator: Generator, size: float) -> Tensor:
    """A random mask (CANVAS, CANVAS) of about `size` pixels: blobs, polygons, lines, islands or text."""
    scale, middle = 2, CANVAS  # drawn at twice the size
    kind = choice(generator, ("blob", "blob", "polygon", "lines", "islands", "box"))
    picture = Image.new("L", (scale * CANVAS, scale * CANVAS))
    draw = ImageDraw.Draw(picture)
    if kind in ("blob", "polygon", "box"):
        corners = {"blob": 60, "polygon": int(uniform(generator, 3, 9)), "box": 4}[kind]
        phases = [uniform(generator, 0, 2 * math.pi) for _ in range(4)]
        aspect, points = math.exp(normal(generator, 0.4)), []
        for i in range(corners):
            angle = 2 * math.pi * (i + (0.5 if kind == "box" else 0)) / corners
            radius = size * (1 + sum(0.35 / n * math.sin(n * angle + phases[n - 1]) for n in (2, 3, 4)))
            if kind == "polygon":
                radius = size * uniform(generator, 0.5, 1.3)
            radius = size * 1.2 if kind == "box" else radius
            points.append((middle + radius * math.cos(angle) * aspect, middle + radius * math.sin(angle) / aspect))
        draw.polygon(points, fill=255)
    elif kind == "lines":
        for _ in range(int(uniform(generator, 1, 7))):
            ends = [middle + size * uniform(generator, -1.3, 1.3) for _ in range(4)]
            draw.line(ends, fill=255, width=int(math.exp(uniform(generator, math.log(2), math.log(min(14, 2 * size))))))
    else:
        noise = torch.randn(1, 1, *[int(uniform(generator, 6, 40))] * 2, generator=generator)
        islands = F.interpolate(noise, size=CANVAS, mode="bicubic")[0, 0] > uniform(generator, 0.1, 1)
        y, x = torch.meshgrid(*[torch.arange(CANVAS) - CANVAS / 2] * 2, indexing="ij")
        return (islands & ((x.square() + y.square()) < size**2)).float()
    return to_tensor(picture.resize((CANVAS, CANVAS), Image.Resampling.BOX))[0]


def _thing(photographs: Photographs, generator: Generator, camera: Tensor, side: int) -> Layer:
    """A layer in front of the background, which moves with the camera, (2, 3, 3), and by itself."""
    size = math.exp(uniform(generator, math.log(4), math.log(0.45 * side)))
    if photographs.cut_outs and uniform(generator) < 0.4:
        values = photographs.cut_out(generator, min(2 * size, CANVAS - 40.0))
        colours, mask = values[:3], values[3]
    else:
        colours, mask = photographs.texture(generator), _mask(generator, size)
    if uniform(generator) < 0.15:  # holes, such as those of a fence
        noise = torch.randn(1, 1, *[int(uniform(generator, 8, 40))] * 2, generator=generator)
        mask = mask * (F.interpolate(noise, size=CANVAS, mode="bicubic")[0, 0] < uniform(generator, 0.2, 1))
    if uniform(generator) < 0.05:
        mask = mask * uniform(generator, 0.4, 0.9)
    own = _motion(generator, _velocity(generator, 0.15, 0.35, 4.0), 0.5)
    place = _affine(0, normal(generator, 0.5), 0, torch.tensor([uniform(generator, 0, side) for _ in range(2)]))
    overlay = uniform(generator) < 0.08  # what stays at its place in the picture, such as a title
    ends = place.expand(2, 3, 3) if overlay else camera @ own @ place
    if not overlay:  # rotated and scaled around its own middle
        ends = ends.clone()
        ends[:, :2, 2] = (camera @ place)[:, :2, 2] + own[:, :2, 2]
        ends[:, :2, :2] = (camera @ own @ place)[:, :2, :2]
    waves = _waves(generator) if uniform(generator) < 0.25 else torch.zeros(0, 5)
    shadow = uniform(generator, 0.1, 0.6) if uniform(generator) < 0.3 else 0.0
    layer = Layer(torch.cat([colours * mask, mask[None], mask[None]]), ends[:, :2], waves, shadow)
    _soften(layer, generator, 0.4 + (abs(normal(generator, 1.5)) if uniform(generator) < 0.25 else 0.0))
    if shadow:
        shift = [int(normal(generator, 8)) for _ in range(2)]
        layer.values[4] = _blur(layer.values[4:], uniform(generator, 1, 8))[0].roll(shift, (0, 1))
    return layer


def _soften(layer: Layer, generator: Generator, sigma: float) -> None:
    """Blur a layer in place: out of focus by `sigma` pixels, and in one of five layers along its motion."""
    if sigma:
        layer.values = _blur(layer.values, sigma)
    velocity = layer.ends[1, :, 2] - layer.ends[0, :, 2]
    length = float(velocity.norm()) * uniform(generator, 0.03, 0.2)
    if uniform(generator) < 0.2 and 1 < length < 20:
        inside = torch.linalg.solve(layer.ends.mean(0)[:, :2], velocity) * length / velocity.norm()
        count = math.ceil(length) + 1
        steps = torch.linspace(-0.5, 0.5, count)[:, None] * inside * 2 / CANVAS
        grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, CANVAS, CANVAS], align_corners=False)
        parts = [
            F.grid_sample(layer.values[None], grid + step, padding_mode="reflection", align_corners=False)[0]
            for step in steps
        ]
        layer.values = torch.stack(parts).mean(0)


def _background(photographs: Photographs, generator: Generator, camera: Tensor, side: int) -> Layer:
    place = _affine(0, normal(generator, 0.08), 0, torch.full((2,), side / 2))
    values = F.pad(photographs.texture(generator), (0, 0, 0, 0, 0, 2), value=1.0)
    waves = _waves(generator) if uniform(generator) < 0.2 else torch.zeros(0, 5)
    layer = Layer(values, (camera @ place)[:, :2], waves)
    _soften(layer, generator, abs(normal(generator, 1.5)) if uniform(generator) < 0.3 else 0.0)
    return layer


# --- scenes ---


def draw_scene(
    photographs: Photographs, generator: Generator, times: Sequence[float], side: int
) -> tuple[Tensor, Tensor]:
    """Draw a scene at `times`, of which 0 and 1 are the end frames'.

    Returns the frames (t, 3, side, side) in [0, 1], and the velocity (t, 2, side, side) of what is visible in each,
    right and down in pixels between the end frames.
    """
    middle = _affine(0, 0, 0, torch.full((2,), side / 2))
    speed = choice(generator, (0.7, 3.0, 3.0, 3.0))  # cameras that are held still move a little
    camera = middle @ _motion(generator, _velocity(generator, 0.25, 0.25, speed), 0.5) @ torch.linalg.inv(middle)
    layers = [_background(photographs, generator, camera, side)]
    for _ in range(choice(generator, (0, 1, 1, 2, 3, 4, 6, 8))):
        layers.append(_thing(photographs, generator, camera, side))
    frames, velocities = _render(layers, times, side)
    frames = _light(frames, times, generator)
    if uniform(generator) < 0.25:
        frames = _blur(frames, uniform(generator, 0.4, 1.2))
    return frames.clamp(0, 1), velocities


def _render(layers: list[Layer], times: Sequence[float], side: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(*[torch.arange(side) + 0.5] * 2, indexing="ij")
    pixels = torch.stack([x, y], -1)
    frames, velocities = torch.zeros(len(times), 3, side, side), torch.zeros(len(times), side, side, 2)
    for index, layer in enumerate(layers):
        places = torch.stack([layer.places(pixels, time) for time in times])
        values = F.grid_sample(
            layer.values.expand(len(times), -1, -1, -1), places * 2 / CANVAS, mode="bicubic",
            padding_mode="zeros" if index else "reflection", align_corners=False,
        )  # fmt: skip
        colours, (mask, shadow) = values[:, :3], values[:, 3:].clamp(0, 1).unbind(1)
        if not index:
            mask = torch.ones_like(mask)
        if layer.shadow:
            frames = frames * (1 - layer.shadow * shadow[:, None])
        frames = colours + (1 - mask[:, None]) * frames
        velocity = torch.stack([layer.velocity(place, time) for place, time in zip(places, times, strict=True)])
        velocities = torch.where(mask[..., None] > 0.5, velocity, velocities)
    return frames, velocities.movedim(-1, 1)


def _light(frames: Tensor, times: Sequence[float], generator: Generator) -> Tensor:
    """Frames with a contrast and brightness of their own and, in one of four scenes, a light that changes; in one of 20
    it is a flash, which may leave nothing of what is bright."""
    frames = (frames - 0.5) * uniform(generator, 0.7, 1.1) + 0.5 + normal(generator, 0.05)
    if uniform(generator) < 0.25:
        change = normal(generator, 0.6 if uniform(generator) < 0.2 else 0.08)
        frames = frames * (1 + change * (torch.tensor(times) - 0.5).view(-1, 1, 1, 1))
    return frames


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Maps (…, H, W) after a Gaussian blur."""
    radius = max(1, math.ceil(2.5 * sigma))
    kernel = torch.exp(-torch.arange(-radius, radius + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None, None]
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, kernel), kernel.mT).view_as(maps)


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as (channels, H, W) in [0, 1]."""
    array = np.asarray(picture)
    return torch.from_numpy(array.copy()).float().view(*array.shape[:2], -1).permute(2, 0, 1).contiguous() / 255
