"""Loads a file's network as the host's MODEL, with support for samplers, LoRAs, ControlNets, patches, low memory."""

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
from torch import nn

from ...microcinema_core.checkpoint import NETWORK, config_tensor, read_config
from ...microcinema_core.config import ModelConfig
from ...microcinema_core.errors import MicroCinemaError
from ...microcinema_core.model import Condition, build, network_class
from ..patches import HostPatches
from ..prior_patch import APPEARANCE, Appearance, check_size, sample_with_prior
from .files import check_keys, fork_rng, part_of
from .vae import load_autoencoder, set_preview


class HostCall(nn.Module):
    """A mixin before a network of the core in the order of bases, which converts the arguments of the host's calls.

    The host repeats the text for every frame, calls with a part of the clip's frames for a context window, and stores
    other nodes' wrappers and patches in `transformer_options`.
    """

    def __init__(self, config, *, operations, dtype=None, device=None, **description):
        super().__init__(config, operations=operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **kwargs):
        """Called by the host: x (b·t, C, h, w) to the raw output of the same shape, through other nodes' wrappers."""
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **kwargs)

    def _forward(self, x, timesteps, context, control, options, *, condition, clip_frames, **unused):
        indices, frames, offsets = _window(options), clip_frames, None
        if indices is not None:
            frames = len(indices)
            offsets = torch.tensor(indices, device=x.device, dtype=torch.float32) - clip_frames // 2
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
    """The indices of the clip's frames in a context window; None for the whole clip."""
    window = options.get("context_window")
    if window is None:
        return None
    anchor = getattr(window, "causal_anchor_index", None)  # newer hosts add a frame before the window and drop it later
    return [*([] if anchor is None else [anchor]), *window.index_list]


class Config(comfy.supported_models_base.BASE):
    """The host's description of a family of models, from the configuration in the file's header."""

    unet_extra_config = {}
    memory_usage_factor = 2.0

    def __init__(self, config: ModelConfig):
        network = config.network
        levels, blocks = network.channel_multipliers, network.res_blocks
        depth = [int(level in network.attention_levels) for level in range(len(levels))]
        super().__init__({
            "config": network,
            # The rest describes the spatial network as the host describes SD2.1's, for FreeU and the keys of LoRAs.
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
        """The host's model for this configuration, without the file's weights."""
        kinds = comfy.model_base.ModelType
        return Model(self, {"eps": kinds.EPS, "v": kinds.V_PREDICTION}[self.microcinema.parameterization], device)

    # For the host's ModelSave and CheckpointSave, whose files do not have our header.

    def process_unet_state_dict_for_saving(self, state_dict):
        """Tensors of the network by the keys of a file, with the configuration as a tensor."""
        return super().process_unet_state_dict_for_saving(state_dict) | config_tensor(self.microcinema)

    def process_clip_state_dict_for_saving(self, state_dict):
        """Tensors of the text encoder by the keys of a file."""
        state_dict = {key.removeprefix("text."): value for key, value in state_dict.items()}
        return super().process_clip_state_dict_for_saving(state_dict)


def latent_format(config: ModelConfig) -> comfy.latent_formats.LatentFormat:
    """The host's description of the model's latents."""
    if config.autoencoder.latent_channels == 4:
        return comfy.latent_formats.SD15(config.autoencoder.scale)
    described = comfy.latent_formats.LatentFormat()
    described.scale_factor = config.autoencoder.scale
    described.latent_channels = config.autoencoder.latent_channels
    described.spacial_downscale_ratio = config.autoencoder.factor
    return described


class Model(comfy.model_base.BaseModel):
    """The host's model. AppearNet runs once per picture and run, when the host prepares the conditionings; its features
    are released after the run."""

    def __init__(self, model_config: Config, model_type, device=None):
        config = model_config.microcinema
        network = type("Network", (HostCall, network_class(config.network)), {})
        super().__init__(model_config, model_type, device=device, unet_model=network)
        self.microcinema = config
        self._encoded = weakref.WeakValueDictionary()

    @property
    def compute_dtype(self):
        """The dtype in which the network computes; newer hosts have get_dtype_inference() for it."""
        return self.manual_cast_dtype or self.get_dtype()

    def extra_conds(self, **kwargs):
        """The arguments of the network for a conditioning: the encoded pictures, and the frames of the whole clip.

        Raises MicroCinemaError for a conditioning without pictures, or with pictures of another size.
        """
        out = super().extra_conds(**kwargs)
        noise, appearance = kwargs["noise"], kwargs.get(APPEARANCE)
        if appearance is None:
            raise MicroCinemaError(
                "The conditioning carries no picture: pass it through Appearance Noise Prior Latent, positive and "
                "negative."
            )
        check_size(appearance, noise)
        # Not named num_video_frames, which the host sets to the length of a context window.
        out["clip_frames"] = comfy.conds.CONDConstant(noise.shape[0] // appearance.clips)
        out["condition"] = EncodedCond(self.encode(appearance, kwargs["device"]))
        return out

    def encode(self, appearance: Appearance, device) -> Condition:
        """The condition of these pictures, encoded once while anything refers to it."""
        encoded = self._encoded.get(id(appearance))
        if encoded is None:
            latents = self.process_latent_in(appearance.latents).to(device, self.compute_dtype)
            with torch.no_grad():
                encoded = self.diffusion_model.encode_condition(
                    latents, pixels=appearance.pixels, lambda_=appearance.lambda_, motion=appearance.motion,
                    overscan=appearance.overscan,
                )  # fmt: skip
            encoded.appearance = appearance  # keeps it alive, so that no other object gets its id
            self._encoded[id(appearance)] = encoded
        return encoded


class EncodedCond(comfy.conds.CONDRegular):
    """AppearNet's features in a conditioning, which both halves of a batch with guidance share."""

    def process_cond(self, batch_size, **kwargs):
        """The same for every batch size."""
        return self

    def can_concat(self, other):
        """Whether another conditioning has the same pictures."""
        return self.cond is other.cond

    def concat(self, others):
        """The features, once for all conditionings of a batch."""
        return self.cond

    def size(self):
        """The number of values, by which the host estimates the memory."""
        return [1, sum(scale.numel() + shift.numel() for scale, shift in self.cond.modulations)]


@fork_rng
def load_model(path: str | Path, options: dict, disable_dynamic: bool = False):
    """Load the file's network as the host's ModelPatcher; `options` as in the host's loaders, only "dtype"."""
    config, tensors = read_config(path), part_of(path, NETWORK)
    management, family = comfy.model_management, Config(config)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    family.set_inference_dtype(*_dtypes(family.supported_inference_dtypes, options.get("dtype"), tensors, device))
    if family.latent_format.latent_rgb_factors is None and (autoencoder := load_autoencoder(path, config)):
        set_preview(family.latent_format, autoencoder)
    model = family.get_model(tensors)
    # Not compared with `model`: with dynamic VRAM, its Linear layers have no weights until they are loaded.
    check_keys(path, tensors, build(config.network, device="meta"))
    latest = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = (comfy.model_patcher.ModelPatcher if disable_dynamic else latest)(model, device, offload)
    assign = {"assign": True} if getattr(patcher, "is_dynamic", bool)() else {}
    model.load_model_weights(tensors, "", **assign)
    patcher.cached_patcher_init = (load_model, (path, options))
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, APPEARANCE, sample_with_prior)
    return patcher


def _dtypes(supported: list[torch.dtype], requested: torch.dtype | None, tensors, device):
    """The dtype of the weights in memory and, if it differs, the dtype for computing, else None.

    The network computes in a dtype that the model supports, even where the host's options, or a device with only one
    half-precision dtype, select another one.
    """
    management = comfy.model_management
    standard = (torch.float16, torch.bfloat16, torch.float32)
    storage = requested if requested in supported or requested not in (None, *standard) else None
    if storage is None:
        count, file_dtype = comfy.utils.calculate_parameters(tensors), comfy.utils.weight_dtype(tensors)
        storage = management.unet_dtype(model_params=count, supported_dtypes=supported, weight_dtype=file_dtype)
    compute = management.unet_manual_cast(storage, device, supported)
    return storage, compute if (compute or storage) in supported else torch.float32
