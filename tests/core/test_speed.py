"""What makes a step cheap, counted; and that a compiler and a CUDA graph can take it whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import TINY
from steps import FRAMES, SIZE, Watch, compiled_graphs, inputs, network_of, operations_elsewhere, step

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.diffusion import Denoiser
from microcinema_core.model import build
from microcinema_core.model.layers import SpatialTransformer
from microcinema_core.model.temporal import TemporalConv, TemporalTransformer, to_time_axis
from microcinema_core.pipeline import Pipeline

TRANSFORMERS = 4  # of TINY: one on the way down, one in the middle, two on the way up
CONFIGS = {"base": TINY, "interpolation": replace(TINY, condition="ends")}


# What a step does once, and what it does not do


def test_keys_and_values_are_computed_once_per_clip_and_not_per_frame():
    network, rows = network_of(TINY), []
    for name, module in network.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda module, args, out: rows.append(out.shape[:2]))
    step(network, *inputs(TINY))
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
    network, (*given, latents) = network_of(TINY), inputs(TINY)
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
    counts = Counter()
    x = torch.randn(clips * FRAMES, 16, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    given = {
        SpatialTransformer: torch.randn(clips, 7, 12),
        TemporalTransformer: torch.arange(FRAMES).float(),
        TemporalConv: FRAMES,
    }
    with torch.no_grad(), Watch(lambda func, *rest: counts.update([func.overloadpacket])):
        out = layer(x, given[type(layer)])
    assert sum(counts[copy] for copy in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy)) == copies
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("clips", [1, 2])
def test_frames_on_the_time_axis_are_channels_last_too(clips):
    x = torch.randn(clips * FRAMES, 16, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    norm = torch.nn.GroupNorm(4, 16)(to_time_axis(x, FRAMES))
    assert norm.stride() == (FRAMES * SIZE**2 * 16, 1, SIZE**2 * 16, 16)


# A step that a compiler and a CUDA graph can take whole


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_nothing_of_a_step_leaves_its_device(config):
    """A tensor made on the CPU, or a value read back, makes the host wait for a GPU in every step."""
    assert operations_elsewhere(config) == []


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
    assert compiled_graphs(CONFIGS[name], backend, halves) == 1


# Half precision: the networks', not the sampler's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shows_the_same_clip(tiny_model, dtype):
    config = tiny_model.config
    half = LoadedModel(config, build(config.network), type(tiny_model.autoencoder)(config.autoencoder), tiny_model.text)
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
