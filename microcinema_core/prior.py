"""The Appearance Noise Prior (supplement B.2, B.3): noise with the given picture as its mean.

Latents here are scaled for the model. μ = strength·z^c for every frame (base model), or strength times the
interpolation from z^1 to z^N (interpolation model). Training shifts noise and target by λ·…, sampling starts from
(λ+γ)·…; nothing else of an ODE sampler changes (eq. 24). Models that were trained without the prior can be started with
it as well (λ = 0): the forms and curves below are for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CURVES = ("constant", "falling", "custom")


def prior_mean(condition: Tensor, frames: int, strength: float | Tensor) -> Tensor:
    """μ for latents `condition` (b, k, C, h, w), k = 1 centre frame or k = 2 end frames → (b, frames, C, h, w).

    `strength` is λ in training, λ+γ in sampling; a tensor (frames,) has one strength for each frame.
    """
    if condition.shape[1] == 1:
        mean = condition.expand(-1, frames, -1, -1, -1)
    else:
        weights = torch.linspace(0, 1, frames, dtype=condition.dtype, device=condition.device)
        mean = torch.lerp(condition[:, :1], condition[:, 1:], weights.view(-1, 1, 1, 1))
    if isinstance(strength, Tensor):
        strength = strength.to(condition).view(-1, 1, 1, 1)
    return strength * mean


def shift(noise: Tensor, mean: Tensor) -> Tensor:
    """ε + μ: the noise of eq. (15), the target of eq. (22), the start of sampling in B.3. A mean of zero is exact: the
    noise stays equal to the bit."""
    return noise + mean


def frame_strengths(
    strength: float, frames: int, curve: str = "constant", given: float = 0.0, values: tuple[float, ...] = ()
) -> Tensor:
    """A strength for each of the frames, (frames,).

    curve: "constant"; "falling", from `strength` at the given frame to 0 at the frame farthest from it; "custom",
    `strength` times the values, which are interpolated over the clip. given: the place of the given frame, from 0, the
    first, to 1, the last.
    """
    places = torch.linspace(0, 1, frames) if frames > 1 else torch.full((1,), given)
    if curve == "falling":
        return strength * (1 - (places - given).abs() / max(given, 1 - given))
    if curve == "custom":
        knots = torch.tensor(values)
        at = places * (len(knots) - 1)
        low = at.floor().long().clamp(max=max(len(knots) - 2, 0))
        return strength * torch.lerp(knots[low], knots[(low + 1).clamp(max=len(knots) - 1)], at - low)
    return torch.full((frames,), strength)


def without_mean(latents: Tensor) -> Tensor:
    """Latents (…, h, w) less the mean of each channel, so that a shift by them leaves the mean colour alone."""
    return latents - latents.mean((-2, -1), keepdim=True)


def low_pass(latents: Tensor, cutoff: float = 0.25) -> Tensor:
    """The low spatial frequencies of latents (…, h, w): a Gaussian in frequency whose standard deviation is `cutoff`
    times the highest one."""
    rows, columns = (torch.fft.fftfreq(side, 0.5, device=latents.device) for side in latents.shape[-2:])
    window = (-(rows[:, None] ** 2 + columns**2) / (2 * cutoff**2)).exp()
    return torch.fft.ifft2(torch.fft.fft2(latents.float()) * window).real.to(latents.dtype)
