"""The clips of videos, cut and decoded while training runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .buckets import assign
from .order import generator
from .samples import CLIP, Clip
from .videos import VideoSet


class VideoClips:
    """Clips of `frames` frames cut from videos, each at one of the rates `fps`, in that of the sizes (width, height)
    whose aspect ratio is the nearest."""

    def __init__(self, videos: VideoSet, frames: int, fps: tuple[float, ...], sizes: list[tuple[int, int]], seed: int):
        self.videos, self.frames, self.fps, self.sizes, self.seed = videos, frames, fps, sizes, seed
        self.identity = videos.identity
        self.buckets: np.ndarray = assign(videos.shapes, sizes)

    def name(self, index: int) -> str:
        """The video's id."""
        return self.videos[index].id

    def captions(self) -> Iterator[str]:
        """The captions of all videos."""
        return (video.caption for video in self.videos)

    def read(self, index: int, visit: int) -> Clip:
        """Cut a clip; another visit cuts it from another place. Raises Unusable with the reason."""
        random = generator(self.seed, CLIP + visit, index)
        fps = self.fps[int(torch.randint(len(self.fps), (), generator=random))]
        size = self.sizes[int(self.buckets[index])]
        pixels = self.videos.random_clip(index, random, self.frames, fps, size)
        return Clip(self.videos[index].caption, pixels)
