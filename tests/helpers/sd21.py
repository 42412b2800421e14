"""Files of Stable Diffusion 2.1's layout at any width, with random weights."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from microcinema_core.config import BASE, AutoencoderConfig, ModelConfig, NetworkConfig, TextConfig
from microcinema_core.model import SpatialUNet
from microcinema_core.model.autoencoder import Autoencoder

SMALL: ModelConfig = replace(
    BASE,
    network=NetworkConfig(model_channels=32, head_channels=16, context_dim=64),
    autoencoder=AutoencoderConfig(channels=32),
    text=TextConfig(width=64, layers=3, heads=4),
)
TINY: ModelConfig = replace(  # too narrow for the independent implementations' group-norms
    BASE,
    network=NetworkConfig(model_channels=8, head_channels=4, norm_groups=4, context_dim=12),
    autoencoder=AutoencoderConfig(channels=4, norm_groups=2),
    text=TextConfig(width=12, layers=3, heads=2, vocabulary_size=50),
)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Values under which signals neither die nor explode; norms near 1, biases near 0."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[key] = values / math.sqrt(math.prod(shape[1:]))
        else:
            tensors[key] = 0.05 * values + key.endswith("weight")
    return tensors


def open_clip_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """The text tower as SD2.1's file has it: open_clip's names, all layers, and what no image model reads."""
    width = config.width
    shapes = {
        "positional_embedding": (config.max_tokens, width), "token_embedding.weight": (config.vocabulary_size, width),
        "ln_final.weight": (width,), "ln_final.bias": (width,), "text_projection": (width, width), "logit_scale": (),
    }  # fmt: skip
    for i in range(config.layers):
        for name, shape in {
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
        }.items():  # fmt: skip
            shapes[f"transformer.resblocks.{i}.{name}"] = shape
    return shapes


def diffusers_unet(config: ModelConfig) -> dict:
    """Arguments of UNet2DConditionModel for the spatial network; its `attention_head_dim` is the number of heads."""
    network = config.network
    widths = [network.model_channels * multiplier for multiplier in network.channel_multipliers]
    return {
        "block_out_channels": widths, "attention_head_dim": [width // network.head_channels for width in widths],
        "cross_attention_dim": network.context_dim, "use_linear_projection": True,
    }  # fmt: skip


def diffusers_autoencoder(config: ModelConfig) -> dict:
    """Arguments of AutoencoderKL."""
    levels = len(config.autoencoder.channel_multipliers)
    return {
        "block_out_channels": [config.autoencoder.channels * m for m in config.autoencoder.channel_multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.autoencoder.res_blocks, "latent_channels": config.autoencoder.latent_channels,
    }  # fmt: skip


def ldm_file(config: ModelConfig = SMALL, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What v2-1_512-ema-pruned.safetensors holds."""
    with torch.device("meta"):
        autoencoder = Autoencoder(config.autoencoder).state_dict()
    shapes = {
        "model.diffusion_model.": {
            k: v.shape for k, v in SpatialUNet(config.network, device="meta").state_dict().items()
        },
        "first_stage_model.": {key: value.shape for key, value in autoencoder.items()},
        "cond_stage_model.model.": open_clip_shapes(config.text),
    }
    tensors = {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000), "model_ema.decay": torch.tensor(0.9999)}
    for prefix, part in shapes.items():
        tensors |= {prefix + key: value.to(dtype) for key, value in drawn(part).items()}
    return tensors
