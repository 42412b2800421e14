"""`microcinema init --kind autoencoder`: a VAE of Stable Diffusion's layout, from diffusers' folder to a model file.

The VAEs of Stable Diffusion 3 and of FLUX have 16 channels, no quantising convolutions, and latents that are shifted
before they are scaled. Ours has these convolutions and no shift: they become the identity, and the shift their bias.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..checkpoint import write_model
from ..config import BASE, AutoencoderConfig, ModelConfig
from ..errors import MicroCinemaError
from ..header import AUTOENCODER
from ..model.autoencoder import Autoencoder
from ..validated import sentence
from .names import diffusers_autoencoder
from .stored import open_tensors, take, weights_in

QUANTISING = ("quant_conv", "post_quant_conv")


def convert_autoencoder(folder: Path, output: Path) -> AutoencoderConfig:
    """Write a model file that holds an autoencoder alone, in float32, for model.autoencoder of a training.

    folder: diffusers' of an AutoencoderKL, with its config.json. Raises MicroCinemaError where it is none, or of
    another layout than Stable Diffusion's.
    """
    settings = _settings(folder)
    config = _config(folder, settings)
    with torch.device("meta"):
        expected = Autoencoder(config).state_dict()
    stored = open_tensors(weights_in(folder) or folder / "diffusion_pytorch_model.safetensors")
    names = {
        key: diffusers_autoencoder(key, config) for key in expected if not key.startswith(QUANTISING) or key in stored
    }
    tensors = {key: tensor.read().float() for key, tensor in take(folder, stored, names, expected, "it").items()}
    if stored:
        raise MicroCinemaError(f"'{folder}' holds an unknown '{min(stored)}': give the VAE of SD2.1, SD3 or FLUX")
    for key in QUANTISING:
        weight = f"{key}.weight"
        tensors.setdefault(weight, torch.eye(len(expected[weight]))[:, :, None, None])
        tensors.setdefault(f"{key}.bias", torch.zeros(len(expected[weight])))
    _shift(tensors, config.latent_channels, settings.get("shift_factor") or 0.0)
    network = replace(BASE.network, latent_channels=config.latent_channels)
    model = ModelConfig(name="autoencoder", network=network, autoencoder=config, width=512, height=512)
    write_model(output, model, {AUTOENCODER + key: value for key, value in tensors.items()}, torch.float32)
    return config


def _shift(tensors: dict[str, Tensor], channels: int, shift: float) -> None:
    """Subtract `shift` from the means that come out of the encoder, and add it to what goes into the decoder."""
    tensors["quant_conv.bias"][:channels] -= shift
    tensors["post_quant_conv.bias"] += shift * tensors["post_quant_conv.weight"].sum((1, 2, 3))


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        if settings["_class_name"] == "AutoencoderKL":
            return settings
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise MicroCinemaError(f"'{folder}' has no config.json of an AutoencoderKL: give diffusers' folder vae/ of a model")


def _config(folder: Path, settings: dict[str, Any]) -> AutoencoderConfig:
    try:
        widths = settings["block_out_channels"]
        channels = gcd(*widths)
        return AutoencoderConfig(
            channels=channels,
            channel_multipliers=tuple(width // channels for width in widths),
            res_blocks=settings["layers_per_block"],
            latent_channels=settings["latent_channels"],
            norm_groups=settings["norm_num_groups"],
            scale=settings["scaling_factor"],
        )
    except (ValidationError, KeyError, TypeError) as error:
        reason = sentence(error) if isinstance(error, ValidationError) else f"no {error}"
        raise MicroCinemaError(f"'{folder}' has a config.json of another autoencoder ({reason}): give SD's") from error
