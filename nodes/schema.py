"""What all nodes share: a schema that older hosts can read, and the checks on what a person wires."""

from __future__ import annotations

from functools import wraps
from inspect import signature

import torch
from comfy_api.latest import io

from ..microcinema_core.config import ModelConfig
from ..microcinema_core.errors import MicroCinemaError

CATEGORY = "MicroCinema"


def schema(**fields) -> io.Schema:
    """io.Schema without the fields that this host does not know yet; an unknown one would drop the whole pack."""
    known = io.Schema.__dataclass_fields__
    return io.Schema(category=CATEGORY, **{key: value for key, value in fields.items() if key in known})


def advanced(made: io.Input) -> io.Input:
    """The input, shown on request only by hosts that can; older ones know neither the keyword nor `extra_dict`."""
    made.extra_dict["advanced"] = True
    return made


def in_range(execute):
    """`execute` of a node that first holds what it is given to its schema: a link carries numbers past the widgets'
    ranges, choices that the widget does not offer, and nothing at all."""

    @wraps(execute)
    def checked(cls, *arguments, **named):
        given = signature(execute).bind(cls, *arguments, **named).arguments
        for wanted in cls.define_schema().inputs:
            _check_input(wanted, given.get(wanted.id))
        return execute(cls, *arguments, **named)

    return checked


def _check_input(wanted: io.Input, value) -> None:
    if value is None:
        if wanted.optional:
            return
        raise MicroCinemaError(f"The input '{wanted.id}' is empty: the node that is wired to it gave nothing.")
    least, most = getattr(wanted, "min", None), getattr(wanted, "max", None)
    if least is not None and most is not None and not least <= value <= most:  # NaN is never
        raise MicroCinemaError(
            f"The input '{wanted.id}' is {str(value)[:40]}: give a number from {least:.12g} to {most:.12g}."
        )
    options = getattr(wanted, "options", None)
    if isinstance(wanted, io.Combo.Input) and options and value not in options:
        raise MicroCinemaError(f"The input '{wanted.id}' is {value!r}: give one of {', '.join(map(str, options))}.")


def require(model, condition: str) -> ModelConfig:
    """The configuration of a MODEL of ours that animates ("centre") or interpolates ("ends")."""
    config = getattr(model.model, "microcinema", None)
    kinds = {"centre": "animates pictures (demo-base)", "ends": "interpolates (demo-interpolation)"}
    if config is None:
        raise MicroCinemaError(f"The model is none of MicroCinema's: load one that {kinds[condition]} with its Loader.")
    if config.network.condition != condition:
        other = kinds[config.network.condition]
        raise MicroCinemaError(f"The model '{config.name}' {other}, wire one here that {kinds[condition]}.")
    return config


def check_encoded(latents: torch.Tensor, config: ModelConfig) -> None:
    """Refuse what another model's VAE has made of a picture."""
    if latents.ndim != 4 or latents.shape[1] != config.autoencoder.latent_channels:
        raise MicroCinemaError(
            f"The VAE gives latents of shape {tuple(latents.shape)}, the model takes "
            f"{config.autoencoder.latent_channels} channels: wire the VAE that belongs to it."
        )


def check_latent(latent: dict, channels: int) -> torch.Tensor:
    """The samples of a LATENT for a model of ours, (frames, channels, h, w), or a sentence on what is wrong with it."""
    samples, mask = latent.get("samples"), latent.get("noise_mask")
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
    """Refuse what another model's CLIP has made of a sentence."""
    for text, _ in conditioning:
        if text.ndim != 3 or 0 in text.shape or config.network.context_dim not in (None, text.shape[-1]):
            raise MicroCinemaError(
                f"The sentence is of shape {tuple(text.shape)}, the model reads (count, words, "
                f"{config.network.context_dim}): wire the CLIP that belongs to it."
            )


def check_images(images: torch.Tensor, least: int = 1) -> torch.Tensor:
    """IMAGE (n, h, w, 3 or 4) as float32 RGB, or a sentence on what is wrong with it. Alpha is dropped."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise MicroCinemaError(
            f"The image is of shape {tuple(images.shape)}, pictures are (count, height, width, 3 colours or 4 with "
            "alpha): a mask goes through Convert Mask to Image first."
        )
    if images.shape[0] < least:
        some = "is empty: wire at least one picture" if least == 1 else f"has {images.shape[0]} frame(s): wire {least}"
        raise MicroCinemaError(f"The image batch {some}.")
    if 0 in images.shape:
        raise MicroCinemaError(f"The image is of shape {tuple(images.shape)}, it has no pixels: check the node before.")
    images = images[..., :3].float()
    if not torch.isfinite(images).all():
        raise MicroCinemaError("The image holds NaN or infinite pixels: check the node that made it, or its precision.")
    return images
