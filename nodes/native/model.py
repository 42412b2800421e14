"""A file's network as the host's MODEL: its samplers, LoRAs, ControlNets, patches and memory manager work on it."""

from __future__ import annotations

import weakref
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...microcinema_core.checkpoint import NETWORK, config_tensor, read_config
from ...microcinema_core.config import ModelConfig
from ...microcinema_core.errors import MicroCinemaError
from ...microcinema_core.model import Condition, MicroCinemaUNet
from ..patches import HostPatches
from ..prior_patch import APPEARANCE, Appearance, check_size, sample_with_prior
from .files import check_keys, fork_rng, part_of
from .vae import load_autoencoder, set_preview


class Network(MicroCinemaUNet):
    """The core's network under the call the host makes: text comes once per frame, controls by place, a context window
    brings some of a clip's frames only, and other nodes have put wrappers and patches into `transformer_options`."""

    def __init__(self, config, *, operations, dtype=None, device=None, **described):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **kwargs):
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **kwargs)

    def _forward(self, x, timesteps, context, control, options, *, condition, clip_frames, **unused):
        places, frames, offsets = _window(options), clip_frames, None
        if places is not None:
            frames = len(places)
            offsets = torch.tensor(places, device=x.device, dtype=torch.float32) - clip_frames // 2
        if context is not None:
            context = context[::frames]
        patches = HostPatches(options, x)
        out = super().forward(
            x, timesteps, context, condition=condition, num_video_frames=frames, control=control, offsets=offsets,
            patches=patches,
        )  # fmt: skip
        patches.check()
        return out


def _window(options: dict) -> list[int] | None:
    """Which frames of the clip a call of the network brings, where not all."""
    window = options.get("context_window")
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
            # The rest describes the spatial network as the host does SD2.1's: for the key names of LoRAs, and FreeU.
            "model_channels": network.model_channels,
            "num_res_blocks": [blocks] * len(levels), "channel_mult": list(levels), "transformer_depth_middle": 1,
            "transformer_depth": [d for d in depth for _ in range(blocks)],
            "transformer_depth_output": [d for d in depth for _ in range(blocks + 1)],
        })  # fmt: skip
        self.microcinema = config
        self.sampling_settings = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012}
        self.latent_format = latent_format(config)
        self.supported_inference_dtypes = [getattr(torch, name) for name in config.dtypes]

    def get_model(self, state_dict, prefix="", device=None):
        kinds = comfy.model_base.ModelType
        return Model(self, {"eps": kinds.EPS, "v": kinds.V_PREDICTION}[self.microcinema.parameterization], device)

    # For the host's ModelSave and CheckpointSave, whose files have no header of ours.

    def process_unet_state_dict_for_saving(self, state_dict):
        return super().process_unet_state_dict_for_saving(state_dict) | config_tensor(self.microcinema)

    def process_clip_state_dict_for_saving(self, state_dict):
        own = {key.removeprefix("text."): value for key, value in state_dict.items()}
        return super().process_clip_state_dict_for_saving(own)


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
        check_size(appearance, noise)
        # Not num_video_frames: the host sets that to the length of a context window.
        out["clip_frames"] = comfy.conds.CONDConstant(noise.shape[0] // appearance.clips)
        out["condition"] = EncodedCond(self.encode(appearance, kwargs["device"]))
        return out

    def encode(self, appearance: Appearance, device) -> Condition:
        encoded = self._encoded.get(id(appearance))
        if encoded is None:
            latents = self.process_latent_in(appearance.latents).to(device, self.compute_dtype)
            with torch.no_grad():
                encoded = self.diffusion_model.encode_condition(latents, appearance.lambda_)
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


@fork_rng
def load_model(path: str | Path, options: dict, disable_dynamic: bool = False):
    """The file's network as the host's ModelPatcher; `options` as its own loaders take them: dtype."""
    config, tensors = read_config(path), part_of(path, NETWORK)
    management, made = comfy.model_management, Config(config)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    made.set_inference_dtype(*_dtypes(made.supported_inference_dtypes, options.get("dtype"), tensors, device))
    if made.latent_format.latent_rgb_factors is None and (autoencoder := load_autoencoder(path, config)):
        set_preview(made.latent_format, autoencoder)
    model = made.get_model(tensors)
    # Not the host's network: with dynamic VRAM its Linear layers have no weights until they load.
    check_keys(path, tensors, MicroCinemaUNet(config.network, device="meta"))
    latest = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = (comfy.model_patcher.ModelPatcher if disable_dynamic else latest)(model, device, offload)
    assign = {"assign": True} if getattr(patcher, "is_dynamic", bool)() else {}
    model.load_model_weights(tensors, "", **assign)
    patcher.cached_patcher_init = (load_model, (path, options))
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, APPEARANCE, sample_with_prior)
    return patcher


def _dtypes(supported: list[torch.dtype], asked: torch.dtype | None, tensors, device):
    """The type in which the weights are kept and, where it differs, the one they are cast to for computing: always one
    that the model supports, also where the host's command line or a card's only half type says otherwise."""
    management = comfy.model_management
    whole = (torch.float16, torch.bfloat16, torch.float32)
    kept = asked if asked in supported or asked not in (None, *whole) else None
    if kept is None:
        count, stored = comfy.utils.calculate_parameters(tensors), comfy.utils.weight_dtype(tensors)
        kept = management.unet_dtype(model_params=count, supported_dtypes=supported, weight_dtype=stored)
    cast = management.unet_manual_cast(kept, device, supported)
    return kept, cast if (cast or kept) in supported else torch.float32
