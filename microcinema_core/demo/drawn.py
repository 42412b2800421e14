"""The drawn scenes as a source of clips for the trainer: no videos are needed, and the truth about them is known."""

from __future__ import annotations

import numpy as np
import torch

from ..config import ModelConfig
from ..errors import MicroCinemaError
from ..training.data.samples import Clip
from .captions import all_words
from .scenes import DRAWING, draw_clip


class DrawnClips:
    """Clips number 0 to `count` − 1 of the drawn scenes, in the frames and the size of a model, as samples.Clips.

    A clip is drawn when it is read, and is the same in every epoch.
    """

    def __init__(self, count: int, model: ModelConfig):
        """Raises MicroCinemaError for a model whose clips are not square, as the scenes are."""
        if model.width != model.height:
            raise MicroCinemaError(
                f"data.scenes are square, the model's clips {model.width}x{model.height}: give it equal sides"
            )
        self.model = model
        self.identity = f"drawn scenes {DRAWING}, {count} clips"
        self.sizes = [(model.width, model.height)]
        self.buckets = np.zeros(count, np.int64)

    def name(self, index: int) -> str:
        """The number of the scene."""
        return f"scene {index}"

    def captions(self) -> list[str]:
        """All words of the grammar."""
        return [" ".join(all_words())]

    def read(self, index: int, visit: int) -> Clip:
        """Draw a clip."""
        rate = 1.0 if self.model.network.condition == "centre" else 0.25
        clip = draw_clip(index, frames=self.model.network.frames, size=self.model.width, rate=rate)
        return Clip(clip.caption, (clip.frames * 255).round().to(torch.uint8))
