"""What all parts of the evaluation share: how a clip is made, and how large its motion should be."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..metrics.motion import lever
from .captions import CAMERA_VERBS, SPEEDS
from .scenes import REFERENCE_SIZE, SPEED_PIXELS, SPEED_ROLL, SPEED_ZOOM

if TYPE_CHECKING:
    from ..pipeline import Pipeline

Item = TypeVar("Item")


def true_magnitude(motion: str, speed: str, size: int) -> float:
    """The magnitude, as in metrics.motion.Motion, of a motion in scenes of size × size pixels."""
    if motion == "still":
        return 0.0
    if motion in ("in", "out"):
        return lever(size, size) * math.log(SPEED_ZOOM[speed])
    if motion in ("clockwise", "counterclockwise"):
        return lever(size, size) * math.radians(SPEED_ROLL[speed])
    return SPEED_PIXELS[speed] * size / REFERENCE_SIZE


def minimum_magnitude(kind: str, size: int) -> float:
    """Half the magnitude of the slowest motion of a kind of scene; below it the motion counts as "still"."""
    motions = CAMERA_VERBS if kind == "camera" else ("left",)
    return min(true_magnitude(motion, speed, size) for motion in motions for speed in SPEEDS) / 2


def run(pipeline: Pipeline, picture: Tensor, prompt: str, **settings) -> Tensor:
    """Pipeline.animate with the settings of the model's header, except those given: a clip in float32 on the CPU."""
    config = pipeline.config
    defaults: dict[str, Any] = {
        "steps": config.steps, "cfg": config.cfg, "lambda_": config.lambda_, "gamma": config.gamma, "churn": 0.0,
    }  # fmt: skip
    return pipeline.animate(picture, prompt, **(defaults | settings)).float().cpu()


def round_trip(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """Encode and decode pictures (n, 3, h, w): the best reconstruction that is possible for the model."""
    autoencoder = pipeline.autoencoder
    pictures = pictures.to(next(autoencoder.parameters()).device)
    return autoencoder.decode(autoencoder.encode(pictures)).clamp(0, 1).float().cpu()


def progress(items: Iterable[Item], label: str) -> Iterable[Item]:
    """The items, with a bar on stderr."""
    from tqdm import tqdm

    return tqdm(items, desc=label, file=sys.stderr, unit="clip")
