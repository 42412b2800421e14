"""What the camera uncovers: the picture's continuation against the truth, which a larger photograph knows.

`python benchmarks/edges.py FOLDER` reads photographs (*.png, *.jpg) of FOLDER, cuts the middle out of each, moves the
camera over it, and compares the part that was cut off: PSNR in dB, and its local contrast, the mean squared gradient,
relative to that of the covered part of the same frames. Means are over clips; contrasts are geometric means. `--pixels`
measures continuations alone, without the model, in a minute; otherwise the bundled model makes each clip with each of
them. `--sheets DIR` writes the first, second, last frames of the clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, geometric_mean

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from microcinema_core import images
from microcinema_core.checkpoint import resolve
from microcinema_core.demo import edges, warp
from microcinema_core.demo.captions import CAMERA_VERBS, SPEEDS, camera_caption
from microcinema_core.demo.evaluate_photographs import uncovered_figures
from microcinema_core.demo.scenes import REFERENCE_SIZE, camera_transforms
from microcinema_core.pipeline import Pipeline

SPAN = 1.5  # of a photograph, in sides of the part that is given
SHOW_UNCOVERED = edges.show_uncovered
CONTINUE = edges.continue_picture
Continuation = Callable[[Tensor, int, int], Tensor]


def padded(mode: str) -> Continuation:
    """A continuation by padding: "reflect", of pixels and not of their edges, or "replicate"."""

    def continuation(pixels: Tensor, right: int, down: int) -> Tensor:
        right, down = min(right, pixels.shape[-1] - 1), min(down, pixels.shape[-2] - 1)
        return F.pad(pixels, (right, right, down, down), mode=mode)

    return continuation


METHODS: dict[str, Continuation] = {
    "mirrored": padded("reflect"), "edge repeated": padded("replicate"), "continued": CONTINUE,
}  # fmt: skip


def jobs(folder: Path, size: int, moves: int) -> Iterator[tuple[str, Tensor, str, str]]:
    """A photograph (3, s, s) of SPAN · `size` pixels, a motion and a speed: `moves` for each photograph."""
    span = round(SPAN * size) // 2 * 2
    for index, path in enumerate(sorted([*folder.glob("*.png"), *folder.glob("*.jpg")])):
        photograph = images.fit(images.load_picture(path), span, span)
        for turn in range(moves):
            motion = tuple(CAMERA_VERBS)[(index + 3 * turn) % 8]
            yield path.stem, photograph, motion, SPEEDS[(index + turn + 1) % 3]


def middle(photograph: Tensor, size: int) -> Tensor:
    """The part of a photograph that is given."""
    margin = (photograph.shape[-1] - size) // 2
    return photograph[:, margin : margin + size, margin : margin + size]


def resampled(photograph: Tensor, views: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The true frames (t, 3, size, size) and the pixels (t, size, size) outside of the middle; views (t, 2, 3)."""
    sources = edges._sources(views[None], size, size)[0]
    grid = sources / (photograph.shape[-1] / 2)
    photographs = photograph.expand(len(views), -1, -1, -1)
    truth = F.grid_sample(photographs, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return truth.clamp(0, 1), (sources.abs() > size / 2).any(dim=-1)


def inverse(maps: Tensor) -> Tensor:
    """Affine maps (t, 2, 3) to the maps back."""
    turns = torch.linalg.inv(maps[..., :2])
    return torch.cat([turns, -turns @ maps[..., 2:]], dim=-1)


def without_model(photograph: Tensor, motion: str, speed: str, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The camera's views, and the frames that each continuation gives with the picture's own pixels."""
    pans = motion in ("left", "right", "up", "down")  # the model's are of as many pixels at any size
    maps = camera_transforms(motion, speed, range(-4, 5), REFERENCE_SIZE if pans else size)
    views, picture, clips = inverse(maps), middle(photograph, size), {}
    for name, continuation in METHODS.items():
        edges.continue_picture = continuation
        frames, _ = resampled(picture, views, size)
        clips[name] = SHOW_UNCOVERED(frames[None], picture[None], views[None])[0]
    return views, clips


def with_model(
    pipeline: Pipeline, photograph: Tensor, motion: str, speed: str, size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of the bundled model's clips; "before" fills what is uncovered from around it, as release 0.1 did."""
    picture, clips, recorded = middle(photograph, size), {}, []

    def record(frames: Tensor, pixels: Tensor, views: Tensor) -> Tensor:
        recorded.append(views[0])
        return frames if name == "before" else SHOW_UNCOVERED(frames, pixels, views)

    warp.show_uncovered = record
    for name in ("before", *METHODS):
        edges.continue_picture = METHODS.get(name, CONTINUE)
        clips[name] = pipeline.animate(picture, camera_caption(motion, speed), width=size, height=size)
    return recorded[-1], clips


def main() -> None:
    """Measure, and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 256])
    parser.add_argument("--moves", type=int, default=2, help="of each photograph, of eight (%(default)s)")
    parser.add_argument("--pixels", action="store_true", help="without the model")
    parser.add_argument("--sheets", type=Path)
    options = parser.parse_args()
    pipeline = None if options.pixels else Pipeline.from_file(resolve("demo-base"))
    for size in options.sizes:
        records: dict[str, list[dict[str, float]]] = {}
        for name, photograph, motion, speed in jobs(options.folder, size, options.moves):
            if pipeline:
                views, clips = with_model(pipeline, photograph, motion, speed, size)
            else:
                views, clips = without_model(photograph, motion, speed, size)
            truth, outside = resampled(photograph, views, size)
            for method, clip in clips.items():
                records.setdefault(method, []).append(uncovered_figures(clip, truth, outside))
            if options.sheets:
                options.sheets.mkdir(parents=True, exist_ok=True)
                rows = [torch.cat(list(clip[[0, 2, 6, 8]]), dim=-1) for clip in (truth, *clips.values())]
                Image.fromarray(images.to_bytes(torch.cat(rows, dim=-2))).save(
                    options.sheets / f"{size}-{name}-{motion}.png"
                )
        print(f"\n{size}x{size}, {len(records['continued'])} clips", flush=True)
        for method, rows in records.items():
            decibels = fmean(row["psnr"] for row in rows)
            contrast, truth = (geometric_mean(row[key] for row in rows) for key in ("contrast", "truth"))
            print(f"  {method:<14} {decibels:6.2f} dB, contrast {contrast:.2f} (the truth's: {truth:.2f})", flush=True)


if __name__ == "__main__":
    main()
