"""Animated pictures through Pillow: reads and writes gif and webp.

Pillow writes a file only with all its frames in memory, so these formats are for short clips; frames are read one after
another.
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

TICKS = {".gif": 10, ".webp": 1}  # milliseconds: the unit of the durations of frames in these formats
DESCRIPTION = 0x010E  # EXIF tag ImageDescription
GRAPH_TAGS = {"prompt": 0x0110, "workflow": 0x010F}  # EXIF tags from which ComfyUI reads a graph
MAX_BYTES = 2**31  # of the frames of a clip to write


def write_animation(
    path: Path, frames: Iterator[Tensor], fps: float, tags: dict[str, str], quality: int, loop: int
) -> int:
    """Write frames (3, h, w), with the arguments of write_video, and return their number."""
    pictures, size = [], 0
    for frame in frames:
        pictures.append(images.to_bytes(frame))
        size += pictures[-1].nbytes
        if size > MAX_BYTES:
            raise MicroCinemaError(f"the clip is too long for {path.suffix}, which memory must hold: write mp4 or webm")
    if not pictures:
        raise MicroCinemaError("a clip without frames cannot be written: give at least one")
    tick = TICKS[path.suffix.lower()]
    ends = [round(index * 1000 / fps / tick) * tick for index in range(len(pictures) + 1)]
    options: dict[str, Any] = {"save_all": True, "loop": loop, "duration": np.diff(ends).tolist()}
    encoded = [Image.fromarray(picture) for picture in pictures]
    description = json.dumps({"fps": fps, "tags": tags})
    if path.suffix.lower() == ".gif":
        # One palette for all frames, because a constant colour would flicker with a palette for each.
        palette = Image.fromarray(np.concatenate(pictures[:: 1 + len(pictures) // 32])).quantize(256)
        encoded = [frame.quantize(palette=palette) for frame in encoded]
        options |= {"comment": description.encode(), "optimize": False}
    else:
        exif = Image.Exif()
        exif[DESCRIPTION] = description
        for key, tag in GRAPH_TAGS.items():
            if key in tags:
                exif[tag] = f"{key}:{tags[key]}"
        options |= {"exif": exif, "quality": min(100, quality + 10)}
    encoded[0].save(path, append_images=encoded[1:], **options)
    return len(pictures)


def open_animation(path: Path) -> tuple[float, int, Iterator[np.ndarray], list[str]]:
    """The frames per second, the number of frames, the frames (h, w, 3) in uint8, and how they differ from the file's,
    one sentence each.

    A frame that is shown for a multiple of the frame time is repeated. Raises MicroCinemaError for a truncated file,
    and Pillow's errors for a damaged one.
    """
    _check_end(path)
    with Image.open(path) as image:
        fps = _description(image)["fps"]
        # Browsers show a frame of less than 20 ms for 100 ms. Files of this package state their rate.
        minimum = 0 if fps else 20
        durations = []
        for frame in ImageSequence.Iterator(image):
            frame.load()  # without it Pillow does not read the duration from a webp
            duration = frame.info.get("duration", 0)
            durations.append(duration if duration >= minimum else 100)
    notes = []
    if fps is None:
        fps = 1000 / mode(durations)
        if len(set(durations)) > 1:
            notes.append(
                f"'{path}' shows its frames for {min(durations):g} to {max(durations):g} ms: it is read at {fps:.4g} "
                "frames per second, each frame as often as it is shown"
            )
    ends = [round(end * fps / 1000) for end in accumulate(durations)]
    repeats = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    if sum(repeats) > 30 * len(repeats) + 300:
        raise MicroCinemaError(
            f"the times in '{path}' are broken: {len(repeats)} frames would last {sum(durations) / 1000:.3g} s: "
            "save it anew"
        )

    def pictures() -> Iterator[np.ndarray]:
        with Image.open(path) as image:
            for frame, count in zip(ImageSequence.Iterator(image), repeats, strict=True):
                picture = np.array(frame.convert("RGB"))
                for _ in range(count):
                    yield picture

    return fps, sum(repeats), pictures(), notes


def read_tags(path: Path) -> dict[str, str]:
    """The tags that write_animation stored in a file; of another program's file its comment. Raises Pillow's errors."""
    with Image.open(path) as image:
        return _description(image)["tags"]


def _check_end(path: Path) -> None:
    """Raise MicroCinemaError where a file is truncated."""
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
    """The "fps" and "tags" that write_animation stored in a gif's comment or a webp's EXIF tag. The text of another
    program becomes the tag "comment"."""
    comment = image.info.get("comment", b"")
    text = comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    text = text or str(image.getexif().get(DESCRIPTION, ""))
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        description = None
    if isinstance(description, dict) and _is_ours(description):
        return description
    return {"fps": None, "tags": {"comment": text} if text else {}}


def _is_ours(description: dict) -> bool:
    fps, tags = description.get("fps"), description.get("tags")
    return isinstance(fps, int | float) and 0.001 <= fps <= 1000 and isinstance(tags, dict)
