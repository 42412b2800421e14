"""The output of DynamiCrafter's or VideoCrafter's own UNetModel, for weights and inputs in files.

python lvdm_unet.py CHECKOUT SETTINGS-AS-JSON WEIGHTS.safetensors GIVEN.safetensors FOUND.safetensors

Without image tokens in the context, the image cross-attention attends to nothing and adds zero.
"""

import json
import sys
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file

checkout, settings, weights, given, found = sys.argv[1:]
sys.path.insert(0, checkout)
sys.modules["utils"], sys.modules["utils.utils"] = ModuleType("utils"), ModuleType("utils.utils")
sys.modules["utils.utils"].instantiate_from_config = None  # imported, but only called by the training

from lvdm.modules.networks.openaimodel3d import UNetModel  # noqa: E402

prefix = "model.diffusion_model."
state = {key.removeprefix(prefix): value for key, value in load_file(weights).items() if key.startswith(prefix)}
state = {key.replace("framestride_embed", "fps_embedding"): value for key, value in state.items()}
network = UNetModel(**json.loads(settings)).eval()
network.load_state_dict(state)
inputs = load_file(given)
rate = int(inputs["rate"])
with torch.no_grad():
    out = network(
        inputs["x"], inputs["timesteps"], context=inputs["context"], fps=rate, fs=torch.full((len(inputs["x"]),), rate)
    )
save_file({"out": out.contiguous()}, found)
