"""What public checkpoints hold, under the names that our model files have for it.

Stable Diffusion 2.1 base (Rombach et al. 2022) as one file, with LDM's and open_clip's names, or as diffusers' folder;
the temporal layers of ModelScope's text-to-video model (Wang et al. 2023) with diffusers' names or with its own.
Headers alone are read here; a tensor leaves its file when it is asked for.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import AutoencoderConfig, ModelConfig, NetworkConfig
from .errors import MicroCinemaError
from .header import AUTOENCODER, NETWORK, SD21, TEXT
from .model import MicroCinemaUNet, SpatialUNet
from .model.autoencoder import Autoencoder
from .model.layers import ResBlock, SpatialTransformer
from .model.text import ClipText
from .validated import shown

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: the name it has there, and what reads it."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: none of DTYPES
    read: Callable[[], Tensor]

    def third(self, index: int) -> Stored:
        """One of three that are stored as one, along the first axis."""
        rows = self.shape[0] // 3
        part = slice(index * rows, (index + 1) * rows)
        return Stored(self.key, (rows, *self.shape[1:]), self.dtype, lambda: self.read()[part])

    def shaped(self, shape: tuple[int, ...]) -> Stored:
        return Stored(self.key, shape, self.dtype, lambda: self.read().reshape(shape))


@dataclass(frozen=True)
class Source:
    """What is taken, by our names, and the names of what is left, by reason."""

    tensors: dict[str, Stored]
    left: dict[str, set[str]]


# --- the two sources ---


def stable_diffusion(path: Path, config: ModelConfig) -> Source:
    """SD2.1-base in a file or folder: its UNet, and its autoencoder and text encoder where it brings them.

    Raises MicroCinemaError for another model, and for a key that is missing, unknown or of another shape.
    """
    if not os.path.exists(path):
        raise MicroCinemaError(
            f"there is no checkpoint '{shown(str(path), 300)}': give {SD21}, or its folder of diffusers'"
        )
    folder = os.path.isdir(path)
    stored = _folder(path) if folder else open_tensors(path)
    _refuse(path, stored)
    for key in [key for key in stored if ".attn.in_proj_" in key]:
        whole = stored.pop(key)
        stored |= {key.replace("in_proj_", f"{name}_proj."): whole.third(i) for i, name in enumerate("qkv")}

    parts = {
        NETWORK: SpatialUNet(config.network, device="meta"),
        AUTOENCODER: _on_meta(Autoencoder, config.autoencoder),
    }
    if config.text:
        parts[TEXT] = _on_meta(ClipText, config.text)
    theirs = dict.fromkeys((NETWORK, AUTOENCODER), lambda key: [key]) | {TEXT: _open_clip}
    homes = {part: part for part in parts}
    if folder:
        places = _unet_places(config.network)
        theirs = {
            NETWORK: lambda key: [_diffusers_unet(key, places)],
            AUTOENCODER: lambda key: _diffusers_autoencoder(key, config.autoencoder),
            TEXT: lambda key: ["text_model." + key, key],
        }
        homes = {NETWORK: "unet/", AUTOENCODER: "vae/", TEXT: "text_encoder/"}

    found = {}
    for part, module in parts.items():
        if part == NETWORK or any(key.startswith(homes[part]) for key in stored):
            names = {key: [homes[part] + name for name in theirs[part](key)] for key in module.state_dict()}
            taken = _take(path, stored, names, module.state_dict(), SD21)
            prefix = part + "transformer." if part == TEXT else part
            found |= {prefix + key: tensor for key, tensor in taken.items()}
    return Source(found, _leave(path, stored, {
        "running averages of the training": r"model_ema\.",
        "the training's loss": r"first_stage_model\.loss\.",
        "the noise schedule, which is always the same":
            r"(betas|alphas_cumprod\w*|(sqrt|log|posterior)_\w+|logvar|lvlb_weights|scale_factor)$",
        **_unread(config),
    }))  # fmt: skip


def _unread(config: ModelConfig) -> dict[str, str]:
    if not config.text:
        return {"the text encoder and what attends to it": r"cond_stage_model\.|text_encoder/|.*\.(attn2|norm2)\."}
    last = "|".join(map(str, range(config.text.layers - config.text.skip_last, config.text.layers)))
    return {
        "parts of the text encoder that no image model reads":
            rf"(cond_stage_model|text_encoder).*(layers|resblocks)\.({last})\."
            r"|cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)$"
            r"|text_encoder/(text_projection\.weight|(text_model\.)?embeddings\.position_ids)$",
    }  # fmt: skip


def temporal_layers(path: Path, network: NetworkConfig) -> Source:
    """The temporal layers of ModelScope's text-to-video model, in a file or a diffusers folder.

    `network` holds them without a change of function when it has four convolutions a block, two attentions and no
    positions. Raises MicroCinemaError as stable_diffusion does.
    """
    stored = open_tensors(_weights(path / "unet") or _weights(path) or path)
    module = MicroCinemaUNet(network, device="meta")
    places, expected = _unet_places(network), module.state_dict()
    layers = {
        kind: [name for name, layer in module.named_modules() if type(layer) is kind and "appearance" not in name]
        for kind in (ResBlock, SpatialTransformer)
    }
    own = any(".temopral_conv." in key for key in stored)  # so it is spelt there
    names = {}
    for key in expected:
        kind, _, rest = key.partition(".")
        if kind in ("temporal_convs", "temporal_transformers"):
            index, _, rest = rest.partition(".")
            beside = layers[ResBlock if kind == "temporal_convs" else SpatialTransformer][int(index)]
            names[key] = [(_modelscope_temporal if own else _diffusers_temporal)(beside, rest, places)]
    if not any(name in stored for [name] in names.values()):
        raise MicroCinemaError(
            f"'{path}' holds no temporal layers of ModelScope's text-to-video model: choose that one"
        )
    found = _take(path, stored, names, expected, "ModelScope's text-to-video model")
    spatial = SpatialUNet(replace(network, context_dim=1024), device="meta").state_dict()  # for their names alone
    spatial = {_modelscope_spatial(key) if own else _diffusers_unet(key, places) for key in spatial}
    return Source({NETWORK + key: tensor for key, tensor in found.items()}, _leave(path, stored, {
        "its spatial layers, in place of which Stable Diffusion's are taken": f"({'|'.join(map(re.escape, spatial))})$",
        "a temporal layer before all others, which has no place here": r"(transformer_in|input_blocks\.0\.1)\.",
    }))  # fmt: skip


# --- files ---


def open_tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a .safetensors file, or of a .ckpt, .pth or .bin of nothing but weights, none of them read yet."""
    if not os.path.isfile(path):  # a Path of a name too long would raise
        name = shown(str(path), 300)
        raise MicroCinemaError(f"there is no checkpoint '{name}': give a .safetensors file or a folder of diffusers'")
    if path.suffix != ".safetensors":
        return _unpickled(path)
    try:
        file = safe_open(path, "pt")
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a safe_open is no dict)
    except (SafetensorError, OSError) as error:
        raise MicroCinemaError(f"'{path}' is truncated or no safetensors file ({error}): fetch it again") from error
    return {
        key: Stored(key, tuple(s.get_shape()), DTYPES.get(s.get_dtype()), lambda key=key: file.get_tensor(key))
        for key, s in slices.items()
    }


def _unpickled(path: Path) -> dict[str, Stored]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise MicroCinemaError(f"'{path}' is damaged or holds more than weights: use its .safetensors form") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise MicroCinemaError(f"'{path}' is truncated or no checkpoint: fetch it again, as .safetensors") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    known = set(DTYPES.values())
    return {
        key: Stored(key, tuple(t.shape), t.dtype if t.dtype in known else None, lambda t=t: t)
        for key, t in tensors.items()
    }


def _folder(path: Path) -> dict[str, Stored]:
    """The tensors of a diffusers folder, each name after that of its part: 'unet/conv_in.weight'."""
    if not _weights(path / "unet"):
        raise MicroCinemaError(f"'{path}' is no diffusers folder with unet/*.safetensors: give it, or {SD21}")
    stored = {}
    for part in ("unet", "vae", "text_encoder"):
        if file := _weights(path / part):
            stored |= {f"{part}/{key}": tensor for key, tensor in open_tensors(file).items()}
    return stored


def _weights(folder: Path) -> Path | None:
    """The weights in one part's folder, by diffusers' or transformers' name; full precision comes first."""
    names = [
        stem + end for end in (".safetensors", ".fp16.safetensors") for stem in ("diffusion_pytorch_model", "model")
    ]
    return next((folder / name for name in names if (folder / name).is_file()), None)


# --- models that are not the one asked for ---


def _refuse(path: Path, stored: dict[str, Stored]) -> None:
    """Raise for the models that are most easily mistaken for SD2.1-base."""

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
    # No key tells the model of v-prediction from that of eps; ComfyUI (supported_models.SD20) looks at this bias too.
    block = "transformer_blocks.0.norm1.bias"
    last = (f"{NETWORK}output_blocks.11.1.{block}", f"unet/up_blocks.3.attentions.2.{block}")
    bias = next((stored[key].read().float() for key in last if key in stored), torch.zeros(1))
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        predicts_v = (
            re.search(r'"prediction_type":\s*"v_prediction"', scheduler.read_text(errors="replace")) is not None
        )
    else:
        predicts_v = bias.std(unbiased=False) > 0.09
    if predicts_v:
        refuse("Stable Diffusion 2.1 of 768 pixels, which predicts v and not noise")


# --- every key accounted for ---


def _take(
    path: Path, stored: dict[str, Stored], names: dict[str, list[str]], expected: dict[str, Tensor], model: str
) -> dict[str, Stored]:
    """Move from `stored` what `names` lists, our key to what it may be called there, checked against `expected`.

    Sides of 1 at a shape's end do not count: a linear layer is a 1×1 convolution, a (3, 1) one a (3, 1, 1) one.
    """
    taken = {}
    for key, candidates in names.items():
        shape = tuple(expected[key].shape)
        name = next((name for name in candidates if name in stored), None)
        if name is None:
            raise MicroCinemaError(f"'{path}' lacks '{candidates[0]}', expected {shape}: give all of {model}")
        tensor = stored.pop(name)
        if _without_ones(tensor.shape) != _without_ones(shape):
            raise MicroCinemaError(f"'{path}' has '{name}' of shape {tensor.shape}, expected {shape}: give {model}")
        if tensor.dtype is None:
            raise MicroCinemaError(f"'{path}' has '{name}' in no format of {', '.join(DTYPES)}: give one of these")
        taken[key] = tensor.shaped(shape)
    return taken


def _leave(path: Path, stored: dict[str, Stored], reasons: dict[str, str]) -> dict[str, set[str]]:
    """All that is still in `stored`, by the reason whose pattern it matches. Raises for a key that none does."""
    left: dict[str, set[str]] = {}
    for name, tensor in stored.items():
        reason = next((reason for reason, pattern in reasons.items() if re.match(pattern, name)), None)
        if reason is None:
            raise MicroCinemaError(
                f"'{path}' holds an unknown '{name}' of shape {tensor.shape}, expected none of that name: give the "
                "model as it was published"
            )
        left.setdefault(reason, set()).add(tensor.key)
    return left


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while shape[2:] and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _on_meta(kind: Callable, *arguments):
    with torch.device("meta"):
        return kind(*arguments)


# --- names ---


def _open_clip(key: str) -> list[str]:
    """A key of our text tower, which has transformers' names, in open_clip's words, as SD2.1's file has them."""
    for ours, theirs in (
        ("embeddings.token_embedding", "token_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("final_layer_norm", "ln_final"), ("encoder.layers", "transformer.resblocks"), ("self_attn", "attn"),
        ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    return ["model." + key]


def _unet_places(config: NetworkConfig) -> dict[str, str]:
    """Where diffusers puts each of LDM's layers."""
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


def _diffusers_unet(key: str, places: dict[str, str]) -> str:
    """An LDM key in diffusers' words."""
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


def _diffusers_autoencoder(key: str, config: AutoencoderConfig) -> list[str]:
    """An LDM key of the autoencoder in diffusers' words, those of today and those of files from 2022."""
    last = len(config.channel_multipliers) - 1
    key = re.sub(r"encoder\.down\.(\d)\.", r"encoder.down_blocks.\1.", key)
    key = re.sub(r"decoder\.up\.(\d)\.", lambda match: f"decoder.up_blocks.{last - int(match[1])}.", key)
    key = re.sub(r"mid\.block_(\d)", lambda match: f"mid_block.resnets.{int(match[1]) - 1}", key)
    for ours, theirs in (
        (".block.", ".resnets."), (".downsample.", ".downsamplers.0."), (".upsample.", ".upsamplers.0."),
        ("norm_out", "conv_norm_out"), ("nin_shortcut", "conv_shortcut"),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    attention, found, layer = key.partition("mid.attn_1.")
    if not found:
        return [key]
    names = {
        "norm": "group_norm",
        "q": "to_q query",
        "k": "to_k key",
        "v": "to_v value",
        "proj_out": "to_out.0 proj_attn",
    }
    layer, _, kind = layer.partition(".")
    return [f"{attention}mid_block.attentions.0.{name}.{kind}" for name in names[layer].split()]


def _diffusers_temporal(beside: str, rest: str, places: dict[str, str]) -> str:
    """The rest of a temporal layer's key behind the spatial layer that it follows, in diffusers' words."""
    place = places[beside].replace("resnets", "temp_convs").replace("attentions", "temp_attentions")
    return f"{place}.{_modelscope_words(rest)}"


def _modelscope_temporal(beside: str, rest: str, places: dict[str, str]) -> str:
    """The same in ModelScope's own: a convolution is part of its ResBlock, a transformer follows the spatial one."""
    words = _modelscope_words(rest)
    if words.startswith("conv"):
        return _modelscope_spatial(f"{beside}.temopral_conv.{words}")
    return f"{beside[:-1]}2.{words}"


def _modelscope_words(rest: str) -> str:
    """'layers.1.2.weight' becomes 'conv2.3.weight' (all but the first have a dropout), 'block.' its transformer's."""
    match = re.fullmatch(r"layers\.(\d)\.(\d)\.(\w+)", rest)
    if not match:
        return re.sub(r"^block\.", "transformer_blocks.0.", rest)
    index, layer = int(match[1]), int(match[2])
    return f"conv{index + 1}.{layer + (layer == 2 and index > 0)}.{match[3]}"


def _modelscope_spatial(key: str) -> str:
    """An LDM key where temporal transformers have moved what follows them one place on."""
    key = re.sub(r"^(input_blocks\.\d+)\.0\.op", r"\1.op", key)
    return re.sub(r"^middle_block\.2\.", "middle_block.3.", re.sub(r"^(output_blocks\.\d+)\.2\.", r"\1.3.", key))
