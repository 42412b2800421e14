"""Clips of N frames at a target rate from video files of any rate, decoded from the key frame before them.

Whatever makes a file or a place in it unfit for training raises Unusable with the reason. Only the frames that are
needed are decoded: frames before the clip which no other frame refers to are left out, and so is what follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from ...streams import PYAV, open_container, to_rgb
from .cuts import find_cuts, thumbnail

Source = Path | BinaryIO  # a file, or what reads and seeks like one
MAX_FPS = 240  # a header that tells of more is wrong
_TOLERANCE = 0.98  # 29.97 frames per second are enough for 30
_MIDDLE = 0.45  # of a frame's time: of two that are equally near the earlier one, also where times are rounded
_ONE_THREAD: Any = {"threads": 1} if PYAV >= 17 else {}  # many processes decode side by side


class Unusable(Exception):
    """A file or clip that is no use for training. Its text is the reason: what stands before a colon is the same for
    all files with that reason, so that they can be counted. `elsewhere`: whether another place may do."""

    def __init__(self, reason: str, elsewhere: bool = False):
        super().__init__(reason)
        self.elsewhere = elsewhere


@dataclass(frozen=True)
class Probe:
    """What is known of a video before its clips are decoded. Times are in seconds, by the file's own clock."""

    width: int  # as shown: after the rotation, with square pixels
    height: int
    start: float  # when the first frame is shown
    end: float  # when the last frame is shown
    fps: float  # average frames per second

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.end - self.start + 1 / self.fps


def probe(source: Source) -> Probe:
    """The size, times and rate of a video: from its header, its first frame and its last packets; from all packets
    where the header does not tell them.

    Raises Unusable for a file without pictures, that cannot be decoded, or that ends before its header says.
    """
    with _opened(source) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise Unusable("no frame can be decoded")
        first, fps = _time(frame), float(stream.average_rate or stream.guessed_rate or 0)
        if first is None:
            raise Unusable("no times: its frames do not say when they are shown")
        width, height = _shown_size(frame, stream)
        length = _header_end(container, stream)
        times = _times_near_end(container, stream, length) if length and 0 < fps <= MAX_FPS else _Times(0, first, first)
    if times.last <= first:  # no index, or a header without a duration or with a false rate
        with _opened(source) as (container, stream):
            times = _Times.of(container.demux(), stream)
        if times.count > 1 and not 0 < fps <= MAX_FPS:
            fps = (times.count - 1) / (times.last - first) if times.last > first else 0
    fps = fps if 0 < fps <= MAX_FPS else 24.0
    if length and length - times.end > max(0.1, 2 / fps):
        raise Unusable(f"cut off: it ends after {times.end:.2f} s of {length:.2f} s")
    return Probe(width, height, first, max(first, times.last), fps)


def read_clip(
    source: Source, start: float, frames: int, fps: float, size: tuple[int, int], *,
    crop: tuple[float, float] = (0.5, 0.5), known: Probe | None = None,
) -> Tensor:  # fmt: skip
    """`frames` frames at `fps` frames per second, as uint8 RGB (frames, 3, h, w), resized with antialiasing to `size`
    (width, height) after a crop to its aspect ratio.

    `start` in [0, 1) says where in the video the clip begins, 0 at its first frame, 1 where it just fits. The first
    frame is the one nearest to that place, the k-th the one that a player shows k/fps seconds after the middle of the
    first one's time: at a constant rate the frame nearest to k/fps, at a variable rate the one that is held then.
    `crop` is the place of the crop, (0, 0) at the left top, (1, 1) at the right bottom. `known` is the video's Probe;
    without it the video is probed first.

    Raises Unusable where the video is shorter than the clip, has fewer frames per second than `fps`, so that a frame
    would be repeated, has a cut within the clip, or is damaged there.
    """
    known = known or probe(source)
    room = known.end - known.start - (frames - 1) / fps
    if room < -0.5 / known.fps:
        raise Unusable(f"shorter than a clip of {frames} frames at {fps:g} fps")
    if known.fps < _TOLERANCE * fps:
        raise Unusable(f"fewer frames per second than {fps:g}")
    earliest = known.start + start * max(0.0, room) - 0.5 / known.fps
    pictures, thumbnails, reformatter = [], [], VideoReformatter()
    for frame, wanted in _sampled(_decoded(source, known.start, earliest), frames, fps, known.fps):
        thumbnails.append(thumbnail(frame, reformatter))
        if wanted:
            pictures.append(_fitted(frame, size, crop, known))
    if find_cuts(np.stack(thumbnails)):
        raise Unusable("a cut within the clip", True)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


# --- frames ---


def _sampled(
    decoded: Iterator[tuple[float, av.VideoFrame]], frames: int, fps: float, source_fps: float
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """The decoded frames up to the clip's last, each with whether the clip has it. Raises Unusable where it would have
    one twice, and where the frames end before."""
    due, shown = [], None
    for time, frame in chain(decoded, [(math.inf, None)]):
        if shown:
            until = min(time, shown[0] + 1.5 / source_fps) if frame is None else time
            count = sum(moment < until for moment in due)
            if count > 1:
                raise Unusable(f"fewer frames per second than {fps:g}", True)
            yield shown[1], count == 1
            due = due[count:]
            if not due:
                return
        elif frame is not None:
            due = [time + _MIDDLE / source_fps + index / fps for index in range(frames)]
        shown = frame and (time, frame)
    raise Unusable("damaged: its frames end before its packets do", True)


def _decoded(source: Source, start: float, earliest: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames from `earliest` on, with their times. Raises Unusable at the first that is damaged."""
    key, before = None, earliest
    for packet in _packets(source, start, earliest):
        time = _time(packet)
        key = time if key is None else key
        # Frames of an open group of pictures that are shown before its key frame refer to the group before, which is
        # not decoded. Nothing refers to them, so their errors do no harm.
        leading = time is not None and key is not None and time < key
        unneeded = packet.pts is not None and time is not None and time < earliest
        packet.stream.codec_context.skip_frame = "NONREF" if unneeded else "DEFAULT"
        try:
            frames = packet.decode()
        except FFmpegError as error:
            if leading:
                continue
            raise Unusable(f"damaged: at {before - start:.2f} s", True) from error
        if packet.is_corrupt and not leading:
            raise Unusable(f"damaged: at {before - start:.2f} s", True)
        for frame in frames:
            time = _time(frame)
            if time is None or time < max(earliest, key or earliest):
                continue
            if frame.is_corrupt:
                raise Unusable(f"damaged: at {time - start:.2f} s", True)
            before = time
            yield time, frame


def _packets(source: Source, start: float, earliest: float) -> Iterator[av.Packet]:
    """The packets from a key frame on that is shown at `earliest` or before, or all."""
    if earliest > start:
        with _opened(source) as (container, stream):
            # Seconds before it, as containers whose index is of decoding times seek too far. A program stream is read
            # from its start: FFmpeg's times after a seek are estimates, wrong by some frames.
            for back in () if container.format.name == "mpeg" else (0, 2, 8, 32):
                try:
                    container.seek(int((earliest - back) / stream.time_base), stream=stream)
                except FFmpegError:  # the format has no index
                    break
                packets = dropwhile(lambda packet: packet.size and not packet.is_keyframe, container.demux(stream))
                key = next(packets, None)
                if key is not None and key.size and (_time(key) or 0.0) <= earliest:
                    yield key
                    yield from packets
                    return
    with _opened(source) as (container, stream):
        yield from container.demux(stream)


def _fitted(frame: av.VideoFrame, size: tuple[int, int], crop: tuple[float, float], known: Probe) -> np.ndarray:
    """The frame, upright, as (h, w, 3). All of it is resized, with square pixels, then cropped: so the cropped part's
    aspect ratio is right to half a pixel of the result."""
    turns = round(frame.rotation / 90) % 4
    scale = max(size[0] / known.width, size[1] / known.height)
    whole = (max(size[0], round(known.width * scale)), max(size[1], round(known.height * scale)))
    width, height = whole[::-1] if turns % 2 else whole
    values = to_rgb(frame, width=width, height=height, interpolation=Interpolation.BICUBIC, **_ONE_THREAD)
    values = np.rot90(values, turns)
    left, top = (round(place * (full - part)) for place, full, part in zip(crop, whole, size, strict=True))
    return values[top : top + size[1], left : left + size[0]]


# --- containers ---


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """A video's container and its stream of pictures, decoded by one thread. Errors become Unusable."""
    try:
        if not isinstance(source, Path):
            source.seek(0)
        with open_container(source) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise Unusable("no video stream")
            context = stream.codec_context
            if context is None:
                raise Unusable("no decoder for its pictures")
            # Without "explode" some decoders hide an error behind pixels of other frames. That of H.264 does not, and
            # with it fails after a seek to an open group of pictures, where it is told to forget frames it never had.
            context.options = {} if context.name == "h264" else {"err_detect": "explode"}
            context.thread_type, context.thread_count = "NONE", 1
            yield container, stream
    except FFmpegError as error:
        raise Unusable(f"damaged: {error.strerror}") from error
    except (OSError, ValueError, EOFError) as error:
        raise Unusable(f"unreadable: {error}") from error


def _time(timed: Any) -> float | None:
    """When a frame or packet is shown, in seconds; of a packet without that, when it is decoded."""
    value = timed.dts if timed.pts is None else timed.pts
    return None if value is None or timed.time_base is None else float(value * timed.time_base)


@dataclass
class _Times:
    """Of the packets that were read: the number of pictures, when the last one is shown, when the last packet of
    any kind ends."""

    count: int
    last: float
    end: float

    @classmethod
    def of(cls, packets: Iterator[Any], stream: Any) -> _Times:
        times = cls(0, -1e30, -1e30)
        for packet in packets:
            if packet.size and (time := _time(packet)) is not None:
                times.end = max(times.end, time + float((packet.duration or 0) * packet.time_base))
                if packet.stream.index == stream.index and not packet.is_discard:
                    times.count, times.last = times.count + 1, max(times.last, time)
        return times


def _header_end(container: Any, stream: Any) -> float | None:
    """When a video ends according to its header; None where FFmpeg would only estimate it from the packets."""
    kind = container.format.name
    if kind == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    if "mov" not in kind and "matroska" not in kind:
        return None
    return container.duration and container.duration / av.time_base


def _times_near_end(container: Any, stream: Any, length: float) -> _Times:
    try:
        container.seek(int((length - 1) / stream.time_base), stream=stream)
        return _Times.of(container.demux(), stream)
    except FFmpegError:
        return _Times(0, -1e30, -1e30)


def _shown_size(frame: av.VideoFrame, stream: Any) -> tuple[int, int]:
    width, height = frame.width, frame.height
    ratio = stream.sample_aspect_ratio
    if ratio and 0.1 < ratio < 10:
        width = max(1, round(width * ratio))
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)
