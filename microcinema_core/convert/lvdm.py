"""The spatial layers of DynamiCrafter (Xing et al. 2023) and VideoCrafter2 (Chen et al. 2024), as they compute there.

Both were trained further from Stable Diffusion's, together with the temporal layers around them. Two things differ from
our network. DynamiCrafter's input convolution has 8 planes, the noisy latent and then the condition's latent: the last
four become `condition_in`. And both add an embedding of the frame rate to that of the time: at one frame rate it is a
constant, which is added to the time embedding's last bias.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import NETWORK
from ..model.layers import sinusoids
from .stored import Source, Stored, take

FIRST, LAST_BIAS = "input_blocks.0.0.weight", "time_embed.2.bias"


def spatial_layers(
    path: Path,
    stored: dict[str, Stored],
    names: dict[str, str],
    expected: dict[str, Tensor],
    model: str,
    planes: int,
    rate: int | None,
) -> Source:
    """Remove the spatial layers from `stored`: their tensors by our keys, and the names of those folded into others.

    names: the file's name of each of our keys. planes: the input convolution's. rate: the frame rate, or stride between
    frames, whose embedding is kept. Raises MicroCinemaError as take does.
    """
    latents = expected[FIRST].shape[1]
    shapes = expected | {FIRST: torch.empty(len(expected[FIRST]), planes, 3, 3, device="meta")}
    tensors = take(path, stored, {key: [name] for key, name in names.items()}, shapes, model)
    if planes > latents:
        joint = tensors[FIRST]
        tensors |= {FIRST: joint.planes(0, latents), "condition_in.weight": joint.planes(latents, planes)}
    if rate is None:
        return Source(tensors, {})
    embedding = [key for key in names if key.startswith("time_embed.")]  # the other has the same four tensors
    spellings = {  # the second in DynamiCrafter-256
        key: [NETWORK + key.replace("time_embed", name) for name in ("fps_embedding", "framestride_embed")]
        for key in embedding
    }
    folded = take(path, stored, spellings, expected, model)
    tensors[LAST_BIAS] = _with_rate(tensors[LAST_BIAS], folded, rate)
    reason = f"its condition on the frame rate, kept at {rate} in the time embedding's bias"
    return Source(tensors, {reason: {tensor.key for tensor in folded.values()}})


def _with_rate(bias: Stored, embedding: dict[str, Stored], rate: int) -> Stored:
    """The bias plus the embedding of the frame rate."""

    def read() -> Tensor:
        values = {key.removeprefix("time_embed."): tensor.read().float() for key, tensor in embedding.items()}
        rates = sinusoids(torch.tensor([rate]), values["0.weight"].shape[1])
        hidden = F.silu(F.linear(rates, values["0.weight"], values["0.bias"]))
        return bias.read().float() + F.linear(hidden, values["2.weight"], values["2.bias"])[0]

    return Stored(bias.key, bias.shape, bias.dtype, read)
