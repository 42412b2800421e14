"""Trains the demo model's text tower. It is trained before the video model, and frozen then, as SD2.1's tower is.

Trained jointly with the video model, the tower did not learn to distinguish left from right. In the beginning both have
the same loss, and the tower reduced the difference of their states (from 4 to 0.7 in 500 steps, at a norm of 19), so
that the video model could not learn it later.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import make_folder, whole_file
from ..model.text import TextEncoder
from .captions import COLOURS, DIRECTIONS, MOTIONS, SPEEDS, THINGS, camera_caption, thing_caption
from .network import pooled
from .scenes import SPEED_PIXELS, SPEED_ROLL, SPEED_ZOOM

BATCH = 128
UNIT = 8.0  # the length in the pooled states that stands for the speed without an adverb
# The parts of a meaning: four axes of the camera; a velocity and a mark for each colour; a mark for each kind of thing.
CAMERA = slice(0, 4)
VELOCITIES = slice(4, 4 + 2 * len(COLOURS))
COLOURS_AT, THINGS_AT = VELOCITIES.stop, VELOCITIES.stop + len(COLOURS)
MEANINGS = THINGS_AT + len(THINGS)

_AXES = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
_AXES |= {"out": (2, -1), "in": (2, 1), "counterclockwise": (3, -1), "clockwise": (3, 1)}


def random_caption(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A random caption and its meaning, a vector (MEANINGS,).

    The vector contains the velocity of the camera (x, y, zoom, roll), the velocity of the thing of each colour (x, y),
    all in units of the speed without an adverb; then 1 for each colour and for each kind of thing that moves, else 0.
    """
    meaning = np.zeros(MEANINGS, np.float32)
    things, camera = [(0, False), (0, True), (1, False), (2, False), (1, True)][
        rng.choice(5, p=[0.05, 0.35, 0.25, 0.2, 0.15])
    ]
    clauses = []
    for colour in rng.permutation(len(COLOURS))[:things]:
        motion, thing, speed = str(rng.choice((*DIRECTIONS, "still"))), rng.integers(len(THINGS)), _random_speed(rng)
        clauses.append(thing_caption(tuple(COLOURS)[colour], THINGS[thing], motion, speed, int(rng.integers(6))))
        if motion != "still":
            axis, velocity = axis_velocity(motion, speed)
            meaning[VELOCITIES.start + 2 * colour + axis] = velocity
            meaning[COLOURS_AT + colour] = meaning[THINGS_AT + thing] = 1
    if camera:
        motion, speed = str(rng.choice(MOTIONS)), _random_speed(rng)
        clauses.append(camera_caption(motion, speed, int(rng.integers(6))))
        if motion != "still":
            axis, meaning[axis] = axis_velocity(motion, speed)
    return " and ".join(clauses), meaning


def _random_speed(rng: np.random.Generator) -> str:
    return str(rng.choice(SPEEDS))


def axis_velocity(motion: str, speed: str) -> tuple[int, float]:
    """The axis of a motion in a meaning, and its signed speed relative to the one without an adverb."""
    axis, sign = _AXES[motion]
    if axis == 2:
        return axis, sign * math.log(SPEED_ZOOM[speed]) / math.log(SPEED_ZOOM[""])
    speeds = SPEED_ROLL if axis == 3 else SPEED_PIXELS
    return axis, sign * speeds[speed] / speeds[""]


def trained_text(text: TextEncoder, steps: int, seed: int, file: Path) -> torch.Tensor:
    """Train the tower as train_text does, or load it from `file`, where it was saved by the same settings."""
    settings = {"steps": str(steps), "seed": str(seed), "vocabulary": str(text.config.tokenizer)}
    if file.exists():
        with safe_open(file, "pt") as stored:
            same = stored.metadata() == settings
        if same:
            text.load_state_dict(load_file(file))
            return meanings_of(text.config.width, seed)
    meanings = train_text(text, steps, seed)
    make_folder(file.parent)
    with whole_file(file) as part:
        save_file(text.state_dict(), part, settings)
    return meanings


def meanings_of(width: int, seed: int) -> torch.Tensor:
    """The linear map from pooled states to meanings, (MEANINGS, width), which the tower learns to fit."""
    directions = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    return directions[:, :MEANINGS].T / UNIT


def train_text(text: TextEncoder, steps: int, seed: int) -> torch.Tensor:
    """Train the tower so that its pooled states contain the meaning of a caption (see random_caption).

    Each component of the meaning has a direction of its own in the states, which are pooled as in the network's motion
    embedding. The width of the tower must be MEANINGS or more.

    Returns the result of meanings_of.
    """
    rng = np.random.default_rng(seed)
    nn.init.normal_(text.transformer.token_embedding.weight, std=0.5)  # with CLIP's 0.02 the words are almost equal
    to_meaning = meanings_of(text.config.width, seed)
    optimizer = torch.optim.AdamW(text.parameters(), lr=2e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    loss = torch.zeros(())
    for _ in range(steps):
        captions, meanings = zip(*(random_caption(rng) for _ in range(BATCH)), strict=True)
        meaning = torch.from_numpy(np.stack(meanings))
        states = text(text.tokenizer(list(captions)))
        estimate = pooled(states)[:, 0] @ to_meaning.T
        loss = (estimate - meaning).square().sum() / meaning.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    print(f"text: {steps} steps, share of the meaning that is missing {loss.item():.3g}", flush=True)
    return to_meaning
