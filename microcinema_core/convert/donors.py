"""Public video models whose layers a full-size model can start from: how they are recognised, and what is taken.

All of them are Stable Diffusion 2.1's UNet with four temporal convolutions after every ResBlock, a temporal transformer
of two self-attentions without positions after every spatial one, and one more after the input convolution.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import AUTOENCODER, NETWORK, TEXT, ModelConfig, NetworkConfig
from ..errors import MicroCinemaError
from ..model import build
from .lvdm import spatial_layers
from .spelling import Spelling, diffusers, lvdm, names_in, vgen
from .stable_diffusion import IN_TRAINING, take_parts, unused
from .stored import Source, Stored, open_tensors, sort_rest, take, weights_in

_PREDICTS_V = "its spatial layers: they predict v on another noise schedule, so Stable Diffusion's are taken"


@dataclass(frozen=True)
class Donor:
    """A public video model."""

    name: str
    licence: str
    page: str
    spelling: Callable[[NetworkConfig], Spelling]
    mark: str  # a tensor that no donor further down in DONORS has
    planes: int = 4  # of its input convolution
    rate: int | None = None  # the value of its frame-rate condition at which its spatial layers are taken
    # Why its spatial layers are left; None where they are taken.
    leaves_spatial: str | None = "its spatial layers, in place of which Stable Diffusion's are taken"


# A licence is what the weights' page or their authors state; docs/warm-starts.md has the sources.
_MODELSCOPE = (
    "ModelScope's text-to-video model", "CC BY-NC 4.0, no commercial use",
    "https://huggingface.co/ali-vilab/text-to-video-ms-1.7b",
)  # fmt: skip
_I2VGEN = (
    "I2VGen-XL", "MIT, but for research and no commercial use, as its authors state",
    "https://huggingface.co/ali-vilab/i2vgen-xl",
)  # fmt: skip
_FIRST_TEXT = NETWORK + "input_blocks.1.1.transformer_blocks.0.attn2."
DONORS = (
    Donor(*_I2VGEN, diffusers, "image_latents_proj_in.0.weight", planes=8, leaves_spatial=_PREDICTS_V),
    Donor(*_I2VGEN, vgen, "local_image_concat.0.weight", planes=8, leaves_spatial=_PREDICTS_V),
    Donor(*_MODELSCOPE, diffusers, "down_blocks.0.temp_convs.0.conv1.0.weight"),
    Donor(*_MODELSCOPE, vgen, "input_blocks.1.0.temopral_conv.conv1.0.weight"),
    Donor(
        "DynamiCrafter-256", "Apache-2.0", "https://huggingface.co/Doubiiu/DynamiCrafter",
        lvdm, _FIRST_TEXT + "alpha", planes=8, rate=3, leaves_spatial=None,
    ),
    Donor(
        "DynamiCrafter-512 or -1024", "Apache-2.0", "https://huggingface.co/Doubiiu/DynamiCrafter_512",
        lvdm, _FIRST_TEXT + "to_k_ip.weight", planes=8, leaves_spatial=_PREDICTS_V,
    ),
    Donor(
        "VideoCrafter2", "for research and no commercial use, as its authors state",
        "https://huggingface.co/VideoCrafter/VideoCrafter2",
        lvdm, NETWORK + "input_blocks.1.0.temopral_conv.conv1.0.weight", rate=28, leaves_spatial=None,
    ),
)  # fmt: skip
_BESIDE = {AUTOENCODER: "autoencoder", TEXT: "text encoder"}
_UNSHARED = {  # the patterns of what no donor's network shares with ours, by reason
    "its image cross-attention, in place of which AppearNet is": r".*\.attn2\.(to_k_ip\.weight|to_v_ip\.weight|alpha)$",
    "its encoders of the picture, in place of which AppearNet is":
        r"(embedder|image_proj_model|image_latents_\w+|local_\w+|context_embedding)\.",
    "its condition on the frame rate, which belongs to its spatial layers":
        rf"({re.escape(NETWORK)})?(fps_embedding|framestride_embed)\.",
}  # fmt: skip


@dataclass(frozen=True)
class WarmStart:
    """What a donor gives: the network that holds it, and the tensors taken and left."""

    donor: Donor
    network: NetworkConfig
    source: Source


def open_donor(path: Path) -> dict[str, Stored]:
    """The tensors of a donor's file, or of its UNet in a diffusers folder. Raises as open_tensors does."""
    return open_tensors(weights_in(path / "unet") or weights_in(path) or path)


def warm_start(path: Path, stored: dict[str, Stored], config: ModelConfig, has: Container[str]) -> WarmStart:
    """Take from `stored`, a donor's tensors, what a model of `config` has a place for; `has` names the parts, by the
    prefix of their keys, that another source has already.

    The temporal layers are always taken; they compute the same function here. Raises MicroCinemaError for another
    model, and for a tensor that is missing, unknown or of another shape.
    """
    donor = recognise(path, stored)
    spelling = donor.spelling(config.network)
    network = replace(
        config.network, temporal_conv_depth=4, temporal_attentions=2, temporal_positions=False,
        temporal_input=any(name.startswith(spelling.input_layer) for name in stored),
    )  # fmt: skip
    names, expected = names_in(network, spelling), build(network, device="meta").state_dict()
    temporal = {key: [name] for key, name in names.items() if key.startswith("temporal")}
    tensors, left = take(path, stored, temporal, expected, donor.name), {}
    if donor.leaves_spatial is None:
        spatial = {key: name for key, name in names.items() if key in expected and key not in temporal}
        source = spatial_layers(path, stored, spatial, expected, donor.name, donor.planes, donor.rate)
        tensors, left = tensors | source.tensors, source.left
    tensors = {NETWORK + key: tensor for key, tensor in tensors.items()}
    tensors |= take_parts(path, stored, config, [part for part in _BESIDE if part not in has], model=donor.name)
    reasons = _UNSHARED | IN_TRAINING
    if donor.leaves_spatial:
        own = "|".join(re.escape(name) for key, name in names.items() if key not in temporal)
        reasons |= {donor.leaves_spatial: f"({own})$"}
    reasons |= {
        f"its {name}, which the other file has": re.escape(part) for part, name in _BESIDE.items() if part in has
    }
    reasons |= unused(config)
    return WarmStart(donor, network, Source(tensors, left | sort_rest(path, stored, reasons)))


def recognise(path: Path, stored: dict[str, Stored]) -> Donor:
    """The donor whose tensors these are. Raises MicroCinemaError for any other model."""
    for donor in DONORS:
        first = stored.get(donor.spelling(NetworkConfig()).spatial("input_blocks.0.0.weight"))
        if donor.mark in stored and first and first.shape[1:2] == (donor.planes,):
            return donor
    known = ", ".join(dict.fromkeys(donor.name for donor in DONORS))
    raise MicroCinemaError(f"'{path}' is no video model that is known here: give one of {known}")
