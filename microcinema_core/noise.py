"""Noise for clips with frames that depend on each other, beside which the Appearance Noise Prior can be compared.

Every frame has a generator of its own, of the seed and its index: a longer clip begins with the noise of a shorter one,
on every device and in every type.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("independent", "mixed", "progressive")


def frame_noise(shape: tuple[int, ...], frames: int, seed: int) -> Tensor:
    """Independent noise (frames, *shape) from N(0, 1)."""
    return torch.stack([_frame(shape, seed, index) for index in range(frames)])


def correlated_noise(shape: tuple[int, ...], frames: int, seed: int, kind: str, alpha: float = 1.0) -> Tensor:
    """Noise (frames, *shape) whose frames are correlated; each has N(0, 1) (PYoCo, Ge et al. 2023, section 4.2).

    kind: "independent"; "mixed": every frame is √(α²/(1+α²))·shared + √(1/(1+α²))·own; "progressive": every frame is
    α/√(1+α²)·the one before + 1/√(1+α²)·own.
    """
    own = frame_noise(shape, frames, seed)
    if kind == "independent":
        return own
    keep, fresh = alpha / (1 + alpha**2) ** 0.5, 1 / (1 + alpha**2) ** 0.5
    if kind == "mixed":
        return keep * _frame(shape, seed, -1) + fresh * own
    noise = [own[0]]
    for frame in own[1:]:
        noise.append(keep * noise[-1] + fresh * frame)
    return torch.stack(noise)


def mix_frequencies(low: Tensor, high: Tensor, cutoff: float = 0.25) -> Tensor:
    """The low frequencies of `low` and the high ones of `high`, clips (frames, …, h, w), over time and space.

    The window is FreeInit's Gaussian (Wu et al. 2023): exp(−d²/(2·cutoff²)), d the distance from the centre of the
    spectrum, whose sides are 2. FreeInit takes `low` from a clip that was sampled before and noised again, FrameInit
    (ConsistI2V, Ren et al. 2024) from the given picture as a still clip, noised.
    """
    t, h, w = (torch.fft.fftfreq(size, 0.5) for size in (len(low), *low.shape[-2:]))
    window = (-(t.view(-1, 1, 1) ** 2 + h.view(1, -1, 1) ** 2 + w**2) / (2 * cutoff**2)).exp()
    window = window.view(len(low), *[1] * (low.ndim - 3), *window.shape[1:])
    dims = (0, -2, -1)
    spectrum = torch.fft.fftn(low, dim=dims) * window + torch.fft.fftn(high, dim=dims) * (1 - window)
    return torch.fft.ifftn(spectrum, dim=dims).real


def frame_init(still: Tensor, noise: Tensor, alpha_bar: float, cutoff: float = 0.25) -> Tensor:
    """FrameInit's start for latents `still` (frames, …, h, w) of a still clip, scaled for the model: the low
    frequencies of √ᾱ·still + √(1−ᾱ)·noise, the high ones of the noise."""
    return mix_frequencies(alpha_bar**0.5 * still + (1 - alpha_bar) ** 0.5 * noise, noise, cutoff)


def _frame(shape: tuple[int, ...], seed: int, index: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + index + 1) % 2**63)
    return torch.randn(shape, generator=generator)
