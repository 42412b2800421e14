"""The temporal layers of ModelScope's text-to-video model (Wang et al. 2023), with diffusers' names or with its own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..config import NetworkConfig
from ..errors import MicroCinemaError
from ..header import NETWORK
from ..model import SpatialUNet, build
from ..model.layers import ResBlock, SpatialTransformer
from .names import diffusers_unet, unet_places
from .stored import Source, open_tensors, sort_rest, take, weights_in


def temporal_layers(path: Path, network: NetworkConfig) -> Source:
    """The temporal layers of ModelScope's text-to-video model, in a file or a diffusers folder.

    They compute the same function in `network` if it has four convolutions per temporal convolution block, two
    attentions and no positions. Raises MicroCinemaError as stable_diffusion does.
    """
    stored = open_tensors(weights_in(path / "unet") or weights_in(path) or path)
    module = build(network, device="meta")
    places, expected = unet_places(network), module.state_dict()
    layers = {
        kind: [name for name, layer in module.named_modules() if type(layer) is kind and "appearance" not in name]
        for kind in (ResBlock, SpatialTransformer)
    }
    original = any(".temopral_conv." in key for key in stored)  # ModelScope's own spelling
    names = {}
    for key in expected:
        kind, _, rest = key.partition(".")
        if kind in ("temporal_convs", "temporal_transformers"):
            index, _, rest = rest.partition(".")
            spatial_layer = layers[ResBlock if kind == "temporal_convs" else SpatialTransformer][int(index)]
            names[key] = [(_modelscope_temporal if original else _diffusers_temporal)(spatial_layer, rest, places)]
    if not any(name in stored for [name] in names.values()):
        raise MicroCinemaError(
            f"'{path}' holds no temporal layers of ModelScope's text-to-video model: choose that one"
        )
    taken = take(path, stored, names, expected, "ModelScope's text-to-video model")
    spatial = SpatialUNet(replace(network, context_dim=1024), device="meta").state_dict()  # only its names are used
    spatial = {_modelscope_spatial(key) if original else diffusers_unet(key, places) for key in spatial}
    return Source({NETWORK + key: tensor for key, tensor in taken.items()}, sort_rest(path, stored, {
        "its spatial layers, in place of which Stable Diffusion's are taken": f"({'|'.join(map(re.escape, spatial))})$",
        "a temporal layer before all others, which has no place here": r"(transformer_in|input_blocks\.0\.1)\.",
    }))  # fmt: skip


def _diffusers_temporal(spatial_layer: str, rest: str, places: dict[str, str]) -> str:
    """diffusers' name of a temporal layer's parameter. `rest` is our key behind the layer, `spatial_layer` the name of
    the layer that it follows."""
    place = places[spatial_layer].replace("resnets", "temp_convs").replace("attentions", "temp_attentions")
    return f"{place}.{_modelscope_words(rest)}"


def _modelscope_temporal(spatial_layer: str, rest: str, places: dict[str, str]) -> str:
    """ModelScope's own name of the same: a temporal convolution is part of its ResBlock, a temporal transformer the
    next layer after the spatial one."""
    words = _modelscope_words(rest)
    if words.startswith("conv"):
        return _modelscope_spatial(f"{spatial_layer}.temopral_conv.{words}")
    return f"{spatial_layer[:-1]}2.{words}"


def _modelscope_words(rest: str) -> str:
    """'layers.1.2.weight' becomes 'conv2.3.weight' (all convolutions but the first follow a dropout), 'block.' the
    name of the first transformer block."""
    match = re.fullmatch(r"layers\.(\d)\.(\d)\.(\w+)", rest)
    if not match:
        return re.sub(r"^block\.", "transformer_blocks.0.", rest)
    index, layer = int(match[1]), int(match[2])
    return f"conv{index + 1}.{layer + (layer == 2 and index > 0)}.{match[3]}"


def _modelscope_spatial(key: str) -> str:
    """ModelScope's name for an LDM key. The layer after a temporal transformer has an index that is higher by one."""
    key = re.sub(r"^(input_blocks\.\d+)\.0\.op", r"\1.op", key)
    return re.sub(r"^middle_block\.2\.", "middle_block.3.", re.sub(r"^(output_blocks\.\d+)\.2\.", r"\1.3.", key))
