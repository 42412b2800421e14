"""The names that public video models give to the tensors of our network, spatial and temporal."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config import NETWORK, NetworkConfig
from ..model import build
from ..model.layers import ResBlock, SpatialTransformer
from .names import diffusers_unet, unet_places

_OURS_ALONE = ("appearance", "appearance_injections", "condition_in")  # no donor has these


@dataclass(frozen=True)
class Spelling:
    """How a family of files names the tensors of one network."""

    input_layer: str  # the prefix of the temporal layer after the input convolution
    spatial: Callable[[str], str]  # one of LDM's keys to its name
    temporal: Callable[[str, str], str]  # the spatial layer that a temporal one follows, and the rest of its name


def diffusers(network: NetworkConfig) -> Spelling:
    """diffusers' UNet3DConditionModel and I2VGenXLUNet."""
    places = unet_places(network)

    def temporal(layer: str, words: str) -> str:
        place = places[layer].replace("resnets", "temp_convs").replace("attentions", "temp_attentions")
        return f"{place}.{words}"

    return Spelling("transformer_in.", lambda key: diffusers_unet(key, places), temporal)


def vgen(network: NetworkConfig) -> Spelling:
    """The files that the authors of ModelScope's text-to-video model and of I2VGen-XL published."""
    return Spelling(
        "input_blocks.0.1.", lambda key: re.sub(r"^(input_blocks\.\d+)\.0\.op", r"\1.op", _moved(key)), _ldm_temporal
    )


def lvdm(network: NetworkConfig) -> Spelling:
    """VideoCrafter2 and DynamiCrafter."""
    return Spelling(
        NETWORK + "init_attn.0.",
        lambda key: NETWORK + _moved(key),
        lambda layer, words: NETWORK + _ldm_temporal(layer, words),
    )


def names_in(network: NetworkConfig, spelling: Spelling) -> dict[str, str]:
    """The name of each tensor that a donor and our network both have, by our key. A network without text is taken for
    one with it: the donors have the layers that attend to a text."""
    module = build(replace(network, context_dim=network.context_dim or 1024), device="meta")
    layers = {
        kind: [name for name, layer in module.named_modules() if type(layer) is kind and "appearance" not in name]
        for kind in (ResBlock, SpatialTransformer)
    }
    names = {}
    for key in module.state_dict():
        kind, _, rest = key.partition(".")
        if kind == "temporal_input":
            names[key] = spelling.input_layer + _words(rest)
        elif kind in ("temporal_convs", "temporal_transformers"):
            index, _, rest = rest.partition(".")
            layer = layers[ResBlock if kind == "temporal_convs" else SpatialTransformer][int(index)]
            names[key] = spelling.temporal(layer, _words(rest))
        elif kind not in _OURS_ALONE:
            names[key] = spelling.spatial(key)
    return names


def _ldm_temporal(layer: str, words: str) -> str:
    """A temporal convolution is part of its ResBlock (the misspelling is theirs), a temporal transformer the next layer
    after the spatial one."""
    return _moved(f"{layer}.temopral_conv.{words}") if words.startswith("conv") else f"{layer[:-1]}2.{words}"


def _moved(key: str) -> str:
    """The layer after a temporal transformer has an index that is higher by one than LDM's."""
    return re.sub(r"^middle_block\.2\.", "middle_block.3.", re.sub(r"^(output_blocks\.\d+)\.2\.", r"\1.3.", key))


def _words(rest: str) -> str:
    """'layers.1.2.weight' becomes 'conv2.3.weight' (all convolutions but the first follow a dropout), 'block.' the
    name of the first transformer block."""
    match = re.fullmatch(r"layers\.(\d)\.(\d)\.(\w+)", rest)
    if not match:
        return re.sub(r"^block\.", "transformer_blocks.0.", rest)
    index, layer = int(match[1]), int(match[2])
    return f"conv{index + 1}.{layer + (layer == 2 and index > 0)}.{match[3]}"
