"""The clips that are compared, (3, t, h, w) in uint8: windows of real clips, and what the model makes of a picture."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import files, images, video
from ..config import ModelConfig
from ..errors import MicroCinemaError
from ..pipeline import Pipeline, check_size
from .sets import Item


@dataclass(frozen=True)
class Options:
    """How clips are read and made; the model's own settings are filled in."""

    frames: int  # of a compared clip
    width: int
    height: int
    steps: int
    cfg: float
    lambda_: float
    gamma: float
    seed: int  # item n is made with seed + n
    interpolate: int  # passes
    real_fps: float | None  # frames a second of the real windows; None: consecutive frames


def check_options(options: Options, base: ModelConfig, between: ModelConfig | None) -> None:
    """Raise MicroCinemaError where the model cannot make clips of that size, and where its clips, interpolated, have
    fewer frames than are compared."""
    check_size(options.width, options.height, base)
    inserted = between.network.frames - 1 if between else 1
    made = (base.network.frames - 1) * inserted**options.interpolate + 1
    if made < options.frames:
        cure = "add passes with --interpolate, or" if options.interpolate < 2 else ""
        raise MicroCinemaError(
            f"the clips have {made} frames, fewer than the {options.frames} that are compared: {cure} lower --frames"
        )


def real_window(item: Item, options: Options) -> Tensor:
    """The frames (t, 3, h, w) in uint8 of an item's real clip, from a place drawn by the seed, cut and resized.

    Raises MicroCinemaError for a clip that is too short or broken.
    """
    opened = video.open_video(item.clip)
    step = opened.fps / options.real_fps if options.real_fps else 1.0
    offsets = [int(place * step) for place in range(options.frames)]
    room = opened.count - offsets[-1]
    if room < 1:
        raise MicroCinemaError(
            f"'{item.clip}' has {opened.count} frames, fewer than the {offsets[-1] + 1} of a window: take it out of "
            "the folder, or lower --frames"
        )
    start = random.Random(f"{options.seed} {item.name}").randrange(room)
    wanted, found = {start + offset for offset in offsets}, {}
    for index, frame in enumerate(opened.frames):
        if index in wanted:
            found[index] = to_uint8(images.fit(frame, options.width, options.height))
        if index == start + offsets[-1]:
            break
    if len(found) < len(wanted):
        raise MicroCinemaError(f"'{item.clip}' has fewer frames than it tells of: save it anew")
    return torch.stack([found[start + offset] for offset in offsets])


class Generator:
    """Makes the clip of an item from its condition picture, or from the centre frame of its real window."""

    def __init__(
        self,
        options: Options,
        pipeline: Pipeline,
        between: Pipeline | None = None,
        pictures: list[Path] | None = None,
        keep: Path | None = None,
    ):
        """`pictures` has one for each item, None for the real ones; clips are kept in the folder `keep`, losslessly."""
        self.options, self.pipeline, self.between = options, pipeline, between
        self.pictures, self.keep = pictures, keep
        if keep:
            files.make_folder(keep)

    def __call__(self, item: Item) -> Tensor:
        """The middle frames (t, 3, h, w) of an item's clip in uint8."""
        kept = self.keep and self.keep / f"{item.label}.mkv"
        if kept and kept.exists():
            frames = to_uint8(video.read_video(kept)[0])
        else:
            frames = self.make(item)
            if kept:
                fps = self.pipeline.config.fps * 4**self.options.interpolate
                video.write_video(kept, frames.float() / 255, fps, {"comment": item.prompt})
        start = (len(frames) - self.options.frames) // 2
        return frames[start : start + self.options.frames]

    def make(self, item: Item) -> Tensor:
        """All frames of an item's clip in uint8. Raises MicroCinemaError as Pipeline.animate does."""
        o, seed = self.options, self.options.seed + item.number
        if self.pictures:
            picture = images.load_picture(self.pictures[item.number])
        else:
            picture = real_window(item, o)[o.frames // 2].float() / 255
        frames = self.pipeline.animate(
            picture, item.prompt, steps=o.steps, cfg=o.cfg, lambda_=o.lambda_, gamma=o.gamma, seed=seed, width=o.width,
            height=o.height,
        )  # fmt: skip
        if self.between and o.interpolate:
            frames = self.between.interpolate(frames, passes=o.interpolate, seed=seed)
        return to_uint8(frames)


def to_uint8(frames: Tensor) -> Tensor:
    """Pictures in [0, 1] → 0 … 255, rounded: what a file of eight bits holds, so that both sides have the same."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
