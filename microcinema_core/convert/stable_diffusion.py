"""Stable Diffusion 2.1 base (Rombach et al. 2022): one file with LDM's and open_clip's names, or diffusers' folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import MicroCinemaError
from ..header import AUTOENCODER, NETWORK, SD21, TEXT
from ..model import SpatialUNet
from ..model.autoencoder import Autoencoder
from ..model.text import ClipText
from ..validated import shown
from .names import diffusers_autoencoder, diffusers_unet, open_clip, unet_places
from .stored import Source, Stored, open_tensors, sort_rest, take, weights_in

# The patterns, by reason, of what a training's file has beside a model.
IN_TRAINING = {
    "running averages of the training": r"model_ema\.",
    "the training's loss": r"first_stage_model\.loss\.",
    "the noise schedule, which is always the same":
        r"(betas|alphas_cumprod\w*|(sqrt|log|posterior)_\w+|logvar|lvlb_weights|scale_factor|scale_arr)$",
}  # fmt: skip


def stable_diffusion(path: Path, config: ModelConfig) -> Source:
    """SD2.1-base from a file or folder: the UNet, and the autoencoder and text encoder where it contains them.

    Raises MicroCinemaError for another model, and for a tensor that is missing, unknown or of another shape.
    """
    if not os.path.exists(path):
        raise MicroCinemaError(
            f"there is no checkpoint '{shown(str(path), 300)}': give {SD21}, or its folder of diffusers'"
        )
    folder = os.path.isdir(path)
    stored = _folder(path) if folder else open_tensors(path)
    _refuse(path, stored)
    tensors = take_parts(path, stored, config, (NETWORK, AUTOENCODER, TEXT), folder)
    return Source(tensors, sort_rest(path, stored, IN_TRAINING | unused(config)))


def take_parts(
    path: Path,
    stored: dict[str, Stored],
    config: ModelConfig,
    parts: Iterable[str],
    folder: bool = False,
    model: str = SD21,
) -> dict[str, Stored]:
    """Remove the tensors of `parts`, by the prefix of our keys, from `stored`, and return them by our keys.

    A part of which the file has no tensor is left out, except the network. folder: the names are those of a diffusers
    folder. Raises MicroCinemaError as take does.
    """
    for key in [key for key in stored if ".attn.in_proj_" in key]:
        joint = stored.pop(key)
        stored |= {key.replace("in_proj_", f"{name}_proj."): joint.third(i) for i, name in enumerate("qkv")}
    with torch.device("meta"):
        modules = {NETWORK: SpatialUNet(config.network), AUTOENCODER: Autoencoder(config.autoencoder)}
        if config.text:
            modules[TEXT] = ClipText(config.text)
    names_of = dict.fromkeys((NETWORK, AUTOENCODER), lambda key: [key]) | {TEXT: open_clip}
    prefixes = {part: part for part in modules}
    if folder:
        places = unet_places(config.network)
        names_of = {
            NETWORK: lambda key: [diffusers_unet(key, places)],
            AUTOENCODER: lambda key: diffusers_autoencoder(key, config.autoencoder),
            TEXT: lambda key: ["text_model." + key, key],
        }
        prefixes = {NETWORK: "unet/", AUTOENCODER: "vae/", TEXT: "text_encoder/"}

    tensors = {}
    for part in [part for part in parts if part in modules]:
        if part == NETWORK or any(key.startswith(prefixes[part]) for key in stored):
            expected = modules[part].state_dict()
            names = {key: [prefixes[part] + name for name in names_of[part](key)] for key in expected}
            prefix = part + "transformer." if part == TEXT else part
            tensors |= {prefix + key: tensor for key, tensor in take(path, stored, names, expected, model).items()}
    return tensors


def unused(config: ModelConfig) -> dict[str, str]:
    """The patterns, by reason, of the tensors of SD2.1 that a model of this configuration does not use."""
    if not config.text:
        return {"the text encoder and what attends to it": r"cond_stage_model\.|text_encoder/|.*\.(attn2|norm2)\."}
    last = "|".join(map(str, range(config.text.layers - config.text.skip_last, config.text.layers)))
    return {
        "parts of the text encoder that no image model reads":
            rf"(cond_stage_model|text_encoder).*(layers|resblocks)\.({last})\."
            r"|cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)$"
            r"|text_encoder/(text_projection\.weight|(text_model\.)?embeddings\.position_ids)$",
    }  # fmt: skip


def _folder(path: Path) -> dict[str, Stored]:
    """The tensors of a diffusers folder. A name starts with that of the subfolder: 'unet/conv_in.weight'."""
    if not weights_in(path / "unet"):
        raise MicroCinemaError(f"'{path}' is no diffusers folder with unet/*.safetensors: give it, or {SD21}")
    stored = {}
    for part in ("unet", "vae", "text_encoder"):
        if file := weights_in(path / part):
            stored |= {f"{part}/{key}": tensor for key, tensor in open_tensors(file).items()}
    return stored


def _refuse(path: Path, stored: dict[str, Stored]) -> None:
    """Raise MicroCinemaError for other models that a user may take for SD2.1-base."""

    def refuse(what: str, cure: str = f"give {SD21}"):
        raise MicroCinemaError(f"'{path}' is {what}: {cure}")

    text_keys = [key for key in stored if key.endswith("attn2.to_k.weight")]
    if any(key.startswith(NETWORK + "temporal_convs.") for key in stored):
        refuse("a model of MicroCinema already")
    if any(re.search(r"lora[_.]", key) for key in stored):
        refuse("a LoRA, which holds changes to a model", f"give the model itself, {SD21}")
    if any(".temopral_conv." in key or ".temp_convs." in key for key in stored):
        refuse("a video model", f"give it to --warm-start, and to --from {SD21}")
    if any(re.match(r"conditioner\.|model\.diffusion_model\.label_emb\.|unet/add_embedding\.", key) for key in stored):
        refuse("SDXL or another model with a second embedding")
    if any(key.startswith("cond_stage_model.transformer.") for key in stored) or any(
        stored[key].shape[1:] == (768,) for key in text_keys
    ):
        refuse("Stable Diffusion 1.5, which reads another text encoder's states")
    # The v-prediction model has the same keys; ComfyUI (supported_models.SD20) also recognises it by this bias.
    block = "transformer_blocks.0.norm1.bias"
    last = (f"{NETWORK}output_blocks.11.1.{block}", f"unet/up_blocks.3.attentions.2.{block}")
    bias = next((stored[key].read().float() for key in last if key in stored), torch.zeros(1))
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        text = scheduler.read_text(errors="replace")
        predicts_v = re.search(r'"prediction_type":\s*"v_prediction"', text) is not None
    else:
        predicts_v = bias.std(unbiased=False) > 0.09
    if predicts_v:
        refuse("Stable Diffusion 2.1 of 768 pixels, which predicts v and not noise")
