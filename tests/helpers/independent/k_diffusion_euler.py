"""Run by test_parity.py in a Python that has k-diffusion: its Euler sampler on a given start and denoiser."""

import importlib.util
import sys
import types

import torch
from safetensors.torch import load_file, save_file

# The package imports its trainer, with a dozen packages that its samplers do not need: only the samplers are wanted.
package = types.ModuleType("k_diffusion")
package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
sys.modules["k_diffusion"] = package
from k_diffusion import sampling  # noqa: E402

given, output = sys.argv[1:]
tensors = load_file(given)
sampled = sampling.sample_euler(
    lambda x, sigma: torch.tanh(x / (1 + sigma[:, None] ** 2).sqrt()), tensors["noise"], tensors["sigmas"], disable=True
)
save_file({"sampled": sampled}, output)
