"""The Appearance Noise Prior in the host's sampling: a wrapper on the MODEL, the only place that shifts the noise.

Whatever sampler, NOISE and other nodes the user connects, the noise that reaches the sampler has no mean. The wrapper
adds the mean exactly once. This module imports no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import torch
from torch import Tensor

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.prior import prior_mean, shift
from .prior_share import with_share

APPEARANCE = "microcinema_appearance"  # the key of the Appearance in a conditioning, and of the wrapper


@dataclass(frozen=True, eq=False)
class Appearance:
    """The pictures of a conditioning: their latents (clips, k, C, h, w), as the VAE encodes them, and the strengths of
    the prior; where the model has them, the size of the motion, and the number of frames with overscan, else 0; for
    Temporal Interpolate their pixels (clips, k, 3, H, W)."""

    latents: Tensor
    lambda_: float = 0.0
    gamma: float = 0.0
    motion: float = 1.0
    overscan: int = 0
    pixels: Tensor | None = None

    @property
    def clips(self) -> int:
        """The number of clips that the pictures belong to."""
        return self.latents.shape[0]


def check_size(appearance: Appearance, noise: Tensor) -> None:
    """Raise MicroCinemaError unless the pictures' latents and the noise (clips · frames, C, h, w) are of one size."""
    if appearance.latents.shape[2:] != noise.shape[1:]:
        pictures, clips = ("×".join(map(str, size)) for size in (appearance.latents.shape[2:], noise.shape[1:]))
        raise MicroCinemaError(
            f"The picture's latents are {pictures} (channels, height, width), those to sample are {clips}: take the "
            "latent from the same Appearance Noise Prior Latent."
        )


def sample_with_prior(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """The OUTER_SAMPLE wrapper of our models: replaces the noise ε by ε + (λ+γ)·[z^c,…] and runs the sampler.

    The noise of a second stage is not shifted, see is_first_stage. Below σ_max (denoise < 1) new noise has its part of
    the mean as well, as in training.

    Raises MicroCinemaError for context windows over another dimension than frames, and for a result with NaN.
    """
    guider = executor.class_obj
    model = guider.model_patcher.model
    dim = getattr(guider.model_options.get("context_handler"), "dim", 0)
    if dim:
        raise MicroCinemaError(f"The context windows cut dimension {dim}, frames are dimension 0: set dim to 0.")
    conds = [cond for conds in (guider.conds.get("positive", []), *guider.conds.values()) for cond in conds]
    appearance = next((cond[APPEARANCE] for cond in conds if APPEARANCE in cond), None)
    if appearance is not None:
        mean = mean_of(noise, model.process_latent_in(appearance.latents), appearance)
        noise = shift(noise, mean) if is_first_stage(guider.model_patcher, noise, sigmas) else noise
        sampler = with_share(sampler, mean)
    samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    if not torch.isfinite(samples).all():
        dtype = str(model.compute_dtype).removeprefix("torch.")
        cure = "choose weight_dtype bf16 or fp32 in MicroCinema Loader, or start ComfyUI without --fp16-unet"
        if dtype == "float32":
            cure = "load it without LoRA and patches, and fetch its file again if that does not help"
        raise MicroCinemaError(f"The model '{model.microcinema.name}' gave NaN in {dtype}: {cure}.")
    return samples


def is_first_stage(patcher, noise: Tensor, sigmas: Tensor) -> bool:
    """Whether a run starts from noise of its own, rather than from that of a stage before it.

    Noise that is zero belongs to a second stage, which continues the first one. At σ_max, however, nothing was sampled
    before: a node (AddNoise) has added the noise to the latent. Flow models cannot be started like that, because their
    start has no share of the latent.
    """
    noise = torch.cat([part.flatten() for part in noise.unbind()]) if noise.is_nested else noise
    if bool(noise.any()):
        return True
    sampling = patcher.get_model_object("model_sampling")  # with the patches that the model gets when it is loaded
    at_sigma_max = len(sigmas) > 0 and float(sigmas[0]) >= 0.999 * float(sampling.sigma_max)
    return at_sigma_max and not isinstance(sampling, comfy.model_sampling.CONST)


def mean_of(noise: Tensor, latents: Tensor, appearance: Appearance) -> Tensor:
    """μ = (λ+γ)·z^c for noise (clips · frames, C, h, w) and latents (clips, k, C, h, w) scaled for the model."""
    check_size(appearance, noise)
    frames = noise.shape[0] // appearance.clips
    return prior_mean(latents.to(noise), frames, appearance.lambda_ + appearance.gamma).flatten(0, 1)
