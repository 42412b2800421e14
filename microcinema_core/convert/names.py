"""Translates our keys, which are LDM's, into those of open_clip and of diffusers."""

from __future__ import annotations

import re

from ..config import AutoencoderConfig, NetworkConfig


def open_clip(key: str) -> list[str]:
    """open_clip's name, as in SD2.1's file, for a key of our text tower, which has transformers' names."""
    for ours, theirs in (
        ("embeddings.token_embedding", "token_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("final_layer_norm", "ln_final"), ("encoder.layers", "transformer.resblocks"), ("self_attn", "attn"),
        ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    return ["model." + key]


def unet_places(config: NetworkConfig) -> dict[str, str]:
    """diffusers' name of each of LDM's layers, by LDM's name."""
    places = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
        "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }  # fmt: skip
    per_level, levels = config.res_blocks + 1, len(config.channel_multipliers)
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        first_in, first_out = 1 + level * per_level, (levels - 1 - level) * per_level
        for i in range(per_level):
            places[f"input_blocks.{first_in + i}.0"] = f"{down}.resnets.{i}"
            places[f"input_blocks.{first_in + i}.1"] = f"{down}.attentions.{i}"
            places[f"output_blocks.{first_out + i}.0"] = f"{up}.resnets.{i}"
            places[f"output_blocks.{first_out + i}.1"] = f"{up}.attentions.{i}"
        places[f"input_blocks.{first_in + per_level - 1}.0.op"] = f"{down}.downsamplers.0.conv"
        after = 1 + (level in config.attention_levels)
        places[f"output_blocks.{first_out + per_level - 1}.{after}.conv"] = f"{up}.upsamplers.0.conv"
    return places


def diffusers_unet(key: str, places: dict[str, str]) -> str:
    """diffusers' name for an LDM key of the UNet; `places` as unet_places returns them."""
    place, rest = key, ""
    while place not in places:
        place, _, part = place.rpartition(".")
        rest = f".{part}{rest}"
    for ours, theirs in (
        (".in_layers.0", ".norm1"), (".in_layers.2", ".conv1"), (".emb_layers.1", ".time_emb_proj"),
        (".out_layers.0", ".norm2"), (".out_layers.3", ".conv2"), (".skip_connection", ".conv_shortcut"),
    ):  # fmt: skip
        rest = rest.replace(ours, theirs)
    return places[place] + rest


def diffusers_autoencoder(key: str, config: AutoencoderConfig) -> list[str]:
    """diffusers' names for an LDM key of the autoencoder: the current one, and that of files from 2022."""
    last = len(config.channel_multipliers) - 1
    key = re.sub(r"encoder\.down\.(\d)\.", r"encoder.down_blocks.\1.", key)
    key = re.sub(r"decoder\.up\.(\d)\.", lambda match: f"decoder.up_blocks.{last - int(match[1])}.", key)
    key = re.sub(r"mid\.block_(\d)", lambda match: f"mid_block.resnets.{int(match[1]) - 1}", key)
    for ours, theirs in (
        (".block.", ".resnets."), (".downsample.", ".downsamplers.0."), (".upsample.", ".upsamplers.0."),
        ("norm_out", "conv_norm_out"), ("nin_shortcut", "conv_shortcut"),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    prefix, separator, layer = key.partition("mid.attn_1.")
    if not separator:
        return [key]
    names = {
        "norm": "group_norm",
        "q": "to_q query",
        "k": "to_k key",
        "v": "to_v value",
        "proj_out": "to_out.0 proj_attn",
    }
    layer, _, kind = layer.partition(".")
    return [f"{prefix}mid_block.attentions.0.{name}.{kind}" for name in names[layer].split()]
