"""Clips in and out: mp4, webm, mov and mkv (streams.py), gif and animated webp (animations.py), and PNG sequences.

A clip is a tensor (t, 3, h, w), float32 RGB in [0, 1], with a rate in frames per second, or an iterable of its frames,
which are then never in memory all at once. Equal clips are written as equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import files, images
from .animations import TICKS, open_animation, write_animation
from .animations import read_tags as read_animation_tags
from .errors import MicroCinemaError

if TYPE_CHECKING:
    from .streams import Sound  # PyAV is imported only where a stream is opened, because its import takes time

MAX_FPS = {".mp4": 10_000, ".webm": 1000, ".gif": 50, ".webp": 1000, ".mov": 10_000, ".mkv": 1000}
MIN_FPS = 0.01
WITH_SOUND = (".mp4", ".webm", ".mov", ".mkv")
EVEN = (".mp4", ".webm", ".mov")  # their sides are even, because two pixels share a colour
MAX_VALUES = 2**28  # of a clip that read_video returns: 1 GiB of floats

Audio = tuple[torch.Tensor, int]  # samples (channels, n) in [-1, 1], and their rate in Hz


def check_output(path: str | Path, fps: float | None = None) -> None:
    """Raise MicroCinemaError unless a clip can be written to `path`, with `fps` frames per second if given."""
    files.check_output(path, tuple(MAX_FPS))
    maximum = MAX_FPS[Path(path).suffix.lower()]
    if fps is not None and fps < MIN_FPS:
        raise MicroCinemaError(f"{fps:g} frames per second are too few: give {MIN_FPS} or more")
    if fps is not None and fps > maximum:
        raise MicroCinemaError(
            f"'{path}' can hold {maximum} frames per second, not {fps:g}: lower the fps or write mp4"
        )


def write_video(
    path: str | Path,
    frames: torch.Tensor | Iterable[torch.Tensor],
    fps: float,
    metadata: dict[str, Any] | None = None,
    *,
    codec: str | None = None,
    quality: int = 80,
    crf: int | None = None,
    loop: int = 0,
    audio: Audio | Sound | None = None,
) -> int:
    """Write frames (3, h, w), all of one size, and return their number. The suffix of `path` selects the format.

    mp4 is H.264, or H.265 with 10 bits if `codec` is "h265"; webm is VP9, mov ProRes 422 HQ (10 bits), mkv FFV1
    (lossless, 8 bits). YUV is BT.709 in limited range; an odd side is made even by repeating its last row or column.
    `audio` is encoded as AAC, Opus, PCM or FLAC, and cut where the pictures end. A gif or webp is played `loop` times,
    0 for ever; equal neighbouring frames are stored once. `quality` is 0 … 100; `crf`, the encoder's own scale,
    replaces it. gif, ProRes and FFV1 use neither.

    Each entry of `metadata` becomes a tag of the file; values that are not text are written as JSON. The file appears
    complete, or not at all when `frames` raises. Raises MicroCinemaError as `check_output` does.
    """
    path = Path(path)
    check_output(path, fps)
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    suffix, frames = path.suffix.lower(), iter(frames)
    with files.whole_file(path) as part:
        if suffix in TICKS:
            return write_animation(part, frames, fps, tags, quality, loop)
        from . import streams

        codec = codec or streams.BY_SUFFIX[suffix]
        maximum = streams.CODECS[codec].max_crf
        if crf is not None and not 0 <= crf <= maximum:
            raise MicroCinemaError(f"{codec} has a CRF from 0 to {maximum}, not {crf}: choose one of these")
        if isinstance(audio, tuple):
            audio = streams.whole_sound(*audio)
        return streams.write_stream(part, frames, fps, codec, tags, quality, crf, audio)


def write_sequence(
    folder: str | Path, frames: torch.Tensor | Iterable[torch.Tensor], metadata: dict[str, str] | None = None
) -> list[Path]:
    """Write frames (3, h, w) as 00001.png, 00002.png, … into a new folder, which appears complete or not at all.

    Each file has the entries of `metadata` as text chunks. Returns the files. Raises MicroCinemaError where the folder
    exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise MicroCinemaError(f"'{folder}' exists already: choose another name")
    notes = PngInfo()
    for key, value in (metadata or {}).items():
        notes.add_text(key, value)
    with files.whole_file(folder) as part:
        part.mkdir()
        try:
            for index, frame in enumerate(frames, 1):
                Image.fromarray(images.to_bytes(frame)).save(part / f"{index:05}.png", pnginfo=notes)
        except BaseException:
            shutil.rmtree(part)
            raise
    return sorted(folder.iterdir())


@dataclass
class Video:
    """An opened video file, whose frames can be read once, one after another."""

    fps: float
    count: int  # the expected number of frames
    size: tuple[int, int]  # width and height of the frames, in pixels
    frames: Iterator[torch.Tensor]  # (3, h, w)
    sound: Sound | None
    notes: list[str]  # how the frames differ from the file's, one sentence each


def open_video(path: str | Path, size: tuple[int, int] | None = None) -> Video:
    """Open a video to read its frames one after another, each cropped and resized to `size` (width, height) if given.

    A video of variable rate is read at a constant one, so that a frame may be repeated. Raises MicroCinemaError for a
    missing, broken or truncated file. The iterator raises it where the file is damaged, and where the size of the
    frames changes although no `size` is given.
    """
    path = Path(path)
    with _readable(path):
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would block
            raise MicroCinemaError(f"'{path}' is a pipe or a device: save the video as a file first")
        sound = None
        if path.suffix.lower() in TICKS:
            fps, count, pictures, notes = open_animation(path)
        else:
            from .streams import open_stream

            stream = open_stream(path)
            fps, count, pictures, sound, notes = stream.fps, stream.count, stream.pictures, stream.sound, stream.notes
    frames = _frames(path, pictures, fps, size)
    first = next(frames)
    return Video(fps, count, (first.shape[2], first.shape[1]), chain([first], frames), sound, notes)


def read_video(path: str | Path, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, float]:
    """All frames (t, 3, h, w) of a video and its frames per second, as open_video reads them.

    Raises MicroCinemaError as open_video does, and for more than MAX_VALUES values, which may not fit into memory.
    """
    opened, frames = open_video(path, size), []
    for frame in opened.frames:
        frames.append(frame)
        if len(frames) * frame.numel() > MAX_VALUES:
            raise MicroCinemaError(f"'{path}' has too many large frames for memory: cut it or give a smaller size")
    return torch.stack(frames), opened.fps


def _frames(path: Path, pictures: Iterator, fps: float, size: tuple[int, int] | None) -> Iterator[torch.Tensor]:
    first = None
    with _readable(path):
        for index, picture in enumerate(pictures):
            first = first or picture.shape
            if picture.shape != first and not size:
                old, new = (f"{shape[1]}x{shape[0]}" for shape in (first, picture.shape))
                raise MicroCinemaError(
                    f"'{path}' changes from {old} to {new} at {index / fps:.2f} s: give one size for all, --size {old}"
                )
            frame = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
            yield images.fit(frame, *size) if size else frame
    if first is None:
        raise MicroCinemaError(f"'{path}' is broken or holds no frames: choose another video")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every error of the decoders into a MicroCinemaError."""
    try:
        if path.is_dir():
            raise MicroCinemaError(f"'{path}' is a folder: name a video in it")
        yield
    except (MicroCinemaError, GeneratorExit):
        raise
    except FileNotFoundError as error:
        raise MicroCinemaError(f"the video '{path}' does not exist: check its name and folder") from error
    except Image.DecompressionBombError as error:
        raise MicroCinemaError(f"the frames of '{path}' are too large: save a smaller copy of it") from error
    except Exception as error:  # the decoders raise errors of any type for a broken file
        raise MicroCinemaError(f"'{path}' is broken or no video that can be read: save it anew as mp4") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The tags of a video file, names in lower case, with JSON objects and lists decoded: the `metadata` of write_video
    and other tags of the file. Raises MicroCinemaError as open_video does."""
    path = Path(path)
    with _readable(path):
        if path.suffix.lower() in TICKS:
            tags = read_animation_tags(path)
        else:
            from .streams import read_tags

            tags = read_tags(path)
    return {key.lower(): _decoded(value) for key, value in tags.items()}


def _decoded(text: str) -> Any:
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
