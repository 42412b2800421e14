"""What the tests of parity share: random weights and inputs, and how far two results are apart."""

from __future__ import annotations

import warnings

import pytest
import torch
from sd21 import drawn

try:
    import diffusers
except ImportError:
    diffusers = None
    warnings.warn("NO diffusers: parity with it is NOT TESTED. pip install --no-deps diffusers", stacklevel=1)
needs_diffusers = pytest.mark.skipif(diffusers is None, reason="no diffusers: pip install --no-deps diffusers")


def filled(module):
    """The module with `drawn` weights."""
    module.load_state_dict(drawn({key: tuple(value.shape) for key, value in module.state_dict().items()}))
    return module.eval().requires_grad_(False)


def relative_error(actual, expected):
    assert actual.shape == expected.shape and expected.std() > 0.01
    return ((actual - expected).norm() / expected.norm()).item()


def clips(config, count, frames, k=1):
    """x, timesteps, context, condition."""
    generator = torch.Generator().manual_seed(frames)
    x = torch.randn(count * frames, 4, 16, 8, generator=generator)
    context = torch.randn(count, 77, config.network.context_dim, generator=generator)
    condition = torch.randn(count, k, 4, 16, 8, generator=generator)
    return x, torch.tensor([999, 20, 500][:count]), context, condition


@torch.no_grad()
def predict(network, x, timesteps, context, condition, frames):
    condition = network.encode_condition(condition)
    return network(x, timesteps, context, condition=condition, num_video_frames=frames)
