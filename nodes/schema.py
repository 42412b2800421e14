"""Helpers of all nodes: schemas that older hosts accept, and checks of the inputs."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any

import torch
from comfy_api.latest import io

from ..microcinema_core.config import ModelConfig
from ..microcinema_core.errors import MicroCinemaError

CATEGORY = "MicroCinema"
PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}  # of a given frame in its clip


def schema(**fields) -> io.Schema:
    """io.Schema without the fields that an older host lacks, where they would prevent the whole pack from loading."""
    supported = io.Schema.__dataclass_fields__
    return io.Schema(category=CATEGORY, **{key: value for key, value in fields.items() if key in supported})


def advanced(widget: io.Input) -> io.Input:
    """Mark an input as advanced, which newer hosts hide by default. Older ones have no keyword for it."""
    widget.extra_dict["advanced"] = True
    return widget


def in_range(execute):
    """Decorator for a node's `execute`: raises MicroCinemaError for values that its schema does not allow.

    The host checks only the values of widgets. A link may pass a number outside of the range, a choice that does not
    exist, or None.
    """

    @wraps(execute)
    def checked(cls, *arguments, **named):
        values = signature(execute).bind(cls, *arguments, **named).arguments
        for declared in cls.define_schema().inputs:
            _check_input(declared, values.get(declared.id))
        return execute(cls, *arguments, **named)

    return checked


def _check_input(declared: io.Input, value) -> None:
    if value is None:
        if declared.optional:
            return
        raise MicroCinemaError(f"The input '{declared.id}' is empty: the node that is wired to it gave nothing.")
    minimum, maximum = getattr(declared, "min", None), getattr(declared, "max", None)
    if minimum is not None and maximum is not None and not minimum <= value <= maximum:  # also for NaN
        raise MicroCinemaError(
            f"The input '{declared.id}' is {str(value)[:40]}: give a number from {minimum:.12g} to {maximum:.12g}."
        )
    options = getattr(declared, "options", None)
    if isinstance(declared, io.Combo.Input) and options and value not in options:
        raise MicroCinemaError(f"The input '{declared.id}' is {value!r}: give one of {', '.join(map(str, options))}.")


def require(model, condition: str) -> ModelConfig:
    """The configuration of a MODEL. Raises MicroCinemaError unless it is one of ours and is conditioned as `condition`
    says: on its "centre" frame to animate, on both "ends" to interpolate."""
    config = getattr(model.model, "microcinema", None)
    kinds = {"centre": "animates pictures (demo-base)", "ends": "interpolates (demo-interpolation)"}
    if config is None:
        raise MicroCinemaError(f"The model is none of MicroCinema's: load one that {kinds[condition]} with its Loader.")
    if config.network.condition != condition:
        other = kinds[config.network.condition]
        raise MicroCinemaError(f"The model '{config.name}' {other}, wire one here that {kinds[condition]}.")
    return config


def check_encoded(latents: torch.Tensor, config: ModelConfig) -> None:
    """Raise MicroCinemaError for latents of another model's VAE."""
    if latents.ndim != 4 or latents.shape[1] != config.autoencoder.latent_channels:
        raise MicroCinemaError(
            f"The VAE gives latents of shape {tuple(latents.shape)}, the model takes "
            f"{config.autoencoder.latent_channels} channels: wire the VAE that belongs to it."
        )


def frame_at(place: str, frames: int) -> int:
    """The index of a place of PLACES; the middle of an even number is the first frame after it, as of the prior."""
    return int(PLACES[place] * (frames - 1) + 0.5)


def check_samples(latent: dict) -> None:
    """Raise MicroCinemaError for a LATENT without samples."""
    samples: Any = latent.get("samples")
    if samples is None or 0 in getattr(samples, "shape", (0,)):
        raise MicroCinemaError("The latent is empty: wire one of the size and the length of the clip.")


def check_latent(latent: dict, channels: int) -> torch.Tensor:
    """The samples (frames, channels, h, w) of a LATENT. Raises MicroCinemaError for other shapes."""
    samples: Any = latent.get("samples")
    mask = latent.get("noise_mask")
    shape = tuple(getattr(samples, "shape", ()))
    if len(shape) != 4 or shape[1] != channels or 0 in shape:
        raise MicroCinemaError(
            f"The latent is of shape {shape}, the model takes (frames, {channels}, height, width): "
            "take the latent from Appearance Noise Prior Latent."
        )
    if mask is not None and (mask.ndim < 2 or 0 in mask.shape):
        raise MicroCinemaError(f"The latent's mask is of shape {tuple(mask.shape)}: give (count, height, width).")
    return samples


def check_text(conditioning: list, config: ModelConfig) -> None:
    """Raise MicroCinemaError for a conditioning of another model's CLIP."""
    for text, _ in conditioning:
        if text.ndim != 3 or 0 in text.shape or config.network.context_dim not in (None, text.shape[-1]):
            raise MicroCinemaError(
                f"The sentence is of shape {tuple(text.shape)}, the model reads (count, words, "
                f"{config.network.context_dim}): wire the CLIP that belongs to it."
            )


def check_images(images: torch.Tensor, minimum: int = 1) -> torch.Tensor:
    """An IMAGE (n, h, w, 3 or 4) as float32 RGB (n, h, w, 3); an alpha channel is dropped.

    Raises MicroCinemaError for other shapes, for fewer than `minimum` pictures, and for NaN or infinity.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise MicroCinemaError(
            f"The image is of shape {tuple(images.shape)}, pictures are (count, height, width, 3 colours or 4 with "
            "alpha): a mask goes through Convert Mask to Image first."
        )
    if images.shape[0] < minimum:
        some = (
            "is empty: wire at least one picture" if minimum == 1 else f"has {images.shape[0]} frame(s): wire {minimum}"
        )
        raise MicroCinemaError(f"The image batch {some}.")
    if 0 in images.shape:
        raise MicroCinemaError(f"The image is of shape {tuple(images.shape)}, it has no pixels: check the node before.")
    images = images[..., :3].float()
    if not all(torch.isfinite(image).all() for image in images):  # one at a time: isfinite makes a copy
        raise MicroCinemaError("The image holds NaN or infinite pixels: check the node that made it, or its precision.")
    return images
