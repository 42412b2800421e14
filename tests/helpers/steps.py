"""One step of a network, and how it is run: on which device, in how many graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microcinema_core.config import NetworkConfig
from microcinema_core.model import build

FRAMES, SIZE = 5, 8


def network_of(config: NetworkConfig) -> nn.Module:
    """No parameter at zero, so that a path left out would change the output."""
    torch.manual_seed(0)
    network = build(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def inputs(config: NetworkConfig, seed: int = 0, device="cpu", halves: int = 2):
    """x, timesteps and text of one clip, in guidance halves where there is text, and its condition latents."""
    halves = 1 if config.context_dim is None else halves
    torch.manual_seed(seed)
    x = torch.randn(halves * FRAMES, 4, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    text = None if config.context_dim is None else torch.randn(halves, 7, config.context_dim).to(device)
    latents = torch.randn(1, 1 if config.condition == "centre" else 2, 4, SIZE, SIZE)
    return x.to(device), 999 * torch.rand(halves).to(device), text, latents.to(device)


def step(network, x, timesteps, text, latents, run=None):
    condition = network.encode_condition(latents)
    run = network if run is None else run
    return run(x, timesteps, text, condition=condition, num_video_frames=FRAMES)


class Watch(TorchDispatchMode):
    """Every operation that reaches the device, with its arguments and results."""

    def __init__(self, report):
        super().__init__()
        self.report = report

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.report(func, args, kwargs, out)
        return out


def operations_elsewhere(config: NetworkConfig) -> list[str]:
    """The operations of a step on the meta device that touch a tensor of another one."""
    network, (*given, latents) = network_of(config).to("meta"), inputs(config, device="meta")
    condition, elsewhere = network.encode_condition(latents), []

    def report(func, args, kwargs, out):
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        elsewhere.extend(str(func) for tensor in tensors if tensor.device.type != "meta")
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(…, device=…)
            elsewhere.append(str(func))

    with Watch(report):
        network(*given, condition=condition, num_video_frames=FRAMES)
    return elsewhere


def compiled_graphs(config: NetworkConfig, backend: str, halves: int) -> int:
    """In how many graphs two different steps run, once it is certain that they give the same as without a compiler."""
    network, graphs = network_of(config), []

    def count(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    torch._dynamo.reset()
    run = torch.compile(network, fullgraph=True, backend=count)
    with torch.no_grad():
        for seed in range(2):
            given = inputs(config, seed, halves=halves)
            expected = step(network, *given)
            scale = expected.abs().max()  # some hundreds where random weights warp
            torch.testing.assert_close(step(network, *given, run) / scale, expected / scale, rtol=0, atol=1e-5)
    return len(graphs)
