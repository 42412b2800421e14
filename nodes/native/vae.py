"""Loads a file's autoencoder as the host's VAE."""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import nn
from typing_extensions import override

from ...microcinema_core.checkpoint import AUTOENCODER, read_config
from ...microcinema_core.config import ModelConfig
from ...microcinema_core.header import SD21
from ...microcinema_core.model.autoencoder import Autoencoder
from .files import Absent, check_keys, fork_rng, part_of


class HostAutoencoder(Autoencoder):
    """The core's autoencoder with the host's conventions: pictures in [-1, 1], latents without the model's scale."""

    @override
    def encode(self, pictures):
        return super().encode((pictures + 1) / 2) / self.config.scale

    @override
    def decode(self, latents):
        return super().decode(latents * self.config.scale) * 2 - 1


@fork_rng
def load_vae(path: str | Path):
    """Load the file's autoencoder as VAE, or an Absent where it has none."""
    config = read_config(path)
    model = load_autoencoder(path, config)
    if model is None:
        return Absent(f"'{Path(path).name}' holds no VAE: take VAE from Load Checkpoint with {SD21}.")
    # The host can only build autoencoders of SD's own layout: it builds a small one, which is then replaced by ours.
    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
        "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    params = {"ddconfig": ddconfig, "embed_dim": 4}
    vae = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params}, dtype=torch.float32)
    vae.first_stage_model = model.to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.ModelPatcher(model, vae.device, comfy.model_management.vae_offload_device())
    vae.latent_channels = config.autoencoder.latent_channels
    vae.downscale_ratio = vae.upscale_ratio = config.autoencoder.factor
    vae.size = None
    return vae


def load_autoencoder(path, config: ModelConfig) -> HostAutoencoder | None:
    """The file's autoencoder, or None where it has none."""
    tensors = part_of(path, AUTOENCODER)
    if not tensors:
        return None
    model = HostAutoencoder(config.autoencoder).eval().requires_grad_(False)
    check_keys(path, tensors, model)
    model.load_state_dict(tensors)
    return model


def set_preview(latent_format: comfy.latent_formats.LatentFormat, autoencoder: Autoencoder) -> None:
    """Set the linear map from a latent cell to a colour, for the host's previews during sampling, in place.

    The map is a least-squares fit of the mean colours in [-1, 1] of latent cells, for blurred noise.
    """
    factor = autoencoder.config.factor
    colours = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = nn.functional.interpolate(colours, size=(12 * factor, 12 * factor), mode="bilinear")
    latents = latent_format.process_in(autoencoder.encode(pictures)).movedim(1, -1).flatten(0, 2)
    cells = nn.functional.avg_pool2d(pictures, factor).movedim(1, -1).flatten(0, 2)
    fitted = torch.linalg.lstsq(nn.functional.pad(latents, (0, 1), value=1.0), cells).solution
    latent_format.latent_rgb_factors = fitted[:-1].tolist()
    latent_format.latent_rgb_factors_bias = fitted[-1].tolist()
