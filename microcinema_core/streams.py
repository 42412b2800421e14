"""Video streams through PyAV: writes mp4, webm, mov and mkv, reads all that FFmpeg can decode, with their sound.

Frames are processed one after another, so the memory does not grow with the length of the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from . import images
from .errors import MicroCinemaError


@dataclass(frozen=True)
class Codec:
    """How the pictures and the sound of a file are encoded."""

    encoder: str
    pixels: str  # FFmpeg's name of the pixel format
    options: dict[str, str]  # of the encoder
    container: dict[str, str]  # options of the container
    sound: tuple[str, str]  # encoder and sample format
    crf: tuple[int, int] | None = None  # at quality 0 and at 80; None for an encoder without CRF
    max_crf: int = 51
    only_rate: int | None = None  # the only sample rate that the sound's encoder supports, in Hz
    tag: str | None = None  # the codec tag that players expect, where it is not FFmpeg's default


_MOV = {"movflags": "+faststart+use_metadata_tags"}
CODECS = {
    # No macroblock tree: with it, on a processor with AVX-512, x264 wrote different files for equal frames of changing
    # brightness, with one thread as with four.
    "h264": Codec("libx264", "yuv420p", {"preset": "medium", "mbtree": "0"}, _MOV, ("aac", "fltp"), (34, 14)),
    "h265": Codec(
        "libx265", "yuv420p10le", {"preset": "medium", "x265-params": "log-level=error:frame-threads=1:info=0"}, _MOV,
        ("aac", "fltp"), (38, 18), tag="hvc1",
    ),
    "vp9": Codec("libvpx-vp9", "yuv420p", {"b": "0"}, {}, ("libopus", "flt"), (46, 18), 63, 48_000),
    "prores": Codec("prores_ks", "yuv422p10le", {"profile": "3", "vendor": "apl0"}, _MOV, ("pcm_s16le", "s16")),
    "ffv1": Codec("ffv1", "bgr0", {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}, {}, ("flac", "s16")),
}  # fmt: skip
BY_SUFFIX = {".mp4": "h264", ".webm": "vp9", ".mov": "prores", ".mkv": "ffv1"}
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, of AAC; the other encoders support them
PYAV = int(av.__version__.partition(".")[0])
BT709 = 1  # its number in H.273, the same for primaries, transfer and matrix
LIMITED = 1  # FFmpeg's AVCOL_RANGE_MPEG: black is 16 and white 235
_MAX_DRIFT = 0.05  # seconds that sound may be early or late before silence is inserted or samples are dropped


@dataclass
class Sound:
    """Samples (channels, n) in [-1, 1] of 1 or 2 channels, in pieces of any length."""

    rate: int  # samples per second
    channels: int
    pieces: Iterator[np.ndarray]


def whole_sound(samples: Tensor, rate: int) -> Sound:
    """A Sound of samples (channels, n) that are in memory; of more than two channels it has the first two."""
    values = samples[:2].float().clamp(-1, 1).cpu().numpy()
    return Sound(rate, len(values), iter([values]))


# --- writing ---


def write_stream(
    path: Path, frames: Iterator[Tensor], fps: float, codec: str, tags: dict[str, str], quality: int, crf: int | None,
    sound: Sound | None,
) -> int:  # fmt: skip
    """Write frames (3, h, w) and return their number. When an error is raised, the file remains incomplete.

    `codec` is a key of CODECS; `quality`, `crf`, `tags` and `sound` as in write_video.
    """
    kind = CODECS[codec]
    options = dict(kind.options)
    if kind.crf:
        lowest, usual = kind.crf
        options["crf"] = str(round(lowest + (usual - lowest) * quality / 80) if crf is None else crf)
    rate = Fraction(fps).limit_denominator(1001)  # 30000/1001 is exact
    stream, track, count = None, None, 0
    # bitexact: the file has no date and no versions of libraries
    with av.open(str(path), "w", options={"fflags": "+bitexact", **kind.container}) as container:
        container.metadata.update(tags)
        for frame in frames:
            picture = _picture(frame, kind.pixels)
            if stream is None:
                stream = container.add_stream(kind.encoder, rate=rate, options=options)
                stream.height, stream.width = picture.height, picture.width
                stream.pix_fmt = kind.pixels
                if kind.tag:
                    stream.codec_context.codec_tag = kind.tag
                _tag_bt709(stream.codec_context, kind.pixels)
                stream.codec_context.flags |= Flags.bitexact
                stream.codec_context.thread_count = 4  # constant, because the encoders' output depends on it
                track = sound and _Track(container, kind, sound)
            picture.pts, picture.time_base = count, 1 / rate
            container.mux(stream.encode(picture))
            count += 1
            if track:
                track.write(count / rate)
        if stream is None:
            raise MicroCinemaError("a clip without frames cannot be written: give at least one")
        container.mux(stream.encode())
        if track:
            track.close()
    return count


def _picture(frame: Tensor, pixels: str) -> av.VideoFrame:
    """A frame (3, h, w) in the encoder's pixel format. In YUV, where two pixels share a colour, an odd side is made
    even by repeating its last row or column."""
    deep = "10" in pixels
    values = images.to_words(frame) if deep else images.to_bytes(frame)
    if pixels == "bgr0":
        return av.VideoFrame.from_ndarray(values, format="rgb24").reformat(format=pixels)
    rows, columns, _ = values.shape
    values = np.pad(values, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")
    picture = av.VideoFrame.from_ndarray(values, format="rgb48le" if deep else "rgb24")
    picture = picture.reformat(format=pixels, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    _tag_bt709(picture, pixels)
    return picture


def to_rgb(frame: av.VideoFrame, **size: Any) -> np.ndarray:
    """The frame as (h, w, 3) uint8, resized as the arguments `width`, `height` and `interpolation` of PyAV's reformat
    tell. PyAV before 17 converts from BT.601 unless the colour spaces are given."""
    spaces = {"src_colorspace": Colorspace.ITU709, "dst_colorspace": Colorspace.ITU601}
    return frame.reformat(format="rgb24", **(spaces if frame.colorspace == BT709 else {}), **size).to_ndarray()


def _tag_bt709(target: av.VideoFrame | av.VideoCodecContext, pixels: str) -> None:
    if pixels.startswith("yuv"):
        target.colorspace, target.color_range = BT709, LIMITED
        if hasattr(target, "color_primaries"):  # frames have it from PyAV 17 on; the file gets the codec context's
            target.color_primaries = target.color_trc = BT709


class _Track:
    """The sound of a file that is being written, interleaved with its pictures."""

    def __init__(self, container, kind: Codec, sound: Sound):
        encoder, samples = kind.sound
        rate = kind.only_rate or (sound.rate if sound.rate in _RATES else 48_000)
        self.container, self.sound = container, sound
        self.layout = "mono" if sound.channels == 1 else "stereo"
        self.stream = container.add_stream(encoder, rate=rate, layout=self.layout)
        self.stream.codec_context.flags |= Flags.bitexact
        self.resampler = av.AudioResampler(samples, self.layout, rate)
        self.rest = np.empty((sound.channels, 0), np.float32)
        self.position = 0  # the number of samples written, at the sound's own rate

    def write(self, seconds: Fraction) -> None:
        """Write the sound up to this time, or to its end."""
        count = int(seconds * self.sound.rate) - self.position
        pieces, length = [self.rest], self.rest.shape[1]
        while length < count and (piece := next(self.sound.pieces, None)) is not None:
            pieces.append(piece)
            length += piece.shape[1]
        joined = np.concatenate(pieces, 1)
        samples, self.rest = joined[:, :count], joined[:, count:]
        if samples.shape[1]:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts = self.sound.rate, self.position
            frame.time_base = Fraction(1, self.sound.rate)
            self.position += samples.shape[1]
            self._encode(frame)

    def close(self) -> None:
        """Write what the resampler and the encoder have buffered."""
        self._encode(None)
        self.container.mux(self.stream.encode())

    def _encode(self, frame: av.AudioFrame | None) -> None:
        for resampled in self.resampler.resample(frame):
            self.container.mux(self.stream.encode(resampled))


# --- reading ---


@dataclass
class Stream:
    """The pictures (h, w, 3) of a file in uint8, which can be read once, and what its packets show before decoding."""

    fps: float
    count: int  # of the pictures
    pictures: Iterator[np.ndarray]
    sound: Sound | None
    notes: list[str] = field(default_factory=list)  # how the pictures differ from the file's, one sentence each


@dataclass(frozen=True)
class _Packets:
    """What the packets of a file show without decoding."""

    count: int  # of the pictures' packets
    times: list[Fraction]  # when the frames are shown, sorted, in seconds
    average: Fraction  # frames per second
    tracks: list[tuple[int, int, int]]  # index, sample rate and channels of each track of sound
    truncated: bool


def open_stream(path: Path) -> Stream:
    """Read the packets of a file without decoding them, and return what decodes them when it is needed.

    Raises MicroCinemaError for a truncated file, FFmpegError and OSError for one that cannot be read.
    """
    packets = _read_packets(path)
    times, tracks = packets.times, packets.tracks
    if not times:
        raise MicroCinemaError(f"'{path}' is broken or holds no frames: choose another video")
    if packets.truncated:
        raise _cut_off(path, times)
    notes = []
    if len(tracks) > 1:
        notes.append(f"'{path}' has {len(tracks)} tracks of sound: the first is kept")
    rate, steady = _rate(times, packets.average)
    decoded, count = _decoded(path, times), len(times)
    if steady:
        pictures = (picture for _, picture in decoded)
    else:
        count = int((times[-1] - times[0]) * rate + Fraction(1, 2)) + 1
        if rate < 0.01 or count > 100 * len(times) + 1000:
            raise MicroCinemaError(
                f"the times in '{path}' are broken: {len(times)} frames would last {float(times[-1] - times[0]):.3g} "
                "s: save it anew"
            )
        notes.append(
            f"'{path}' shows its frames for different times: it is read at {float(rate):.4g} frames per second, each "
            "frame as often as it is shown"
        )
        pictures = _resampled(decoded, times[0], rate, count)
    sound = _sound(path, *tracks[0], float(times[0])) if tracks and all(tracks[0][1:]) else None
    return Stream(float(rate), count, pictures, sound, notes)


def _read_packets(path: Path) -> _Packets:
    """Read the packets of all streams. Raises MicroCinemaError for a file without pictures."""
    with open_container(path) as container:
        if not container.streams.video:
            raise MicroCinemaError(f"'{path}' has no pictures in it: choose a video")
        stream = container.streams.video[0]
        kind, length = container.format.name, container.duration and container.duration / av.time_base
        length = length if "matroska" in kind or "mov" in kind else None  # other formats estimate it from the packets
        declared = stream.frames if kind == "avi" else 0  # mp4 also counts frames that its edit list leaves out
        average = stream.average_rate or stream.guessed_rate or Fraction(24)
        tracks = [(track.index, track.rate, track.channels) for track in container.streams.audio]
        count, end, incomplete, times = 0, 0.0, False, []
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts
            if packet.stream.index == stream.index and (packet.size or time is not None):
                count, incomplete = count + 1, packet.is_corrupt
                if packet.size and not packet.is_discard:
                    times.append(count / average if time is None else time * packet.time_base)
            if time is not None:
                end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
    shown = max(count, round(max(times, default=0) * average) + 1)  # frames that AVI drops have no packets
    truncated = incomplete or shown < declared or bool(length and length - end > max(0.1, 2 / average))
    return _Packets(count, sorted(times), average, tracks, truncated)


def read_tags(path: Path) -> dict[str, str]:
    """The metadata of a file's container. Raises FFmpegError and OSError for one that cannot be read."""
    with open_container(path) as container:
        return dict(container.metadata)


def open_container(source: Path | BinaryIO) -> Any:
    """A file, or what reads and seeks like one, as PyAV's container. Raises FFmpegError and OSError."""
    options: Any = {} if PYAV >= 19 else {"metadata_errors": "replace"}  # later ones never raise for a tag
    return av.open(str(source) if isinstance(source, Path) else source, **options)


def _cut_off(path: Path, times: list[Fraction]) -> MicroCinemaError:
    seconds = float(max(times) - min(times)) if times else 0
    return MicroCinemaError(
        f"'{path}' is cut off: its pictures end after {seconds:.2f} s, before the end that it tells of: fetch it "
        "again, or save what there is as a new file"
    )


def _rate(times: list[Fraction], average: Fraction) -> tuple[Fraction, bool]:
    """Frames per second, and whether the rate is constant: every frame lies within 0.6 frames of its time at it."""
    if len(times) == 1:
        return average, True
    gaps = [after - before for before, after in pairwise(times)]
    duration, typical = times[-1] - times[0], median(gaps)
    measured = [(len(times) - 1) / duration, 1 / typical] if typical > 0 else []
    rates = [average, *(Fraction(rate).limit_denominator(1001) for rate in measured)]
    for rate in rates:
        drift = max(abs((time - times[0]) * rate - index) for index, time in enumerate(times))
        if drift < 0.6 and max(abs(gap * rate - 1) for gap in gaps) < 0.6:  # timestamps in files are rounded
            return rate, True
    return min(rates[-1], Fraction(240)), False


def _decoded(path: Path, times: list[Fraction]) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Every frame with its time in seconds. Raises MicroCinemaError where one cannot be decoded."""
    last = times[0]

    def damaged() -> MicroCinemaError:
        return MicroCinemaError(f"'{path}' is damaged at {float(last - times[0]):.2f} s: save it anew, or cut it there")

    with open_container(path) as container:
        stream = container.streams.video[0]
        try:
            for index, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise damaged()
                last = times[min(index, len(times) - 1)] if frame.pts is None else frame.pts * frame.time_base
                # A phone that is held upright stores rotated pictures, and the angle.
                yield last, np.rot90(to_rgb(frame), round(frame.rotation / 90)).copy()
        except FFmpegError as error:
            raise damaged() from error
    if times[-1] - last > 1.5 * (times[-1] - times[0]) / max(1, len(times) - 1):
        raise damaged()


def _resampled(
    pictures: Iterator[tuple[Fraction, np.ndarray]], start: Fraction, rate: Fraction, count: int
) -> Iterator[np.ndarray]:
    """The picture that is shown at each of `count` equidistant times."""
    current, following = None, next(pictures, None)
    for index in range(count):
        while following and (current is None or following[0] <= start + (index + Fraction(1, 2)) / rate):
            current, following = following[1], next(pictures, None)
        if current is not None:
            yield current


def _sound(path: Path, index: int, rate: int, channels: int, start: float) -> Sound:
    """The sound of a file from its first picture on, with silence in its gaps."""
    channels = min(channels, 2)

    def pieces() -> Iterator[np.ndarray]:
        position = 0
        try:
            resampler = av.AudioResampler("fltp", "mono" if channels == 1 else "stereo", rate)
            with open_container(path) as container:
                for frame in container.decode(container.streams[index]):
                    due = position
                    if frame.pts is not None:
                        due = round((float(frame.pts * frame.time_base) - start) * rate)
                    for part in resampler.resample(frame):
                        samples, late = part.to_ndarray(), due - position
                        if position and abs(late) < _MAX_DRIFT * rate:  # timestamps in files are rounded
                            late = 0
                        samples = samples[:, max(0, -late) :]
                        for silence in (min(rate, late - done) for done in range(0, late, rate)):
                            yield np.zeros((channels, silence), np.float32)
                        position += max(0, late) + samples.shape[1]
                        due = position
                        if samples.shape[1]:
                            yield samples
        except (FFmpegError, ValueError) as error:  # ValueError: its layout or rate changes
            time = f"{position / rate:.2f} s"
            raise MicroCinemaError(
                f"the sound of '{path}' is damaged at {time}: save the video anew, or without its sound"
            ) from error

    return Sound(rate, channels, pieces())
