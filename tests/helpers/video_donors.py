"""The files of public video models at any width, with random weights, from diffusers' networks of the same layout.

diffusers' UNet3DConditionModel is ModelScope's network. With an embedding of the frame rate it is VideoCrafter2's, and
with eight input planes and image cross-attention as well it is DynamiCrafter's.
"""

from __future__ import annotations

import re

import torch
from diffusers import I2VGenXLUNet, UNet3DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from sd21 import diffusers_unet, drawn
from torch import Tensor, nn

from microcinema_core.config import ModelConfig

UNET = "model.diffusion_model."
KINDS = ("ModelScope", "ModelScope's own", "I2VGen-XL", "I2VGen-XL's own", "DynamiCrafter-256", "DynamiCrafter-512",
         "VideoCrafter2")  # fmt: skip
# Of the names and shapes of UNetModel at full size, by the published settings (configs/inference_*.yaml).
DIGESTS = {
    "DynamiCrafter-256": "6f9c370275d9a738", "DynamiCrafter-512": "7c755d6db52e5c73",
    "VideoCrafter2": "eddde6b98ba85a9c",
}  # fmt: skip


def network_of(kind: str, config: ModelConfig) -> nn.Module:
    """The network of diffusers that has the layout of this donor's."""
    arguments = diffusers_unet(config) | {"attention_head_dim": config.network.head_channels}
    del arguments["use_linear_projection"]
    if kind.startswith("I2VGen"):
        return I2VGenXLUNet(**arguments)
    return UNet3DConditionModel(in_channels=8 if kind.startswith("Dyna") else 4, **arguments)


def donor_file(kind: str, config: ModelConfig, state: dict[str, Tensor], fill=drawn) -> dict[str, Tensor]:
    """The tensors of a donor's file whose network has this `state` in diffusers' names. `fill` makes the tensors that
    this network lacks from their shapes."""
    if kind in ("ModelScope", "I2VGen-XL"):
        return state
    if kind.endswith("own"):
        return original_names(state)
    tensors = lvdm_names(original_names(state))
    width, dim = config.network.model_channels, config.network.context_dim
    embedding = "framestride_embed" if kind == "DynamiCrafter-256" else "fps_embedding"
    shapes = {
        f"{embedding}.0.weight": (4 * width, width), f"{embedding}.0.bias": (4 * width,),
        f"{embedding}.2.weight": (4 * width, 4 * width), f"{embedding}.2.bias": (4 * width,),
    }  # fmt: skip
    if kind.startswith("Dyna"):
        for key, value in tensors.items():
            if re.search(r"\.1\.transformer_blocks\.0\.attn2\.to_k\.weight$", key):
                shapes |= {key.replace("to_k", name): (len(value), dim) for name in ("to_k_ip", "to_v_ip")}
                shapes |= {key.replace("to_k.weight", "alpha"): ()} if kind.endswith("256") else {}
    tensors |= fill(shapes)
    return {UNET + key: value for key, value in tensors.items()}


def rate_embedding(tensors: dict[str, Tensor], rate: int) -> Tensor:
    """What a file's embedding of the frame rate adds to that of the time, by diffusers' sinusoids."""
    values = [value for key, value in tensors.items() if re.search("fps_embedding|framestride_embed", key)]
    sinusoids = get_timestep_embedding(torch.tensor([rate]), values[0].shape[1], True, 0)
    return nn.functional.linear(
        nn.functional.silu(nn.functional.linear(sinusoids, *values[:2])), *values[2:]
    )[0]  # fmt: skip


def lvdm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ModelScope's own names as those of DynamiCrafter's and VideoCrafter's UNetModel (openaimodel3d.py)."""
    renamed = {}
    for key, value in state.items():
        if re.search(r"\.2\.proj_(in|out)\.weight$", key):
            value = value.flatten(1)  # linear layers (use_linear), except in the input layer
        elif re.match(r"input_blocks\.0\.1\.proj_(in|out)\.weight", key):
            value = value.reshape(*value.shape[:2], 1)
        key = re.sub(r"^input_blocks\.0\.1\.", "init_attn.0.", key)
        renamed[re.sub(r"^(input_blocks\.\d+)\.op\.", r"\1.0.op.", key)] = value
    return renamed


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' keys under the names of the files that ModelScope and the authors of I2VGen-XL published (UNetSD,
    UNetSD_I2VGen)."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in ("down_blocks", "up_blocks"):
            level, kind, i = int(parts[1]), parts[2], int(parts[3])
            side = "input_blocks" if parts[0] == "down_blocks" else "output_blocks"
            block = 3 * level + i + (side == "input_blocks")
            slot = {"resnets": "0", "attentions": "1", "temp_attentions": "2", "temp_convs": "0.temopral_conv"}.get(
                kind
            )
            if kind == "downsamplers":
                place, parts = f"input_blocks.{3 * level + 3}.op", parts[5:]
            elif kind == "upsamplers":
                place, parts = f"output_blocks.{3 * level + 2}.{3 if level else 1}.conv", parts[5:]
            else:
                place, parts = f"{side}.{block}.{slot}", parts[4:]
        elif parts[0] == "mid_block":
            slots = {"resnets.0": "0", "temp_convs.0": "0.temopral_conv", "attentions.0": "1", "temp_attentions.0": "2",
                     "resnets.1": "3", "temp_convs.1": "3.temopral_conv"}  # fmt: skip
            kind, place, parts = parts[1], f"middle_block.{slots['.'.join(parts[1:3])]}", parts[3:]
        else:
            kind = parts[0]
            embedding = {"linear_1": "time_embed.0", "linear_2": "time_embed.2"}.get(parts[1])
            place = {
                "conv_in": "input_blocks.0.0", "transformer_in": "input_blocks.0.1", "conv_norm_out": "out.0",
                "conv_out": "out.2", "time_embedding": embedding, "image_latents_proj_in": "local_image_concat",
                "image_latents_temporal_encoder": "local_temporal_encoder",
                "image_latents_context_embedding": "local_image_embedding",
            }.get(kind, kind)  # fmt: skip
            parts = parts[1 + (kind == "time_embedding") :]
        layers = {
            "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
            "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
        }  # fmt: skip
        if kind == "resnets":
            parts[0] = layers[parts[0]]
        name = ".".join([place, *parts])
        if kind.startswith(("temp_att", "transformer_in")) and name.endswith(("proj_in.weight", "proj_out.weight")):
            value = value[..., None]  # a Conv1d there
        renamed[name] = value
    return renamed
