"""Clips in and out: mp4 (H.264) and webm (VP9) through PyAV, gif and animated webp through Pillow, and PNG sequences.

A clip is (t, 3, h, w) float32 RGB in [0, 1] with a rate in frames per second. Equal clips give equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from . import images
from .errors import MicroCinemaError

if TYPE_CHECKING:
    import av  # imported where a stream is opened: not before the network has done its work

# Encoder, its options, the container's options. No macroblock tree: with it, and with one thread as with four, x264 on
# a processor with AVX-512 wrote different files for equal frames whose brightness changes.
CODECS = {
    ".mp4": ("libx264", {"preset": "medium", "mbtree": "0"}, {"movflags": "+faststart+use_metadata_tags"}),
    ".webm": ("libvpx-vp9", {"b": "0"}, {}),
}
CRF = {".mp4": (34, 14), ".webm": (46, 18)}  # at quality 0 and at 80
SOUND = {".mp4": ("aac", "fltp", None), ".webm": ("libopus", "flt", 48_000)}  # encoder, its samples, its only rate
TICKS = {".gif": 10, ".webp": 1}  # milliseconds: the unit in which these formats say how long a frame is shown
MOST_FPS = {".mp4": 10_000, ".webm": 1000, ".gif": 50, ".webp": 1000}
BT709 = 1  # its number in H.273, for primaries, transfer and matrix alike
LIMITED = 1  # FFmpeg's AVCOL_RANGE_MPEG: black is 16 and white 235
DESCRIPTION = 0x010E  # EXIF tag ImageDescription
GRAPH_TAGS = {"prompt": 0x0110, "workflow": 0x010F}  # EXIF tags in which ComfyUI looks for a graph
MOST_VALUES = 2**28  # read_video: 1 GiB of floats


def check_output(path: str | Path, fps: float | None = None) -> None:
    """Raise MicroCinemaError unless a clip (of that rate) can be written to `path`."""
    images.check_output(path, tuple(MOST_FPS))
    most = MOST_FPS[Path(path).suffix.lower()]
    if fps is not None and fps > most:
        raise MicroCinemaError(f"'{path}' can hold {most} frames per second, not {fps:g}: lower the fps or write mp4")


Audio = tuple[torch.Tensor, int]  # samples (channels, n) in [-1, 1], and how many make a second


def write_video(
    path: str | Path,
    frames: torch.Tensor | Iterable[torch.Tensor],
    fps: float,
    metadata: dict[str, Any] | None = None,
    *,
    quality: int = 80,
    loop: int = 0,
    audio: Audio | None = None,
) -> None:
    """Write frames (3, h, w), all of one size, as mp4, webm, gif or webp by the suffix of `path`.

    mp4 and webm: 4:2:0, BT.709 in limited range, an odd side padded to even by repeating its last line; `audio` (AAC,
    Opus) is cut where the pictures end. gif and webp: played `loop` times, 0 for ever; equal neighbours are stored once
    and shown longer. `quality` is 0 … 100; gif has none.
    Each entry of `metadata` becomes a tag of the file; values that are not text are written as JSON.
    The file appears whole, or not at all when `frames` raises. Raises MicroCinemaError as `check_output` does.
    """
    path = Path(path)
    check_output(path, fps)
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    pictures = (images.to_bytes(frame) for frame in frames)
    with images.whole_file(path) as part:
        if path.suffix.lower() in CODECS:
            _write_stream(part, pictures, fps, tags, quality, audio)
        else:
            _write_animation(part, list(pictures), fps, tags, quality, loop)


def write_sequence(
    folder: str | Path, frames: torch.Tensor | Iterable[torch.Tensor], metadata: dict[str, str] | None = None
) -> list[Path]:
    """Write frames (3, h, w) as 00001.png, 00002.png, … into a new folder, which appears whole or not at all."""
    folder = Path(folder)
    if folder.exists():
        raise MicroCinemaError(f"'{folder}' exists already: choose another name")
    notes = PngInfo()
    for key, value in (metadata or {}).items():
        notes.add_text(key, value)
    with images.whole_file(folder) as part:
        part.mkdir()
        try:
            for index, frame in enumerate(frames, 1):
                Image.fromarray(images.to_bytes(frame)).save(part / f"{index:05}.png", pnginfo=notes)
        except BaseException:
            shutil.rmtree(part)
            raise
    return sorted(folder.iterdir())


def read_video(path: str | Path, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, float]:
    """All frames (t, 3, h, w) and fps; each frame cut and resized to `size` (width, height) if given.

    Raises MicroCinemaError for a missing or broken file and for one that memory is not likely to hold.
    """
    import av

    path = Path(path)
    reader = _read_animation if path.suffix.lower() in TICKS else _read_stream
    frames = []
    try:
        if path.is_dir():
            raise MicroCinemaError(f"'{path}' is a folder: name a video in it")
        fps, pictures = reader(path)
        for picture in pictures:
            frame = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
            frames.append(images.fit(frame, *size) if size else frame)
            if len(frames) * frames[0].numel() > MOST_VALUES:
                raise MicroCinemaError(f"'{path}' has too many large frames for memory: cut it or give a smaller size")
    except FileNotFoundError as error:
        raise MicroCinemaError(f"the video '{path}' does not exist: check its name and folder") from error
    except (OSError, SyntaxError, EOFError, av.FFmpegError) as error:  # Pillow, Pillow, Pillow, PyAV
        raise MicroCinemaError(f"'{path}' is broken or no video that can be read: save it anew as mp4") from error
    if not frames:
        raise MicroCinemaError(f"'{path}' is broken or holds no frames: choose another video")
    return torch.stack(frames), fps


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The file's tags, names in lower case, JSON objects and lists decoded: what `write_video` was given, and more."""
    if Path(path).suffix.lower() in TICKS:
        with Image.open(path) as image:
            tags = _description(image)["tags"]
    else:
        import av

        with av.open(str(path)) as container:
            tags = dict(container.metadata)
    return {key.lower(): _decoded(value) for key, value in tags.items()}


def _decoded(text: str) -> Any:
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _write_stream(
    path: Path, pictures: Iterator[np.ndarray], fps: float, tags: dict[str, str], quality: int, audio: Audio | None
) -> None:
    import av
    from av.codec.context import Flags
    from av.video.reformatter import ColorRange, Colorspace

    suffix = path.suffix.lower()
    codec, options, container_options = CODECS[suffix]
    lowest, usual = CRF[suffix]
    options = {**options, "crf": str(round(lowest + (usual - lowest) * quality / 80))}
    rate = Fraction(fps).limit_denominator(1001)  # keeps 30000/1001
    stream = sound = None
    # bitexact: no date and no library versions in the file
    with av.open(str(path), "w", options={"fflags": "+bitexact", **container_options}) as container:
        container.metadata.update(tags)
        for index, picture in enumerate(pictures):
            picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                _tag_bt709(stream.codec_context)
                stream.codec_context.flags |= Flags.bitexact
                stream.codec_context.thread_count = 4  # fixed: the encoders' output depends on it
                if audio:
                    sound = container.add_stream(SOUND[suffix][0], rate=SOUND[suffix][2] or audio[1])
                    sound.codec_context.flags |= Flags.bitexact
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            _tag_bt709(frame)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        if stream is None:
            raise MicroCinemaError("a clip without frames cannot be written: give at least one")
        container.mux(stream.encode())
        if sound:
            for frame in _sound_frames(audio, suffix, (index + 1) / rate):
                container.mux(sound.encode(frame))
            container.mux(sound.encode())


def _sound_frames(audio: Audio, suffix: str, seconds: Fraction) -> Iterator[av.AudioFrame]:
    import av

    samples, rate = audio
    samples = samples[:2, : int(seconds * rate)].float().clamp(-1, 1).cpu().contiguous().numpy()
    layout = "mono" if len(samples) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    _, kind, only_rate = SOUND[suffix]
    resampler = av.AudioResampler(kind, layout, only_rate or rate)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _tag_bt709(target: av.VideoFrame | av.VideoCodecContext) -> None:
    target.colorspace = target.color_primaries = target.color_trc = BT709
    target.color_range = LIMITED


def _read_stream(path: Path) -> tuple[float, Iterator[np.ndarray]]:
    import av

    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise MicroCinemaError(f"'{path}' has no pictures in it: choose a video")
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate or Fraction(24)

    def pictures():
        with container:
            for frame in container.decode(stream):
                # a phone held upright stores its pictures lying down, and how to turn them
                yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).copy()

    return float(rate), pictures()


def _write_animation(
    path: Path, pictures: list[np.ndarray], fps: float, tags: dict[str, str], quality: int, loop: int
) -> None:
    if not pictures:
        raise MicroCinemaError("a clip without frames cannot be written: give at least one")
    tick = TICKS[path.suffix.lower()]
    ends = [round(index * 1000 / fps / tick) * tick for index in range(len(pictures) + 1)]
    options = {"save_all": True, "loop": loop, "duration": np.diff(ends).tolist()}
    frames = [Image.fromarray(picture) for picture in pictures]
    description = json.dumps({"fps": fps, "tags": tags})
    if path.suffix.lower() == ".gif":
        # one palette for all frames, or a colour at rest would flicker
        palette = Image.fromarray(np.concatenate(pictures[:: 1 + len(pictures) // 32])).quantize(256)
        frames = [frame.quantize(palette=palette) for frame in frames]
        options |= {"comment": description.encode(), "optimize": False}
    else:
        exif = Image.Exif()
        exif[DESCRIPTION] = description
        for key, tag in GRAPH_TAGS.items():
            if key in tags:
                exif[tag] = f"{key}:{tags[key]}"
        options |= {"exif": exif, "quality": min(100, quality + 10)}
    frames[0].save(path, append_images=frames[1:], **options)


def _read_animation(path: Path) -> tuple[float, Iterator[np.ndarray]]:
    """A foreign file's frames are taken one by one; of ours, a frame that stands for several comes as often."""
    with Image.open(path) as image:
        fps = _description(image)["fps"]
        frames = [(np.array(f.convert("RGB")), f.info.get("duration", 0)) for f in ImageSequence.Iterator(image)]
    if fps is not None:
        return fps, (picture for picture, shown in frames for _ in range(max(1, round(shown * fps / 1000))))
    total = sum(shown for _, shown in frames) or 100 * len(frames)  # a duration of 0 is shown as 100 ms by browsers
    return 1000 * len(frames) / total, (picture for picture, _ in frames)


def _description(image: Image.Image) -> dict[str, Any]:
    """What `_write_animation` noted in a gif's comment or a webp's EXIF; a foreign text is the tag "comment"."""
    text = image.info.get("comment", b"").decode(errors="replace") or image.getexif().get(DESCRIPTION, "")
    noted = _decoded(text)
    if isinstance(noted, dict) and {"fps", "tags"} <= noted.keys():
        return noted
    return {"fps": None, "tags": {"comment": text} if text else {}}
