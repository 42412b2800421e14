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
    if value is None and not wanted.optional:
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
