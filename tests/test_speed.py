"""What makes a step cheap, counted; and that a compiler and a CUDA graph can take it whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.config import AutoencoderConfig, NetworkConfig
from microcinema_core.denoiser import Denoiser
from microcinema_core.model import MicroCinemaUNet
from microcinema_core.model.layers import SpatialTransformer
from microcinema_core.model.temporal import TemporalConv, TemporalTransformer, as_sheet
from microcinema_core.pipeline import Pipeline

FRAMES, SIZE = 5, 8
PIXELS = AutoencoderConfig(channels=4, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=2)
BASE = NetworkConfig(
    model_channels=16, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_channels=8, norm_groups=4,
    context_dim=12, frames=FRAMES,
)  # fmt: skip
TRANSFORMERS = 4  # of BASE: one on the way down, one in the middle, two on the way up
CONFIGS = {
    "base": BASE,
    "interpolation": replace(BASE, condition="ends"),
    "like the demo base": replace(
        BASE, scale_shift_norm=True, motion_embedding=True, forward_warp=PIXELS, residual_std=0.5, amplitude_std=0.05
    ),
    "like the demo interpolation": replace(
        BASE, condition="ends", context_dim=None, scale_shift_norm=True, forward_warp=PIXELS, residual_std=0.2
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def network_of(config: NetworkConfig) -> MicroCinemaUNet:
    """No parameter at zero, so that a path left out would be seen."""
    torch.manual_seed(0)
    network = MicroCinemaUNet(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)
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

    def __init__(self, see):
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.see(func, args, kwargs, out)
        return out


# What a step does once, and what it does not do


def test_keys_and_values_are_computed_once_per_clip_and_not_per_frame():
    network, rows = network_of(BASE), []
    for name, module in network.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda module, args, out: rows.append(out.shape[:2]))
    step(network, *inputs(BASE))
    assert rows == [(2, 7)] * 2 * TRANSFORMERS


def test_both_guidance_halves_are_one_call(tiny_model):
    network, batches = tiny_model.network, []
    watch = network.register_forward_hook(lambda module, args, out: batches.append(len(out)))
    condition = network.encode_condition(torch.randn(1, 1, 4, SIZE, SIZE))
    text = torch.randn(2, 7, tiny_model.config.network.context_dim)
    denoise = Denoiser(network, tiny_model.config, condition, text, cfg=2.0)
    denoise(torch.randn(1, FRAMES, 4, SIZE, SIZE), torch.tensor(1.0))
    watch.remove()
    assert batches == [2 * FRAMES]


def test_all_attention_is_the_fused_one(monkeypatch):
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: calls.append(args) or fused(*args))
    network, (*given, latents) = network_of(BASE), inputs(BASE)
    condition = network.encode_condition(latents)
    calls.clear()
    with torch.no_grad():
        network(*given, condition=condition, num_video_frames=FRAMES)
    assert len(calls) == 3 * TRANSFORMERS  # among cells, to the text, among frames


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize(
    ("layer", "copies"),
    [(TemporalConv(16, 4), 0), (TemporalTransformer(16, 2, 4), 1), (SpatialTransformer(16, 2, 4, 12), 0)],
    ids=["temporal convolution", "temporal transformer", "spatial transformer"],
)
def test_frames_are_copied_into_another_order_once_at_most(layer, copies, clips):
    """Of all copies, one in a temporal transformer: frames must lie beside each other for its attention."""
    seen = Counter()
    x = torch.randn(clips * FRAMES, 16, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    given = {
        SpatialTransformer: torch.randn(clips, 7, 12),
        TemporalTransformer: torch.arange(FRAMES).float(),
        TemporalConv: FRAMES,
    }
    with torch.no_grad(), Watch(lambda func, *rest: seen.update([func.overloadpacket])):
        out = layer(x, given[type(layer)])
    assert sum(seen[copy] for copy in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy)) == copies
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("clips", [1, 2])
def test_frames_as_a_sheet_are_channels_last_too(clips):
    x = torch.randn(clips * FRAMES, 16, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    norm = torch.nn.GroupNorm(4, 16)(as_sheet(x, FRAMES))
    assert norm.stride() == (FRAMES * SIZE**2 * 16, 1, SIZE**2 * 16, 16)


# A step that a compiler and a CUDA graph can take whole


@every_config
def test_nothing_of_a_step_leaves_its_device(config):
    """A tensor made on the CPU, or a value read back, makes the host wait for a GPU in every step."""
    network, (*given, latents) = network_of(config).to("meta"), inputs(config, device="meta")
    condition, elsewhere = network.encode_condition(latents), []

    def see(func, args, kwargs, out):
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        elsewhere.extend(str(func) for tensor in tensors if tensor.device.type != "meta")
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(…, device=…)
            elsewhere.append(str(func))

    with Watch(see):
        network(*given, condition=condition, num_video_frames=FRAMES)
    assert elsewhere == []


@pytest.mark.parametrize(
    ("name", "backend", "halves"),
    [
        ("base", "eager", 2),
        ("interpolation", "eager", 1),
        ("base", "aot_eager", 1),
        *((name, "aot_eager", 2) for name in CONFIGS),
    ],
)
def test_compiles_as_one_graph_that_all_steps_and_clips_share(name, backend, halves):
    config, graphs = CONFIGS[name], []
    network = network_of(config)

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
    assert len(graphs) == 1


# Half precision: the networks', not the sampler's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shows_the_same_clip(tiny_model, dtype):
    config = tiny_model.config
    half = LoadedModel(
        config, MicroCinemaUNet(config.network), type(tiny_model.autoencoder)(config.autoencoder), tiny_model.text
    )
    for mine, theirs in ((half.network, tiny_model.network), (half.autoencoder, tiny_model.autoencoder)):
        mine.load_state_dict(theirs.state_dict())
        mine.to(dtype).requires_grad_(False)
    torch.manual_seed(0)
    latents, text = torch.randn(1, 1, 4, SIZE, SIZE), torch.randn(2, 7, config.network.context_dim)
    pipelines = Pipeline(tiny_model), Pipeline(half, dtype=dtype)
    clips = [pipeline.sample(latents, text, frames=FRAMES, cfg=2.0, seeds=[0]) for pipeline in pipelines]
    assert clips[1].dtype == torch.float32
    error = (clips[1] - clips[0]).std() / clips[0].std()
    assert 0 < error < 0.05
    expected, shown = (pipeline.decode(clips[1][0]) for pipeline in pipelines)
    torch.testing.assert_close(shown, expected, rtol=0, atol=0.03)
