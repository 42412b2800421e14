"""Networks of the paper in small: random weights at no parameter zero, and inputs for them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from microcinema_core.config import NetworkConfig
from microcinema_core.model import build

TINY = NetworkConfig(
    model_channels=16, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_channels=8, norm_groups=4,
    context_dim=12, frames=5,
)  # fmt: skip
ENDS = replace(TINY, condition="ends")
SIZE = (8, 8)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter at zero, so that every path of the network carries a signal."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return net


def inputs(clips: int, config: NetworkConfig = TINY, frames: int = 5, size: tuple[int, int] = SIZE, seed: int = 1):
    """x, timesteps, context, condition latents."""
    generator = torch.Generator().manual_seed(seed)
    k = 1 if config.condition == "centre" else 2
    x = torch.randn(clips * frames, config.latent_channels, *size, generator=generator)
    timesteps = torch.randint(0, 1000, (clips,), generator=generator)
    context = None if config.context_dim is None else torch.randn(clips, 7, config.context_dim, generator=generator)
    return x, timesteps, context, torch.randn(clips, k, config.latent_channels, *size, generator=generator)


@torch.no_grad()
def predict(net: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor | None, latents: Tensor, frames=5) -> Tensor:
    return net(x, timesteps, context, condition=net.encode_condition(latents), num_video_frames=frames)


def assert_channels_last_is_kept(net: nn.Module, config: NetworkConfig) -> None:
    """The same output from channels_last tensors, and every layer's output is channels_last too."""
    x, timesteps, context, latents = inputs(2, config)
    expected = predict(net, x, timesteps, context, latents)
    net.to(memory_format=torch.channels_last)
    left = []

    def check(module, args, output):
        if isinstance(output, Tensor) and output.dim() == 4:
            left.append(not output.is_contiguous(memory_format=torch.channels_last))

    for module in net.modules():
        module.register_forward_hook(check)
    pictures = latents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    actual = predict(net, x, timesteps, context, pictures.view(latents.shape))
    scale = expected.abs().max()  # some hundreds where random weights warp
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-3)
    assert left and not any(left)


def assert_layers_are_the_given_ones(config: NetworkConfig) -> None:
    kinds = [nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm]
    own = {kind: type(kind.__name__, (kind,), {}) for kind in kinds}
    operations = SimpleNamespace(**{kind.__name__: mine for kind, mine in own.items()})
    net = build(config, operations=operations)
    layers = [module for module in net.modules() if any(True for _ in module.parameters(recurse=False))]
    assert {type(layer) for layer in layers} == set(own.values())
