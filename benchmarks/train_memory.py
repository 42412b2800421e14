"""The memory of a training of the full-size model, computed: no weight is allocated, no arithmetic is done.

    python benchmarks/train_memory.py [--row N] [--width 64]      prints rows of docs/training.md

Weights, gradients, moments and the average are counted. Activations are the largest sum, in a forward and a backward
pass on torch's fake tensors, of the live storages that are neither weights nor gradients: what is saved for the
backward pass, temporary results, and bfloat16 copies of weights. The fake tensors are the CPU's, which a machine
without a GPU has, but do what a GPU does: norms in float32, and an attention that keeps no weights.
Not in it: cuDNN's and cuBLAS's workspaces, CUDA's context, fragmentation; benchmarks/train_step.py measures these.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from microcinema_core.config import BASE, INTERPOLATION, ModelConfig
from microcinema_core.model import build, layers
from microcinema_core.training.objective import VideoModel
from microcinema_core.training.parameters import memory, select

# configuration, trained, optimiser, checkpointing, clips at a time, processes among which FSDP2 divides the model
ROWS = [
    ("base", "all", "adamw", True, 1, 1),
    ("base", "all", "adamw", True, 4, 1),
    ("base", "all", "adamw8bit", True, 4, 1),
    ("base", "all", "adamw", True, 4, 4),
    ("base", "new", "adamw", True, 1, 1),
    ("base", "new", "adamw8bit", True, 1, 1),
    ("base", "lora", "adamw8bit", True, 1, 1),
    ("base", "all", "adamw", False, 1, 1),
    ("base", "all", "adamw8bit", True, 1, 1),
    ("interpolation", "all", "adamw", True, 4, 1),
    ("base", "new", "adamw8bit", False, 1, 1),
    ("base", "all", "adamw", False, 4, 1),
]
CARDS = (16, 24, 32, 40, 48, 80, 96, 141)  # GB
ENCODERS = 0.084 * 4 + 0.340 * 4  # GB of the VAE and the text encoder, which samples need on the GPU
COMPUTED: dict[tuple, float] = {}  # activations in GB, which the optimiser and FSDP2 do not change
RESERVE = 2.0  # GB for CUDA's context, workspaces and fragmentation


class Live(TorchDispatchMode):
    """Adds up the bytes of the storages that are made in its block and still alive, and keeps the largest sum."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.live:
            return
        self.live[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key)


class _FlashAttention(torch.autograd.Function):
    """What a fused attention keeps: its inputs, its output, and a number for each row of each head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        out, sums = torch.empty_like(q), q.new_empty(q.shape[0], heads, q.shape[1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return *(torch.empty_like(t) for t in ctx.saved_tensors[:3]), None


def _in_float32(norm):
    """A norm as CUDA's autocast runs it."""

    def run(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return norm(x.float(), shape, weight.float(), bias.float(), eps)

    return run


def activations(model: ModelConfig, network: nn.Module, clips: int, checkpointing: bool) -> int:
    """The largest number of bytes beside weights and gradients, in a fake forward and backward pass."""
    network.gradient_checkpointing = network.appearance.gradient_checkpointing = checkpointing  # pyright: ignore
    whole, side, n = VideoModel(model, network).train(), model.width // 8, model.network
    latents = torch.empty(clips, n.frames, 4, side, side)
    condition = torch.empty(clips, 1 if n.condition == "centre" else 2, 4, side, side)
    text = None if n.context_dim is None else torch.empty(clips, 77, n.context_dim)
    timesteps, known = torch.full((clips,), 500), []
    for parameter in whole.parameters():
        known.append(parameter)
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # as from the second micro-batch on
            known.append(parameter.grad)
    patches = [
        mock.patch.object(layers, "attention", lambda q, k, v, heads: _FlashAttention.apply(q, k, v, heads)),
        mock.patch.object(F, "group_norm", _in_float32(F.group_norm)),
        mock.patch.object(F, "layer_norm", _in_float32(F.layer_norm)),
    ]
    with patches[0], patches[1], patches[2], Live(known) as live:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            output = whole(latents, timesteps, condition, text)
        (output.float() - latents).square().mean().backward()
    return live.peak


def row(kind: str, trained: str, optimizer: str, checkpointing: bool, clips: int, parts: int, width: int) -> str:
    """A row of the table."""
    model = {"base": BASE, "interpolation": INTERPOLATION}[kind]
    model = replace(model, network=replace(model.network, model_channels=width))
    network = build(model.network, device="meta")
    select(network, trained)
    with FakeTensorMode():
        for module in network.modules():
            for name, p in module.named_parameters(recurse=False):
                fake = torch.empty(p.shape, dtype=p.dtype, device="cpu", requires_grad=p.requires_grad)
                setattr(module, name, nn.Parameter(fake, p.requires_grad))
        m, key = memory(network, optimizer), (kind, trained, checkpointing, clips)
        if key not in COMPUTED:
            COMPUTED[key] = activations(model, network, clips, checkpointing) / 1e9
        active = COMPUTED[key]
    sizes = [size / 1e9 / parts for size in (m.weights, m.gradients, m.moments, m.averages)]
    total = sum(sizes) + active + ENCODERS
    card = next((f"{card} GB" for card in CARDS if total + RESERVE <= card * 1.024**3 * 0.98), "none")
    name = f"{kind}, {trained}, {optimizer}, {clips} clip{'s' * (clips > 1)}{', checkpointing' * checkpointing}"
    if parts > 1:
        name += f", FSDP2 of {parts}"
    figures = " | ".join(f"{size:.1f}" for size in (*sizes, active, total))
    return f"| {name} | {m.trained / 1e6:,.0f} M | {figures} | {card} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, action="append", help="number of a row (all)")
    parser.add_argument("--width", type=int, default=320, help="channels of the highest resolution")
    arguments = parser.parse_args()
    print("| configuration | trained | weights | gradients | moments | average | activations | total | card |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number in arguments.row or range(len(ROWS)):
        print(row(*ROWS[number], arguments.width), flush=True)


if __name__ == "__main__":
    main()
