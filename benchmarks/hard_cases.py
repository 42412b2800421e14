"""What interpolation finds hard, as a picture: `python benchmarks/hard_cases.py docs/hard-cases.jpg`.

Each row has two end frames and the three that the model makes between them; below it, where it is known, the truth.
The scenes are made of the photographs and the drawings of this package.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from microcinema_core import files, images
from microcinema_core.checkpoint import resolve
from microcinema_core.demo.evaluate import PHOTOGRAPHS
from microcinema_core.demo.scenes import draw_clip
from microcinema_core.metrics.quality import psnr
from microcinema_core.pipeline import Pipeline

SIDE = 160  # pixels
FRAMES = 5
LABEL = 18  # pixels, the height of a row's title

Draw = Callable[[ImageDraw.ImageDraw, float], None]


def photograph(name: str, side: int = SIDE) -> Tensor:
    """A photograph of the package, (3, side, side)."""
    return images.fit(images.load_picture(PHOTOGRAPHS / f"{name}.jpg"), side, side)


def moved(picture: Tensor, shift: float, side: int = SIDE) -> Tensor:
    """The middle of a picture (3, H, W), seen by a camera that goes `shift` pixels to the right in a clip's time:
    (FRAMES, 3, side, side)."""
    height, width = picture.shape[-2:]
    x = torch.arange(side) - side / 2 + 0.5
    clip = []
    for index in range(FRAMES):
        places = x + shift * (index / (FRAMES - 1) - 0.5)
        grid = torch.stack(torch.meshgrid(places * 2 / width, x * 2 / height, indexing="xy"), -1)[None]
        clip.append(torch.nn.functional.grid_sample(picture[None], grid, mode="bicubic", align_corners=False)[0])
    return torch.stack(clip).clamp(0, 1)


def covered(clip: Tensor, draw: Draw, colour: Tensor | tuple[float, float, float]) -> Tensor:
    """A clip behind what `draw` draws at each time from 0 to 1, at four times the size, in a colour or a texture."""
    frames = []
    for index, frame in enumerate(clip):
        mask = Image.new("L", (4 * SIDE, 4 * SIDE))
        draw(ImageDraw.Draw(mask), index / (FRAMES - 1))
        alpha = torch.from_numpy(np.asarray(mask.reduce(4), np.float32) / 255)
        paint = colour[index] if isinstance(colour, Tensor) else torch.tensor(colour)[:, None, None]
        frames.append(torch.lerp(frame, paint.expand_as(frame), alpha))
    return torch.stack(frames)


def disc(pen: ImageDraw.ImageDraw, time: float) -> None:
    """A disc that goes 30 pixels to the left."""
    x = 4 * (95 - 30 * time)
    pen.ellipse((x - 140, 180, x + 140, 460), fill=255)


def fence(pen: ImageDraw.ImageDraw, time: float) -> None:
    """Bars two pixels wide that go 12 pixels to the right."""
    for bar in range(-1, 9):
        x = 4 * (bar * 23 + 12 * time)
        pen.line((x, 0, x + 100, 640), fill=255, width=8)


def title(pen: ImageDraw.ImageDraw, time: float) -> None:
    """A title that rolls up by 10 pixels, above one that stays."""
    pen.text((70, 4 * (60 - 10 * time)), "The picture moves", 255, ImageFont.load_default(60))
    pen.text((70, 500), "and this one stays", 255, ImageFont.load_default(60))


def cases() -> dict[str, tuple[Tensor, bool]]:
    """The clips (FRAMES, 3, SIDE, SIDE) by their titles, and whether the three in the middle are a truth."""
    flash = moved(photograph("pagoda", 256), 6)
    flash[-1] = (1.8 * flash[-1]).clamp(0, 1)
    cartoon = draw_clip(12, frames=FRAMES, size=SIDE, kind="things").frames
    turn = torch.stack([photograph("dahlia").rot90(0, (1, 2))] * FRAMES)
    turn[-1] = photograph("raccoon")
    return {
        "30 pixels to the left, the picture 30 to the right": (
            covered(moved(photograph("jockey", 256), -30), disc, moved(photograph("bear", 256), 0)), True
        ),
        "thin things": (covered(moved(photograph("rocket", 256), -4), fence, (0.9, 0.85, 0.7)), True),
        "text": (covered(moved(photograph("coffee", 256), 8), title, (1.0, 1.0, 1.0)), True),
        "a drawing": (cartoon, True),
        "a flash": (flash, False),
        "a cut": (turn, False),
    }  # fmt: skip


def loop(pipeline: Pipeline) -> Tensor:
    """The seam of a loop: of four frames of a turn, the last, the first, and what is made between them."""
    picture = photograph("astronaut", 256)
    angle = [0, 4, 0, -4]
    turned = [_turned(picture, degrees) for degrees in (*angle, angle[0])]
    return pipeline.interpolate(torch.stack(turned))[-FRAMES:]


def _turned(picture: Tensor, degrees: float) -> Tensor:
    image = Image.fromarray(images.to_bytes(picture)).rotate(degrees, Image.Resampling.BICUBIC)
    array = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).float() / 255
    margin = (picture.shape[-1] - SIDE) // 2
    return array[:, margin : margin + SIDE, margin : margin + SIDE]


def row(title: str, clips: list[Tensor]) -> np.ndarray:
    """A title above strips of frames."""
    label = Image.new("RGB", (FRAMES * SIDE, LABEL), "white")
    ImageDraw.Draw(label).text((3, 3), title, "black")
    return np.concatenate([np.asarray(label), *(images.to_bytes(torch.cat(list(clip), -1)) for clip in clips)])


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="demo-interpolation")
    options = parser.parse_args()
    pipeline, rows = Pipeline.from_file(resolve(options.model)), []
    for title, (clip, is_true) in cases().items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = pipeline.interpolate(clip[[0, -1]])
        notes = [
            str(warning.message).partition(":")[0] for warning in caught if "scene changes" in str(warning.message)
        ]
        if is_true:
            blend = torch.lerp(clip[:1], clip[-1:], torch.linspace(0, 1, FRAMES)[:, None, None, None])
            decibels = [psnr(frames[1:-1], clip[1:-1]) for frames in (made, blend)]
            notes.append("made {:.1f} dB, a blend {:.1f} dB; below it the truth".format(*decibels))
        rows.append(row(": ".join([title, *notes]), [made, clip] if is_true else [made]))
    rows.append(row("the seam of a loop", [loop(pipeline)]))
    with files.whole_file(options.output) as part:
        Image.fromarray(np.concatenate(rows)).save(part, format="JPEG", quality=88)


if __name__ == "__main__":
    main()
