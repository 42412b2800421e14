"""Run by test_parity.py in ComfyUI's own Python: its SD2.1 UNet, and its Euler sampler, on what they are given."""

import sys

import torch
from safetensors.torch import load_file, save_file

host, source, head_channels, given, output = sys.argv[1:]
sys.path.insert(0, host)
sys.argv = sys.argv[:1]
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.k_diffusion.sampling  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

prefix = "model.diffusion_model."
state = {key: value.float() for key, value in load_file(source).items() if key.startswith(prefix)}
config = comfy.model_detection.detect_unet_config(state, prefix) | {
    "num_heads": -1,
    "num_head_channels": int(head_channels),
}
unet = UNetModel(**config, operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu")
unet.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
given = load_file(given)
with torch.no_grad():
    out = unet(given["x"], given["timesteps"], context=given["context"])


def model(x, sigma):
    return torch.tanh(x / (1 + sigma.view(-1, 1) ** 2).sqrt())


sampled = comfy.k_diffusion.sampling.sample_euler(model, given["noise"], given["sigmas"], disable=True)
save_file({"out": out.contiguous(), "sampled": sampled.contiguous()}, output)
