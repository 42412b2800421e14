"""A custom node for tests: the host's own video models at tiny size with random weights, and a VAE for each.

The VAE is linear, so that what reaches the network is known exactly: a latent cell is the mean colour of its pixels,
spread over the channels; a frame of latents is the mean of the frames that it stands for.
"""

from dataclasses import fields

import comfy.model_patcher
import comfy.supported_models as supported
import torch
import torch.nn.functional as F
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

ROPE = {"max_img_h": 32, "max_img_w": 32, "max_frames": 16}
COSMOS = {
    **ROPE, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 1,
    "num_heads": 2, "crossattn_emb_channels": 32, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
    "adaln_lora_dim": 8, "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0, "concat_padding_mask": True, "pos_emb_interpolation": "crop",
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 1,
    "text_dim": 32, "freq_dim": 32, "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16,
}  # fmt: skip
LTX = {
    "cross_attention_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": 32,
    "num_layers": 1,
}  # fmt: skip
SD = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 32, "num_heads": -1, "num_head_channels": 16,
    "use_spatial_transformer": True, "legacy": False, "use_linear_in_transformer": False, "adm_in_channels": None,
    "use_temporal_attention": False, "dtype": torch.float32,
}  # fmt: skip
# family: class of the host, its configuration, channels, pixels and frames of a latent cell, width of the text
FAMILIES = {
    "SD15": ("SD15", SD, 4, 8, None, 32),
    "SVD": ("SVD_img2vid", SD | {
        "in_channels": 8, "model_channels": 64, "num_head_channels": 64, "use_linear_in_transformer": True,
        "use_temporal_attention": True,
        "use_temporal_resblock": True, "adm_in_channels": 768, "num_classes": "sequential", "extra_ff_mix_layer": True,
        "use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
    }, 4, 8, None, 32),
    "Wan21": ("WAN21_T2V", WAN, 16, 8, 4, 32),
    "Wan22": ("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, 48, 16, 4, 32),
    "LTXV": ("LTXV", LTX | {"image_model": "ltxv"}, 128, 32, 8, 32),
    "LTXAV": ("LTXAV", LTX | {
        "image_model": "ltxav", "audio_cross_attention_dim": 32, "audio_attention_head_dim": 16,
        "audio_num_attention_heads": 2,
    }, 128, 32, 8, 64),
    "HunyuanVideo": ("HunyuanVideo", {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32,
        "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [4, 6, 6], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True,
        "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
        "meanflow_sum": False,
    }, 16, 8, 4, 32),
    "Cosmos": ("CosmosT2V", COSMOS | {
        "image_model": "cosmos", "in_channels": 16, "extra_per_block_abs_pos_emb": True,
        "extra_per_block_abs_pos_emb_type": "learnable", "block_x_format": "THWBD", "affline_emb_norm": True,
    }, 16, 8, 8, 32),
    "CosmosPredict2": ("CosmosT2IPredict2", COSMOS | {"image_model": "cosmos_predict2", "in_channels": 16},
                       16, 8, 4, 32),
    "Mochi": ("GenmoMochi", {
        "image_model": "mochi_preview", "depth": 1, "num_heads": 24, "hidden_size_x": 3072, "hidden_size_y": 1536,
        "mlp_ratio_x": 4.0, "mlp_ratio_y": 4.0, "learn_sigma": False, "in_channels": 12, "use_t5": True,
        "t5_feat_dim": 32, "t5_token_length": 16, "rope_theta": 10000.0, "qk_norm": True, "qkv_bias": False,
        "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
        "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0,
    }, 12, 8, 6, 32),
    "CogVideoX": ("CogVideoX_T2V", {
        "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 16,
        "out_channels": 16, "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 1, "sample_width": 32,
        "sample_height": 32, "sample_frames": 9, "patch_size": 2, "temporal_compression_ratio": 4,
        "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": False,
    }, 16, 8, 4, 32),
}  # fmt: skip


def build(family: str):
    name, config, *_ = FAMILIES[family]
    if not hasattr(supported, name):
        return None
    if family == "HunyuanVideo":  # older hosts have fewer fields
        known = {field.name for field in fields(HunyuanVideoParams)} | {"image_model"}
        config = {key: value for key, value in config.items() if key in known}
    cpu = torch.device("cpu")
    model_config = getattr(supported, name)(dict(config))
    model_config.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    model = model_config.get_model({}, "", cpu)
    generator = torch.Generator().manual_seed(0)
    for parameter in [*model.diffusion_model.parameters(), *model.diffusion_model.buffers()]:
        if parameter.is_floating_point():
            spread = 0.5 / max(parameter.shape[-1], 1) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.data.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


class LinearVAE:
    """Stands where the host's VAE stands, with the methods that nodes call."""

    def __init__(self, channels: int, factor: int, time_factor: int | None):
        self.latent_channels, self.factor, self.time_factor = channels, factor, time_factor
        generator = torch.Generator().manual_seed(1)
        self.spread = torch.randn(channels, 3, generator=generator)

    def spacial_compression_encode(self):
        return self.factor

    def temporal_compression_decode(self):
        return self.time_factor

    def encode(self, pixels):
        cells = F.avg_pool2d(pixels[..., :3].movedim(-1, 1), self.factor)  # (T, 3, h, w)
        latents = torch.einsum("cd,tdhw->tchw", self.spread, 2 * cells - 1)
        if self.time_factor is None:
            return latents
        groups = [latents[:1], *(latents[1:].split(self.time_factor) if len(latents) > 1 else [])]
        return torch.stack([group.mean(0) for group in groups], 1)[None]

    def decode(self, latents):
        """Every cell in the colour that its latent stands for; a latent frame as long as the frames it stands for."""
        clips = latents[None] if latents.ndim == 4 else latents.movedim(2, 1)  # (b, t, C, h, w)
        colours = torch.einsum("dc,btchw->btdhw", torch.linalg.pinv(self.spread), clips.float()) / 2 + 0.5
        if self.time_factor is not None:
            rest = colours[:, 1:].repeat_interleave(self.time_factor, dim=1)
            colours = torch.cat([colours[:, :1], rest], dim=1)
        frames = colours.flatten(0, 1).repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return frames.movedim(1, -1).clamp(0, 1)

    @property
    def downscale_index_formula(self):
        return self.time_factor, self.factor, self.factor


class TinyText:
    """A CLIP and a CLIP_VISION: the same states for every text and every picture."""

    def __init__(self, width: int):
        self.states = torch.randn(1, 8, width, generator=torch.Generator().manual_seed(2))
        self.image_embeds = self.states[:, 0]

    def tokenize(self, text, **_):
        return text

    def encode_from_tokens_scheduled(self, tokens, **_):
        mask = torch.ones(1, 8, dtype=torch.long)
        return [[self.states, {"pooled_output": torch.zeros(1, 32), "attention_mask": mask}]]

    def encode_image(self, image, **_):
        return self


class TinyLoader:
    """Stands in a template where it loads a file: a family's model, text and VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "CLIP_VISION")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": (list(FAMILIES),)}}

    def load(self, family):
        _, _, channels, factor, time_factor, width = FAMILIES[family]
        text = TinyText(width)
        return build(family), text, LinearVAE(channels, factor, time_factor), text


NODE_CLASS_MAPPINGS = {"TinyLoader": TinyLoader}
