"""A model file as the host's own objects: MODEL and CLIP and VAE that its samplers, loaders and memory manager know."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor, nn

from ..microcinema_core.checkpoint import AUTOENCODER, NETWORK, TEXT, complete, read_config
from ..microcinema_core.config import ModelConfig
from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.model import Condition, MicroCinemaUNet
from ..microcinema_core.model.autoencoder import Autoencoder
from ..microcinema_core.model.text import TextEncoder, WordTokens
from ..microcinema_core.prior import prior_mean

APPEARANCE = "microcinema_appearance"  # the conditioning's key


@dataclass(frozen=True, eq=False)
class Appearance:
    """What a conditioning carries: the picture's latents (k, C, h, w), as the VAE gives them, and the prior."""

    latents: Tensor
    lambda_: float = 0.0
    gamma: float = 0.0


def check_size(picture: Tensor, clip: Tensor) -> None:
    """The picture's latents (k, C, h, w) and the clip's (frames, C, h, w) are of one size."""
    if picture.shape[1:] != clip.shape[1:]:
        told, found = ("×".join(map(str, latents.shape[1:])) for latents in (picture, clip))
        raise MicroCinemaError(
            f"The picture's latents are {told} (channels, height, width), those to sample are {found}: take the "
            "latent from the same Appearance Noise Prior Latent."
        )


# --- MODEL ---


class Network(MicroCinemaUNet):
    """The core's network under the call the host makes: text comes once per frame, controls by place, and a context
    window brings some of the clip's frames only."""

    def __init__(self, config, *, operations, dtype=None, device=None, **described):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(
        self, x, timesteps, context=None, control=None, transformer_options=None,
        *, condition, clip_frames, **unused,
    ):  # fmt: skip
        places, offsets = _window(transformer_options), None
        if places is not None:
            offsets = torch.tensor(places, device=x.device) - (clip_frames - 1) / 2
        frames = clip_frames if places is None else len(places)
        if context is not None:
            context = context[::frames]
        return super().forward(
            x, timesteps, context, condition=condition, num_video_frames=frames, control=control, offsets=offsets
        )


def _window(transformer_options) -> list[int] | None:
    """Which frames of the clip a call of the network brings, where not all."""
    window = (transformer_options or {}).get("context_window")
    if window is None:
        return None
    anchor = getattr(window, "causal_anchor_index", None)  # a frame before the window that newer hosts show and drop
    return [*([] if anchor is None else [anchor]), *window.index_list]


class Config(comfy.supported_models_base.BASE):
    """What the host asks of a family of models, answered from the file's header."""

    unet_extra_config = {}
    memory_usage_factor = 2.0

    def __init__(self, config: ModelConfig):
        network = config.network
        levels, blocks = network.channel_multipliers, network.res_blocks
        depth = [int(level in network.attention_levels) for level in range(len(levels))]
        super().__init__({
            "config": network,
            # The rest describes the spatial network as the host does SD2.1's, for the key names of LoRAs.
            "num_res_blocks": [blocks] * len(levels), "channel_mult": list(levels), "transformer_depth_middle": 1,
            "transformer_depth": [d for d in depth for _ in range(blocks)],
            "transformer_depth_output": [d for d in depth for _ in range(blocks + 1)],
        })  # fmt: skip
        self.microcinema = config
        self.sampling_settings = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012}
        self.latent_format = latent_format(config)

    def get_model(self, state_dict, prefix="", device=None):
        kinds = comfy.model_base.ModelType
        return Model(self, {"eps": kinds.EPS, "v": kinds.V_PREDICTION}[self.microcinema.parameterization], device)


def latent_format(config: ModelConfig) -> comfy.latent_formats.LatentFormat:
    if config.autoencoder.latent_channels == 4:
        return comfy.latent_formats.SD15(config.autoencoder.scale)
    made = comfy.latent_formats.LatentFormat()
    made.scale_factor = config.autoencoder.scale
    made.latent_channels = config.autoencoder.latent_channels
    made.spacial_downscale_ratio = config.autoencoder.factor
    return made


class Model(comfy.model_base.BaseModel):
    """AppearNet runs when the conditionings are prepared, once per picture and run; nothing of it outlives the run."""

    def __init__(self, model_config: Config, model_type, device=None):
        super().__init__(model_config, model_type, device=device, unet_model=Network)
        self.microcinema = model_config.microcinema
        self._encoded = weakref.WeakValueDictionary()

    @property
    def compute_dtype(self):
        """What newer hosts call get_dtype_inference()."""
        return self.manual_cast_dtype or self.get_dtype()

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        noise, appearance = kwargs["noise"], kwargs.get(APPEARANCE)
        if appearance is None:
            raise MicroCinemaError(
                "The conditioning carries no picture: pass it through Appearance Noise Prior Latent, positive and "
                "negative."
            )
        check_size(appearance.latents, noise)
        # Not num_video_frames: the host sets that to the length of a context window.
        out["clip_frames"] = comfy.conds.CONDConstant(noise.shape[0])
        out["condition"] = EncodedCond(self.encode(appearance, kwargs["device"]))
        return out

    def encode(self, appearance: Appearance, device) -> Condition:
        encoded = self._encoded.get(id(appearance))
        if encoded is None:
            latents = self.process_latent_in(appearance.latents).to(device, self.compute_dtype)
            with torch.no_grad():
                encoded = self.diffusion_model.encode_condition(latents[None])
            encoded.appearance = appearance  # so that no other takes its id while this is alive
            self._encoded[id(appearance)] = encoded
        return encoded


class EncodedCond(comfy.conds.CONDRegular):
    """AppearNet's features in a conditioning. All halves of a batch share them as they are."""

    def process_cond(self, batch_size, **kwargs):
        return self

    def can_concat(self, other):
        return self.cond is other.cond

    def concat(self, others):
        return self.cond

    def size(self):
        return [1, sum(scale.numel() + shift.numel() for scale, shift in self.cond.modulations)]


# Building a module draws its first weights, which the file's replace: the host's random state is left as it was.
unnoticed = torch.random.fork_rng(devices=[])


@unnoticed
def load_model(path: str | Path, options: dict, disable_dynamic: bool = False):
    """The file's network as the host's ModelPatcher; `options` as its own loaders take them: dtype."""
    config, tensors = read_config(path), _tensors(path, NETWORK)
    management, made = comfy.model_management, Config(config)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    dtypes = made.supported_inference_dtypes
    dtype = options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors),
        supported_dtypes=dtypes,
        weight_dtype=comfy.utils.weight_dtype(tensors),
    )
    made.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    if made.latent_format.latent_rgb_factors is None and (autoencoder := _autoencoder(path, config)):
        set_preview(made.latent_format, autoencoder)
    model = made.get_model(tensors)
    # Not the host's network: with dynamic VRAM its Linear layers have no weights until they load.
    _check(path, tensors, MicroCinemaUNet(config.network, device="meta"))
    latest = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = (comfy.model_patcher.ModelPatcher if disable_dynamic else latest)(model, device, offload)
    assign = {"assign": True} if getattr(patcher, "is_dynamic", bool)() else {}
    model.load_model_weights(tensors, "", **assign)
    patcher.cached_patcher_init = (load_model, (path, options))
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, APPEARANCE, add_prior)
    return patcher


# --- the prior ---


def add_prior(executor, noise, latent_image, *args, **kwargs):
    """The one place where the prior enters a run of our models, whatever sampler and noise a person wires, and where
    a run that the host would begin in vain is refused.

    Noise that is all zero, as in a second stage without new noise, and noise that carries it already stay as they are.
    """
    along = getattr(executor.class_obj.model_options.get("context_handler"), "dim", 0)
    if along:
        raise MicroCinemaError(f"The context windows cut dimension {along}, frames are dimension 0: set dim to 0.")
    found = [cond[APPEARANCE] for cond in executor.class_obj.conds.get("positive", []) if APPEARANCE in cond]
    if found and noise.any() and not getattr(noise, APPEARANCE, False):
        model = executor.class_obj.model_patcher.model
        noise = with_prior(noise, model.process_latent_in(found[0].latents), found[0].lambda_ + found[0].gamma)
    return executor(noise, latent_image, *args, **kwargs)


def with_prior(noise: Tensor, latents: Tensor, strength: float) -> Tensor:
    """Noise (frames, C, h, w) + strength · latents (k, C, h, w), scaled for the model. It is marked as carrying it."""
    check_size(latents, noise)
    noise = noise + prior_mean(latents[None].to(noise), noise.shape[0], strength)[0]
    setattr(noise, APPEARANCE, True)
    return noise


# --- CLIP ---


class Text(nn.Module):
    """The demo models' text tower as the host calls one."""

    def __init__(self, config, device=None, dtype=None, model_options=None):
        super().__init__()
        self.text = TextEncoder(config).to(device, dtype)
        self.dtypes = {dtype}

    def set_clip_options(self, options):
        if options.get("layer") is not None:
            raise MicroCinemaError("This text encoder has no layers to skip: leave CLIP Set Last Layer out.")

    def reset_clip_options(self):
        pass

    def encode_token_weights(self, tokens):
        """Weights in brackets scale a token's distance from the empty sentence's, as the host does."""
        pairs = tokens["words"]
        ids = torch.tensor([[token for token, *_ in row] for row in pairs])
        weights = torch.tensor([[weight for _, weight, *_ in row] for row in pairs])[..., None]
        states = self.text(ids)
        if (weights != 1).any():
            empty = self.text(self.text.tokenizer([""]))
            states = empty + (states - empty) * weights.to(states)
        return states, None

    def load_sd(self, state_dict):
        return self.text.load_state_dict(state_dict, strict=False)


class Words:
    """Words to tokens with weights, as the host's tokenizers give them."""

    def __init__(self, config):
        self.words = WordTokens(config)

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        parts = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
        parts = [(comfy.sd1_clip.unescape_important(part), weight) for part, weight in parts]
        self._check(" ".join(part for part, _ in parts))
        weights = [weight for part, weight in parts for word in self._ids(part)]
        ids = self.words([" ".join(part for part, _ in parts)])[0].tolist()
        weights = [1.0, *weights]
        weights = (weights + [1.0] * len(ids))[: len(ids)]
        row = zip(ids, weights, range(len(ids)), strict=True)
        return {"words": [[entry if return_word_ids else entry[:2] for entry in row]]}

    def _ids(self, text):
        return [
            i for i in self.words.tokenizer.encode(text, add_special_tokens=False).ids if i != self.words.unknown_id
        ]

    def _check(self, prompt):
        unknown = self.words.unknown_words(prompt)
        if not unknown:
            return
        names = ", ".join(f"'{word}'" for word in unknown)
        message = f"The model does not know {names}: it knows {', '.join(self.words.vocabulary)}."
        if not self._ids(prompt):
            raise MicroCinemaError(message)
        logging.warning("MicroCinema: %s", message)

    def untokenize(self, pairs):
        known = self.words.tokenizer
        return [(pair, known.id_to_token(pair[0])) for pair in pairs]

    def state_dict(self):
        return {}


class Target:
    """What comfy.sd.CLIP builds from."""

    def __init__(self, config):
        self.params = {}
        self.clip = lambda **kw: Text(config, **kw)
        self.tokenizer = lambda **kw: Words(config)


@unnoticed
def load_clip(path: str | Path):
    """The file's text tower as CLIP, or what tells a person that there is none."""
    config, tensors = read_config(path), _tensors(path, TEXT)
    if not tensors or config.text.tokenizer is None:  # CLIP's own tower is the host's to load
        name = Path(path).name
        if config.text is None:
            return Absent(f"'{name}' reads no text: leave CLIP unconnected.")
        return Absent(f"'{name}' brings no text encoder of its own: take CLIP from Load CLIP or an SD2.1 checkpoint.")
    clip = comfy.sd.CLIP(Target(config.text), model_options={"dtype": torch.float32})
    _check(path, tensors, clip.cond_stage_model.text)
    clip.load_sd({f"text.{key}": value for key, value in tensors.items()}, full_model=True)
    return clip


# --- VAE ---


class HostAutoencoder(Autoencoder):
    """The core's autoencoder between pictures in [-1, 1] and unscaled latents, as the host has it."""

    def encode(self, pictures):
        return super().encode((pictures + 1) / 2) / self.config.scale

    def decode(self, latents):
        return super().decode(latents * self.config.scale) * 2 - 1


@unnoticed
def load_vae(path: str | Path):
    """The file's autoencoder as VAE, or what tells a person that there is none."""
    config = read_config(path)
    model = _autoencoder(path, config)
    if model is None:
        return Absent(
            f"'{Path(path).name}' holds no VAE: take VAE from Load VAE or from the SD2.1 checkpoint's loader."
        )
    # The host builds SD's layout only; a small one of its own is put in and then replaced by ours.
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


def _autoencoder(path, config: ModelConfig) -> HostAutoencoder | None:
    tensors = _tensors(path, AUTOENCODER)
    if not tensors:
        return None
    model = HostAutoencoder(config.autoencoder).eval().requires_grad_(False)
    _check(path, tensors, model)
    model.load_state_dict(tensors)
    return model


def set_preview(latent_format: comfy.latent_formats.LatentFormat, autoencoder: Autoencoder) -> None:
    """What the host's live previews show a latent cell as: the linear map to its mean colour in [-1, 1] that fits
    latents of blurred coloured noise best."""
    factor = autoencoder.config.factor
    colours = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = nn.functional.interpolate(colours, size=(12 * factor, 12 * factor), mode="bilinear")
    latents = latent_format.process_in(autoencoder.encode(pictures)).movedim(1, -1).flatten(0, 2)
    cells = nn.functional.avg_pool2d(pictures, factor).movedim(1, -1).flatten(0, 2)
    fitted = torch.linalg.lstsq(nn.functional.pad(latents, (0, 1), value=1.0), cells).solution
    latent_format.latent_rgb_factors = fitted[:-1].tolist()
    latent_format.latent_rgb_factors_bias = fitted[-1].tolist()


class Absent:
    """Stands for a part that the file does not hold; whoever uses it is told where to get one."""

    _message = ""  # of a copy in the making

    def __init__(self, message: str):
        self._message = message

    def __getattr__(self, name):
        raise AbsentPart(self._message)


class AbsentPart(MicroCinemaError, AttributeError):
    """Also an AttributeError, for the host looks into all outputs with getattr and hasattr."""


def _tensors(path, prefix: str) -> dict[str, Tensor]:
    tensors = complete(comfy.utils.load_torch_file(str(path), safe_load=True))
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _check(path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Every key accounted for, of the right shape; the host itself only logs what is missing."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    wrong = sorted(
        key for key in expected.keys() | tensors.keys()
        if key not in tensors or tensors[key].shape != expected.get(key)
    )  # fmt: skip
    if wrong:
        raise MicroCinemaError(f"'{path}' does not hold what its header says ('{wrong[0]}'): fetch it again")
