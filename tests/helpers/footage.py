"""Videos whose frames carry their number, drawn as a code of eight fields, so that a test reads which frames came out.

The number is in Gray's code: from one frame to the next a single field changes, which is no cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageDraw, ImageOps

from microcinema_core.training.data.cuts import find_cuts, thumbnail

PHOTO = Path(__file__).parents[2] / "pictures" / "photo.jpg"
PICTURES = 11  # different ones
FIELD = 12  # pixels of a field of the code, 4 x 2 of which are in the middle
SIZE = (160, 96)
# Encoder, its options, suffix and pixel format. The groups of pictures are short, so that clips begin within one.
CODECS = {
    "h264": ("libx264", {"x264-params": "keyint=25:bframes=3:b-pyramid=normal:log=none"}, ".mp4", "yuv420p"),
    "h264 open": ("libx264", {"x264-params": "open-gop=1:keyint=15:bframes=3:scenecut=0:log=none"}, ".mp4", "yuv420p"),
    "h264 mkv": ("libx264", {"x264-params": "open-gop=1:keyint=15:bframes=3:scenecut=0:log=none"}, ".mkv", "yuv420p"),
    "h264 ts": ("libx264", {"x264-params": "keyint=25:bframes=3:log=none"}, ".ts", "yuv420p"),
    "h264 4:4:4": ("libx264", {"x264-params": "keyint=25:bframes=2:log=none"}, ".mov", "yuv444p"),
    "h265": ("libx265", {"x265-params": "log-level=none:keyint=20:bframes=3:pools=1"}, ".mp4", "yuv420p10le"),
    "vp9": ("libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}, ".webm", "yuv420p"),
    "mpeg4": ("mpeg4", {"g": "20", "bf": "2", "q": "3"}, ".avi", "yuv420p"),
    "mpeg2": ("mpeg2video", {"g": "15", "bf": "2", "q": "3"}, ".mpg", "yuv420p"),
    "mjpeg": ("mjpeg", {"q": "3"}, ".avi", "yuvj420p"),
    "ffv1": ("ffv1", {"level": "3"}, ".mkv", "bgr0"),
    "gif": ("gif", {}, ".gif", "rgb8"),
    "flv": ("flv", {"g": "20"}, ".flv", "yuv420p"),
}


def picture(which: int | Path, width: int, height: int) -> np.ndarray:
    """One of the different pictures, (height, width, 3): a photograph and what else can be made of it, discs that cover
    each other ("dead leaves"), and clouds, the last two with the spectra of photographs. Or that of a file."""
    if isinstance(which, int):
        return np.asarray(_picture(which % PICTURES).resize((width, height)))
    with Image.open(which) as image:
        return np.asarray(image.convert("RGB").resize((width, height)))


@cache
def _picture(index: int) -> Image.Image:
    random, side = np.random.default_rng(index), 256
    if index % 3 == 0:
        with Image.open(PHOTO) as image:
            photo = image.convert("RGB")
        turned = photo.transpose(Image.Transpose.ROTATE_180)
        red, green, blue = turned.split()
        details = [photo, turned.crop((0, 0, 200, 300)), Image.merge("RGB", (blue, red, green)), ImageOps.invert(photo)]
        return details[index // 3]
    dark, light = np.sort(random.uniform(0, 255, (2, 3)), 0)
    if index % 3 == 1:
        image = Image.new("RGB", (side, side))
        for _ in range(2500):
            radius, (x, y) = min(4 / random.random() ** 0.5, 80), random.uniform(0, side, 2)
            colour = tuple(random.uniform(dark, light).astype(int).tolist())
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return image
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    waves = np.fft.fft2(random.normal(size=(3, side, side))) / np.maximum(frequency, 1 / side)
    clouds = np.moveaxis(np.fft.ifft2(waves).real, 0, -1)
    shares = 0.5 + (clouds - clouds.mean((0, 1))) / clouds.std((0, 1)) / 4
    return Image.fromarray((dark + (light - dark) * shares).clip(0, 255).astype(np.uint8))


def pan(
    count: int, size: tuple[int, int] = SIZE, index: int | Path = 0, speed: float = 0.5
) -> Iterator[np.ndarray]:  # fmt: skip
    """Frames (h, w, 3) of a camera that moves to the right over a picture, `speed` pixels a frame."""
    width, height = size
    whole = picture(index, width + int(count * abs(speed)) + 1, height)
    for number in range(count):
        left = int(number * speed) if speed >= 0 else int((count - number) * -speed)
        yield whole[:, left : left + width]


def cuts(frames: Iterable[np.ndarray]) -> list[int]:
    """The cuts that are found in frames (h, w, 3)."""
    reformatter = VideoReformatter()
    pictures = [av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames]
    return find_cuts(np.stack([thumbnail(frame, reformatter) for frame in pictures]))


def coded(frames: Iterable[np.ndarray], first: int = 0) -> Iterator[np.ndarray]:
    """The frames with their numbers."""
    for number, frame in enumerate(frames, first):
        frame = frame.copy()
        top, left = (frame.shape[0] - 2 * FIELD) // 2, (frame.shape[1] - 4 * FIELD) // 2
        for bit in range(8):
            y, x = top + bit // 4 * FIELD, left + bit % 4 * FIELD
            frame[y : y + FIELD, x : x + FIELD] = 235 if (number ^ number >> 1) >> bit & 1 else 20
        yield frame


def read_numbers(clip, scale: float = 1.0) -> list[int]:
    """The numbers of the frames of a clip (t, 3, h, w) whose pixels are `scale` times as many in a row as the file's.
    Raises AssertionError where a field is neither light nor dark."""
    numbers = []
    for frame in clip:
        height, width = frame.shape[-2:]
        code = 0
        for bit in range(8):
            y = height / 2 + (bit // 4 - 0.5) * FIELD * scale
            x = width / 2 + (bit % 4 - 1.5) * FIELD * scale
            shade = frame[:, round(y) - 1 : round(y) + 1, round(x) - 1 : round(x) + 1].float().mean()
            assert not 90 < shade < 165, f"no code in the middle: {shade}"
            code |= int(shade > 127) << bit
        number = 0
        while code:
            number ^= code
            code >>= 1
        numbers.append(number)
    return numbers


def write_footage(
    path: Path, frames: Iterable[np.ndarray], fps: float = 30, codec: str = "h264", *, times: list[float] | None = None,
    late: float = 0, sound: bool = False, rotation: int = 0, ratio: Fraction | None = None,
) -> Path:  # fmt: skip
    """Write frames (h, w, 3) at `fps`, or each at its time in seconds, the first `late` seconds after 0, and return
    the file with the suffix of its codec."""
    encoder, options, suffix, pixels = CODECS[codec]
    path = path if path.suffix else path.with_suffix(suffix)
    rate = Fraction(fps).limit_denominator(1001)
    base = Fraction(1, 1000) if times else 1 / rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        track = container.add_stream("flac" if suffix == ".mkv" else "aac", rate=48000) if sound else None
        ready = False
        for index, values in enumerate(frames):
            if not ready:
                stream.height, stream.width = values.shape[:2]
                stream.pix_fmt, stream.time_base, ready = pixels, base, True
                stream.codec_context.time_base = base
                if rotation:  # counterclockwise, as in PyAV
                    stream.set_display_rotation(rotation)
                if ratio:
                    stream.sample_aspect_ratio = ratio
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24").reformat(format=pixels)
            at = times[index] if times else index / rate
            frame.pts, frame.time_base = round((at + late) / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            _write_sound(container, track, 2.0)
    return path


def _write_sound(container, track, seconds: float) -> None:
    for index in range(int(seconds * 48000 / 1024)):
        frame = av.AudioFrame(format="s16", layout="stereo", samples=1024)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts, frame.time_base = 48000, index * 1024, Fraction(1, 48000)
        container.mux(track.encode(frame))
    container.mux(track.encode())


def flip_bits(path: Path, at: float, count: int = 40, seed: int = 0) -> None:
    """Change bits around a place of a file, 0 … 1 of its length, as a bad disk does."""
    random, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    first = int(len(content) * at)
    for place in random.integers(first, min(len(content), first + 400), count):
        content[place] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
