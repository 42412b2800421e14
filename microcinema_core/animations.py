"""Animated pictures through Pillow: gif and webp, in and out.

Pillow keeps all frames of a file that it writes, so these are for short clips; reading takes one frame at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
from PIL import Image, ImageSequence
from torch import Tensor

from . import images
from .errors import MicroCinemaError

TICKS = {".gif": 10, ".webp": 1}  # milliseconds: the unit in which these formats say how long a frame is shown
DESCRIPTION = 0x010E  # EXIF tag ImageDescription
GRAPH_TAGS = {"prompt": 0x0110, "workflow": 0x010F}  # EXIF tags in which ComfyUI looks for a graph
MOST_BYTES = 2**31  # of a clip to write


def write_animation(
    path: Path, frames: Iterator[Tensor], fps: float, tags: dict[str, str], quality: int, loop: int
) -> int:
    """Write frames (3, h, w); how many there were."""
    pictures, held = [], 0
    for frame in frames:
        pictures.append(images.to_bytes(frame))
        held += pictures[-1].nbytes
        if held > MOST_BYTES:
            raise MicroCinemaError(f"the clip is too long for {path.suffix}, which memory must hold: write mp4 or webm")
    if not pictures:
        raise MicroCinemaError("a clip without frames cannot be written: give at least one")
    tick = TICKS[path.suffix.lower()]
    ends = [round(index * 1000 / fps / tick) * tick for index in range(len(pictures) + 1)]
    options = {"save_all": True, "loop": loop, "duration": np.diff(ends).tolist()}
    made = [Image.fromarray(picture) for picture in pictures]
    description = json.dumps({"fps": fps, "tags": tags})
    if path.suffix.lower() == ".gif":
        # one palette for all frames, or a colour at rest would flicker
        palette = Image.fromarray(np.concatenate(pictures[:: 1 + len(pictures) // 32])).quantize(256)
        made = [frame.quantize(palette=palette) for frame in made]
        options |= {"comment": description.encode(), "optimize": False}
    else:
        exif = Image.Exif()
        exif[DESCRIPTION] = description
        for key, tag in GRAPH_TAGS.items():
            if key in tags:
                exif[tag] = f"{key}:{tags[key]}"
        options |= {"exif": exif, "quality": min(100, quality + 10)}
    made[0].save(path, append_images=made[1:], **options)
    return len(pictures)


def open_animation(path: Path) -> tuple[float, int, Iterator[np.ndarray], list[str]]:
    """Rate, number of frames, the frames (h, w, 3) in uint8, and what is done to the file, a sentence each.

    A frame comes as often as it is shown. Raises MicroCinemaError for a file that is cut off, and what Pillow raises.
    """
    _check_end(path)
    with Image.open(path) as image:
        fps = _description(image)["fps"]
        # What is shown for less than 20 ms is shown for 100 by browsers; of ours the rate is known.
        least = 0 if fps else 20
        durations = []
        for frame in ImageSequence.Iterator(image):
            frame.load()  # of webp the duration is known only then
            shown = frame.info.get("duration", 0)
            durations.append(shown if shown >= least else 100)
    notes = []
    if fps is None:
        fps = 1000 / mode(durations)
        if len(set(durations)) > 1:
            notes.append(
                f"'{path}' shows its frames for {min(durations):g} to {max(durations):g} ms: it is read at {fps:.4g} "
                "frames per second, each frame as often as it is shown"
            )
    ends = [round(end * fps / 1000) for end in accumulate(durations)]
    times = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]

    def pictures() -> Iterator[np.ndarray]:
        with Image.open(path) as image:
            for frame, count in zip(ImageSequence.Iterator(image), times, strict=True):
                picture = np.array(frame.convert("RGB"))
                for _ in range(count):
                    yield picture

    return fps, sum(times), pictures(), notes


def read_tags(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return _description(image)["tags"]


def _check_end(path: Path) -> None:
    """Raise MicroCinemaError where a file ends before its end."""
    with path.open("rb") as file:
        start = file.read(12)
        size = file.seek(0, 2)
        file.seek(max(0, size - 64))
        end = file.read()
    cut = start[:4] == b"GIF8" and end.rstrip(b"\0")[-1:] != b";"
    cut |= start[:4] == b"RIFF" and size < 8 + int.from_bytes(start[4:8], "little")
    if cut:
        raise MicroCinemaError(f"'{path}' is cut off, its last frames are missing, or broken: fetch it again")


def _description(image: Image.Image) -> dict[str, Any]:
    """What `write_animation` noted in a gif's comment or a webp's EXIF; a foreign text is the tag "comment"."""
    comment = image.info.get("comment", b"")
    text = comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    text = text or str(image.getexif().get(DESCRIPTION, ""))
    try:
        noted = json.loads(text)
    except (ValueError, RecursionError):
        noted = None
    if isinstance(noted, dict) and _ours(noted):
        return noted
    return {"fps": None, "tags": {"comment": text} if text else {}}


def _ours(noted: dict) -> bool:
    fps, tags = noted.get("fps"), noted.get("tags")
    return isinstance(fps, int | float) and 0.001 <= fps <= 1000 and isinstance(tags, dict)
