"""Run by the host's Python: a checkpoint with the host's own names and shapes of SD2.1 or SDXL, 16-bit and random.

python random_checkpoint.py sd21|sdxl OUT.safetensors        (in the host's folder, this pack on PYTHONPATH)
"""

import json
import struct
import sys
from pathlib import Path

kind, out = sys.argv[1], Path(sys.argv[2])
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.sd2_clip  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

SHARED = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_head_channels": 64,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
}  # fmt: skip
UNETS = {
    "sd21": {
        "num_res_blocks": [2] * 4, "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 1024,
    },
    "sdxl": {
        "num_res_blocks": [2] * 3, "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
    },
}  # fmt: skip
FAMILIES = {"sd21": comfy.supported_models.SD20, "sdxl": comfy.supported_models.SDXL}
TEXTS = {"sd21": comfy.text_encoders.sd2_clip.SD2ClipModel, "sdxl": comfy.sdxl_clip.SDXLClipModel}
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        text = TEXTS[kind](device="meta", dtype=torch.float16).state_dict()
        vae = AutoencoderKL(ddconfig=VAE, embed_dim=4).state_dict()
        unet = UNetModel(**SHARED, **UNETS[kind], dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    family = FAMILIES[kind]({})
    text = {key: value for key, value in text.items() if not key.endswith("position_ids")}
    tensors = family.process_clip_state_dict_for_saving(text)
    tensors |= family.process_vae_state_dict_for_saving(vae)
    tensors |= {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
    return {key: value.shape for key, value in tensors.items() if value.is_floating_point()}


def values(name: str, shape: torch.Size, pool: torch.Tensor) -> torch.Tensor:
    """Norms are the identity, the rest small enough to stay finite in 16 bits."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
    count = shape.numel()
    return pool.repeat(-(-count // len(pool)))[:count]


pool = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).half()
header, end = {"__metadata__": {"format": "pt"}}, 0
for name, shape in (found := shapes()).items():
    header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end := end + 2 * shape.numel()]}
head = json.dumps(header).encode()
with out.open("wb") as file:
    file.write(struct.pack("<Q", len(head)) + head)
    for name, shape in found.items():
        file.write(values(name, shape, pool).numpy().tobytes())
