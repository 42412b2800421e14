"""Films moved photographs: noise and the compression of real clips, whose artefacts stay and come from frame to frame.

A coded film repeats in one frame what it has in another: a block that hardly changes is not coded anew, so that its
noise stands still, and slow motion comes in jumps. A frame between two others is like that too, and a network that
has only seen clean ones loses against a blend where little moves.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from ..errors import MicroCinemaError
from .moved_photographs import Photographs, choice, draw_scene, normal, to_tensor, uniform

FRAMES = 5  # of a film: the end frames and those at 1/4, 1/2 and 3/4 of the time between them
NOISE = 0.015  # standard deviation of colours from 0 to 1; that of a film is |N(0, NOISE²)|
# Codecs with the range of their quality: JPEG's from 1 to 95, x264's constant rate factor, MPEG-4's quantiser.
CODECS = (
    (None, (0, 0)), ("jpeg", (30, 95)), ("libx264", (12, 34)), ("libx264", (12, 34)), ("libx264", (12, 34)),
    ("mpeg4", (2, 9)), ("msmpeg4v2", (2, 9)),
)  # fmt: skip
KEY_FRAMES = (3, 5, 250)  # one frame in so many does not depend on others
DECODERS = {"libx264": "h264"}


def draw_film(photographs: Photographs, seed: int, side: int) -> Tensor:
    """Draw a scene and film it: FRAMES frames (t, 3, side, side) in [0, 1]. `side` is even."""
    generator = Generator().manual_seed(seed)
    times = [index / (FRAMES - 1) for index in range(-1, FRAMES)]  # coded with one before
    frames, _ = draw_scene(photographs, generator, times, side)
    if uniform(generator) < 0.6:
        frames = frames + abs(normal(generator, NOISE)) * torch.randn(frames.shape, generator=generator)
    codec, (low, high) = choice(generator, CODECS)
    quality, key_frames = int(uniform(generator, low, high + 1)), choice(generator, KEY_FRAMES)
    pictures = [Image.fromarray(picture) for picture in _to_bytes(frames)]
    if codec == "jpeg":
        pictures = [_jpeg(picture, quality) for picture in pictures]
    elif codec:
        pictures = _coded(pictures, codec, quality, key_frames)
    return torch.stack([to_tensor(picture) for picture in pictures[1:]])


def _to_bytes(frames: Tensor) -> np.ndarray:
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality)
    return Image.open(file)


def _coded(pictures: list[Image.Image], codec: str, quality: int, key_frames: int) -> list[Image.Image]:
    """Pictures after coding as a film. Raises MicroCinemaError where PyAV was built without the codec."""
    try:
        encoder = av.CodecContext.create(codec, "w")
    except ValueError as error:
        raise MicroCinemaError(f"this PyAV cannot write {codec}: install PyPI's own, 'pip install av'") from error
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = pictures[0].size
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
    encoder.gop_size, encoder.thread_count = key_frames, 1
    if codec == "libx264":
        # Rarely, mbtree does not give the same bytes twice.
        encoder.options = {"crf": str(quality), "preset": "veryfast", "mbtree": "0"}
    else:
        encoder.qmin = encoder.qmax = quality
    decoder = av.CodecContext.create(DECODERS.get(codec, codec), "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.width, decoder.height, decoder.pix_fmt, decoder.thread_count = *pictures[0].size, "yuv420p", 1
    frames = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_image(picture).reformat(format="yuv420p")
        frame.pts = index
        frames += [decoded for packet in encoder.encode(frame) for decoded in decoder.decode(packet)]
    frames += [decoded for packet in encoder.encode(None) for decoded in decoder.decode(packet)]
    frames += decoder.decode(None)
    return [frame.to_image() for frame in frames]
