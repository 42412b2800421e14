"""Trains the demo model's text tower. It is trained before the video model, and frozen then, as SD2.1's tower is.

Trained jointly with the video model, the tower did not learn to distinguish left from right. In the beginning both have
the same loss, and the tower reduced the difference of their states (from 4 to 0.7 in 500 steps, at a norm of 19), so
that the video model could not learn it later.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import make_folder, whole_file
from ..model.text import TextEncoder
from .captions import MEANINGS, random_caption
from .network import pooled

BATCH = 128
UNIT = 8.0  # the length in the pooled states that stands for the speed without an adverb


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
