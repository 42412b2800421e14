"""The demo model's text tower learns to read before the video model learns to move, and is frozen then, as SD2.1's is.

Trained together with the video model it never told left from right: at first the two cost the same, so the tower let
their difference fade (from 4 to 0.7 in a norm of 19 over 500 steps), and what is not told apart cannot be learned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..model.text import TextEncoder
from ..model.unet import pooled
from .captions import MEANINGS, random_caption

BATCH = 128
UNIT = 8.0  # the plain speed, as a length in the pooled states


def learn_to_read(text: TextEncoder, steps: int, seed: int) -> torch.Tensor:
    """Train the tower, which must be at least MEANINGS wide, until its pooled states hold what captions say, each
    meaning along a direction of its own. The network's motion embedding pools them alike.

    Returns what takes pooled states to meanings, (MEANINGS, width)."""
    rng = np.random.default_rng(seed)
    # CLIP starts its words at 0.02, almost alike.
    nn.init.normal_(text.transformer.embeddings["token_embedding"].weight, std=0.5)
    width = text.config.width
    directions = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    meanings_of = directions[:, :MEANINGS].T / UNIT
    optimizer = torch.optim.AdamW(text.parameters(), lr=2e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        captions, meanings = zip(*(random_caption(rng) for _ in range(BATCH)), strict=True)
        meaning = torch.from_numpy(np.stack(meanings))
        states = text(text.tokenizer(list(captions)))
        read = pooled(states)[:, 0] @ meanings_of.T
        loss = (read - meaning).square().sum() / meaning.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"text: {steps} steps, share of the meaning that is not read {loss.item():.3g}", flush=True)
    return meanings_of
