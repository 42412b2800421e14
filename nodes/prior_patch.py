"""The Appearance Noise Prior inside a run of the host: a wrapper on the MODEL, the one place that shifts the noise.

It imports no network. Whatever sampler, NOISE and nodes in between a person wires, the noise that reaches the sampler
is plain, and here it gets its mean, exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.prior import prior_mean

APPEARANCE = "microcinema_appearance"  # the key of a conditioning's Appearance, and of the wrapper


@dataclass(frozen=True, eq=False)
class Appearance:
    """What a conditioning carries: the pictures' latents (clips, k, C, h, w), as the VAE gives them, and the prior."""

    latents: Tensor
    lambda_: float = 0.0
    gamma: float = 0.0

    @property
    def clips(self) -> int:
        return self.latents.shape[0]


def check_size(appearance: Appearance, noise: Tensor) -> None:
    """The pictures' latents (clips, k, C, h, w) and the clips' (clips · frames, C, h, w) are of one size."""
    if appearance.latents.shape[2:] != noise.shape[1:]:
        given, found = ("×".join(map(str, size)) for size in (appearance.latents.shape[2:], noise.shape[1:]))
        raise MicroCinemaError(
            f"The picture's latents are {given} (channels, height, width), those to sample are {found}: take the "
            "latent from the same Appearance Noise Prior Latent."
        )


def sample_with_prior(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE wrapper of our models: ε → ε + (λ+γ)·[z^c,…], and a sentence where a run would be in vain.

    Noise that is all zero belongs to a second stage, which goes on with what the first one left, and stays zero; but
    at σ_max nothing was sampled before: the noise was put into the latent by a node (AddNoise), and μ joins it there.
    Below σ_max (denoise < 1) new noise has its share of μ too, as it had in training.
    """
    guider = executor.class_obj
    model = guider.model_patcher.model
    along = getattr(guider.model_options.get("context_handler"), "dim", 0)
    if along:
        raise MicroCinemaError(f"The context windows cut dimension {along}, frames are dimension 0: set dim to 0.")
    conds = [cond for conds in (guider.conds.get("positive", []), *guider.conds.values()) for cond in conds]
    appearance = next((cond[APPEARANCE] for cond in conds if APPEARANCE in cond), None)
    fresh = bool(noise.any()) or _starts_at_the_top(model, sigmas)
    if appearance is not None and fresh:
        noise = shifted(noise, model.process_latent_in(appearance.latents), appearance)
    samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    if not torch.isfinite(samples).all():
        dtype = str(model.compute_dtype).removeprefix("torch.")
        cure = "choose weight_dtype bf16 or fp32 in MicroCinema Loader, or start ComfyUI without --fp16-unet"
        if dtype == "float32":
            cure = "load it without LoRA and patches, and fetch its file again if that does not help"
        raise MicroCinemaError(f"The model '{model.microcinema.name}' gave NaN in {dtype}: {cure}.")
    return samples


def _starts_at_the_top(model, sigmas: Tensor) -> bool:
    return len(sigmas) > 0 and float(sigmas[0]) >= 0.999 * float(model.model_sampling.sigma_max)


def shifted(noise: Tensor, latents: Tensor, appearance: Appearance) -> Tensor:
    """Noise (clips · frames, C, h, w) + μ, for latents (clips, k, C, h, w) scaled for the model."""
    check_size(appearance, noise)
    frames = noise.shape[0] // appearance.clips
    return noise + prior_mean(latents.to(noise), frames, appearance.lambda_ + appearance.gamma).flatten(0, 1)
