"""The video network: SD2.1's size and names, SD2.1's function at the start, and what frames, clips and conditions may
and may not exchange afterwards."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microcinema_core.config import BASE, DEMO_BASE, INTERPOLATION, LAMBDA, AutoencoderConfig, NetworkConfig
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model import Condition, MicroCinemaUNet, SpatialUNet, parameter_table
from microcinema_core.model.appearance import spread
from microcinema_core.model.layers import ResBlock, attention
from microcinema_core.model.temporal import TemporalConv, as_sheet, from_sheet
from microcinema_core.model.unet import pooled
from microcinema_core.model.warp import REGIONS
from microcinema_core.schedule import NoiseSchedule

TINY = NetworkConfig(
    model_channels=16, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_channels=8, norm_groups=4,
    context_dim=12, frames=5,
)  # fmt: skip
ENDS = replace(TINY, condition="ends")
PIXELS = AutoencoderConfig(channels=4, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=2)
SIZE = (8, 8)
VARIANTS = {
    "base": TINY,
    "ends": ENDS,
    "scale-shift": replace(TINY, scale_shift_norm=True),
    "motion": replace(TINY, motion_embedding=True),
    "no text": replace(ENDS, context_dim=None),
    "warp": replace(TINY, forward_warp=PIXELS, residual_std=0.5),
    "warp between ends": replace(ENDS, context_dim=None, forward_warp=PIXELS, residual_std=0.5),
    "like ModelScope": replace(TINY, temporal_conv_depth=4, temporal_attentions=2, temporal_positions=False),
    "like the demo": replace(
        TINY,
        scale_shift_norm=True,
        motion_embedding=True,
        residual_std=0.5,
        latent_channels=16,
        amplitude_std=0.05,
        forward_warp=replace(PIXELS, latent_channels=16),
    ),
}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter at zero, so that every path of the network carries a signal."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return net


def inputs(clips: int, config: NetworkConfig = TINY, frames: int = 5, size=SIZE, seed: int = 1):
    """x, timesteps, context, condition latents."""
    generator = torch.Generator().manual_seed(seed)
    k = 1 if config.condition == "centre" else 2
    x = torch.randn(clips * frames, config.latent_channels, *size, generator=generator)
    timesteps = torch.randint(0, 1000, (clips,), generator=generator)
    context = None if config.context_dim is None else torch.randn(clips, 7, config.context_dim, generator=generator)
    return x, timesteps, context, torch.randn(clips, k, config.latent_channels, *size, generator=generator)


@torch.no_grad()
def predict(net, x, timesteps, context, latents, frames=5):
    return net(x, timesteps, context, condition=net.encode_condition(latents), num_video_frames=frames)


# Size and names


def test_spatial_part_has_the_size_of_sd21():
    net = SpatialUNet(BASE.network, device="meta")
    assert sum(p.numel() for p in net.parameters()) == 865_910_724
    assert len(net.state_dict()) == 686


@pytest.mark.parametrize("config", [BASE, INTERPOLATION])
def test_whole_network_has_the_papers_two_billion(config):
    table = parameter_table(config)
    unread = 50_377_280  # cross-attention with its norms, where there is no text
    assert table["spatial"] == 865_910_724 - (unread if config is INTERPOLATION else 0)
    assert table["network"] == pytest.approx(2.0e9, rel=0.02)
    parts = dict(table)
    beside = parts.pop("autoencoder"), parts.pop("text encoder", None)
    assert sum(parts.values()) == 2 * parts["network"]
    # 84 M and 354 M in the supplement's Table 2
    assert beside == (83_653_863, None if config is INTERPOLATION else 354_032_640)


def test_motion_embedding_is_counted_where_there_is_one():
    assert parameter_table(DEMO_BASE)["motion embedding"] == 2 * 128 * 256
    assert "motion embedding" not in parameter_table(BASE)


def test_names_and_shapes_are_those_of_sd21_checkpoints():
    shapes = {name: tuple(p.shape) for name, p in MicroCinemaUNet(BASE.network, device="meta").named_parameters()}
    expected = {
        "time_embed.0.weight": (1280, 320),
        "time_embed.2.bias": (1280,),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (320,),
        "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (320, 1280),
        "input_blocks.1.0.out_layers.3.weight": (320, 320, 3, 3),
        "input_blocks.1.1.norm.weight": (320,),
        "input_blocks.1.1.proj_in.weight": (320, 320),
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.bias": (320,),
        "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "input_blocks.1.1.transformer_blocks.0.ff.net.2.weight": (320, 1280),
        "input_blocks.1.1.transformer_blocks.0.norm3.bias": (320,),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.11.0.in_layers.2.weight": (1280, 1280, 3, 3),
        "middle_block.1.proj_out.weight": (1280, 1280),
        "middle_block.2.out_layers.0.bias": (1280,),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.3.0.in_layers.0.weight": (2560,),
        "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.8.2.conv.bias": (640,),
        "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "out.0.weight": (320,),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("config", [BASE.network, TINY, ENDS])
def test_spatial_keys_are_a_strict_subset_with_the_same_shapes(config):
    spatial = {name: p.shape for name, p in SpatialUNet(config, device="meta").state_dict().items()}
    video = {name: p.shape for name, p in MicroCinemaUNet(config, device="meta").state_dict().items()}
    assert spatial.items() < video.items()


# At the start: SD, frame by frame


@pytest.mark.parametrize("frames", [1, 5, 8])
@pytest.mark.parametrize("config", [TINY, ENDS, replace(TINY, scale_shift_norm=True)])
def test_untrained_network_is_the_picture_network_to_the_bit(config, frames):
    spatial = randomised(SpatialUNet(config))
    net = MicroCinemaUNet(config)
    missing, unexpected = net.load_state_dict(spatial.state_dict(), strict=False)
    assert missing and not unexpected
    x, timesteps, context, latents = inputs(2, config, frames)
    with torch.no_grad():
        expected = spatial(x, timesteps.repeat_interleave(frames), context)
    assert expected.std() > 0.01
    assert torch.equal(predict(net, x, timesteps, context, latents, frames), expected)


def test_text_once_per_clip_equals_text_once_per_frame():
    spatial = randomised(SpatialUNet(TINY))
    x, timesteps, context, _ = inputs(2)
    timesteps = timesteps.repeat_interleave(5)
    with torch.no_grad():
        shared = spatial(x, timesteps, context)
        repeated = torch.cat(
            [spatial(x[i : i + 1], timesteps[i : i + 1], context[i // 5 : i // 5 + 1]) for i in range(10)]
        )
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-5)


# Frames and clips


@pytest.mark.parametrize("layers", ["temporal_convs", "temporal_transformers"])
def test_frames_mix_through_the_temporal_layers_only(layers):
    net = MicroCinemaUNet(TINY)
    randomised(net)
    x, timesteps, context, latents = inputs(1)
    changed = x.clone()
    changed[4] += 1

    def frames_touched():
        difference = predict(net, changed, timesteps, context, latents) - predict(net, x, timesteps, context, latents)
        return difference.abs().amax(dim=(1, 2, 3)) > 0

    saved = {name: p.clone() for name, p in net.named_parameters()}
    for name, p in net.named_parameters():
        if name.startswith("temporal"):
            p.data.zero_()
    assert frames_touched().tolist() == [False] * 4 + [True]
    for name, p in net.named_parameters():
        if name.startswith(layers):
            p.data.copy_(saved[name])
    assert frames_touched().all()


@pytest.mark.parametrize("config", [TINY, ENDS, VARIANTS["like ModelScope"]])
def test_clips_of_a_batch_do_not_mix(config):
    net = randomised(MicroCinemaUNet(config))
    x, timesteps, context, latents = inputs(2, config)
    both = predict(net, x, timesteps, context, latents)
    alone = predict(net, x[:5], timesteps[:1], context[:1], latents[:1])
    torch.testing.assert_close(both[:5], alone, rtol=1e-4, atol=1e-5)

    x[5:] += 1
    first_twice = [0, 0]
    changed = predict(net, x, timesteps[first_twice], context[first_twice], latents[first_twice])
    torch.testing.assert_close(changed[:5], both[:5], rtol=1e-4, atol=1e-5)
    assert (changed[5:] - both[5:]).abs().max() > 0.01


@pytest.mark.parametrize("positions", [True, False])
def test_temporal_attention_knows_the_order_of_frames_by_their_positions_alone(positions):
    net = MicroCinemaUNet(replace(TINY, temporal_attentions=2, temporal_positions=positions))
    randomised(net)
    for convolution in net.temporal_convs.parameters():
        convolution.data.zero_()
    x, timesteps, context, latents = inputs(1)
    order = [3, 0, 4, 1, 2]
    told, shuffled = (predict(net, frames, timesteps, context, latents) for frames in (x, x[order]))
    difference = (told[order] - shuffled).abs().max()
    assert difference > 0.01 if positions else difference < 1e-4 * told.abs().max()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sheet_is_a_view_of_the_frames(memory_format):
    x = torch.randn(6, 4, 2, 5).contiguous(memory_format=memory_format)
    sheet = as_sheet(x, 3)
    assert sheet.shape == (2, 4, 3, 10)
    assert sheet.data_ptr() == x.data_ptr()
    assert torch.equal(sheet[1, :, 2], x[5].flatten(1))
    assert torch.equal(from_sheet(sheet, (2, 5)), x)


# Places in the clip


def test_a_window_of_a_clip_has_the_places_that_its_frames_have_in_the_whole():
    net = randomised(MicroCinemaUNet(TINY))
    x, timesteps, context, latents = inputs(1)
    condition, tokens = net.encode_condition(latents), []
    block = net.temporal_transformers[0].block
    net.temporal_transformers[0].proj_in.register_forward_hook(
        lambda module, args, output: output.mul_(0)
    )  # places only
    block.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))

    def run(frames, **options):
        net(x[frames], timesteps[:1], context, condition=condition, num_video_frames=len(x[frames]), **options)
        return tokens[-1][0]

    whole = run(slice(None))
    window = run(slice(3, 5), offsets=torch.tensor([1.0, 2.0]))
    assert torch.equal(window, whole[3:5])
    assert not torch.equal(run(slice(3, 5)), whole[3:5])


def test_windows_that_know_their_place_are_nearer_to_the_whole_clip():
    net = randomised(MicroCinemaUNet(TINY))
    _, timesteps, context, latents = inputs(1)
    x, condition = torch.randn(13, 4, *latents.shape[-2:]), net.encode_condition(latents)

    def run(frames, **options):
        return net(x[frames], timesteps[:1], context, condition=condition, num_video_frames=len(x[frames]), **options)

    whole, first = run(slice(None)), slice(0, 5)
    told = (run(first, offsets=torch.arange(5.0) - 6) - whole[first]).norm()
    assert told < 0.9 * (run(first) - whole[first]).norm()


def test_attention_in_half_precision_holds_logits_far_beyond_it():
    torch.manual_seed(0)
    q, k, v = 150 * torch.randn(2, 256, 128), 150 * torch.randn(2, 256, 128), torch.randn(2, 256, 128)
    assert (q[0, :, :64] @ k[0, :, :64].T).abs().max() > 5e5
    with torch.no_grad():
        found = attention(q.half(), k.half(), v.half(), 2)
        expected = attention(q.half().double(), k.half().double(), v.half().double(), 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frames", [2, 4, 5, 8])
def test_one_frame_of_every_clip_is_the_picture(frames):
    """With a preconditioned network the picture's own frame has no residual: its v at t = 0 is that of the picture."""
    net = randomised(MicroCinemaUNet(VARIANTS["warp"]))
    latents, text = torch.randn(1, 1, 4, 8, 8), torch.randn(1, 3, 12)
    x = torch.zeros(frames, 4, 8, 8)
    with torch.no_grad():
        out = predict(net, x, torch.tensor([999.0]), text, latents, frames)
    sigma = NoiseSchedule().noise_level(torch.tensor([999.0]))
    # v = √ᾱ·noise − √(1−ᾱ)·z_0 with z_t = 0: noise = −√ᾱ/√(1−ᾱ)·z_0
    expected = -((1 - sigma**2) / sigma + sigma) * latents[0, 0]
    close = [torch.allclose(frame, expected, atol=1e-4) for frame in out]
    assert close == [index == frames // 2 for index in range(frames)]


# The condition


def test_appearance_network_runs_once_per_clip_and_never_in_a_step():
    net = randomised(MicroCinemaUNet(TINY))
    runs = []
    net.appearance.register_forward_hook(lambda module, args, output: runs.append(args[0].shape[0]))
    x, timesteps, context, latents = inputs(2)
    condition = net.encode_condition(latents)
    assert runs == [2]
    for _ in range(3):
        net(x, timesteps, context, condition=condition, num_video_frames=5)
    assert runs == [2]


@pytest.mark.parametrize("part", ["condition_in", "appearance_injections"])
def test_both_ways_of_the_condition_reach_the_output(part):
    net = randomised(MicroCinemaUNet(TINY))
    for name in ("condition_in", "appearance_injections"):
        if name != part:
            for p in getattr(net, name).parameters():
                p.data.zero_()
    x, timesteps, context, latents = inputs(1)
    difference = predict(net, x, timesteps, context, latents) - predict(net, x, timesteps, context, latents + 1)
    assert (difference.abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_input_is_the_papers_convolution_over_both_latents():
    net = randomised(MicroCinemaUNet(ENDS))
    x, timesteps, context, latents = inputs(1, ENDS)
    seen = []
    net.input_blocks[1][0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predict(net, x, timesteps, context, latents)
    first = net.input_blocks[0][0]
    weights = torch.arange(5).view(5, 1, 1, 1) / 4
    interpolated = latents[0, :1] * (1 - weights) + latents[0, 1:] * weights
    weight = torch.cat([first.weight, net.condition_in.weight], dim=1)
    expected = F.conv2d(torch.cat([x, interpolated], dim=1), weight, first.bias, padding=1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_guidance_halves_share_one_condition():
    net = randomised(MicroCinemaUNet(TINY))
    x, timesteps, context, latents = inputs(4)
    shared = predict(net, x, timesteps, context, latents[:2])
    repeated = predict(net, x, timesteps, context, latents[:2].repeat(2, 1, 1, 1, 1))
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-5)


def test_two_pictures_are_interpolated_over_the_frames():
    encoded = torch.randn(2, 2, 3, 4, 4)
    frames = spread(encoded, 5)
    assert torch.equal(frames[:, 0], encoded[:, 0])
    assert torch.equal(frames[:, 4], encoded[:, 1])
    torch.testing.assert_close(frames[:, 1], 0.75 * encoded[:, 0] + 0.25 * encoded[:, 1])


def test_one_picture_is_spread_without_a_copy():
    encoded = torch.randn(2, 1, 3, 4, 4)
    frames = spread(encoded, 9)
    assert frames.shape == (2, 9, 3, 4, 4)
    assert frames.untyped_storage().data_ptr() == encoded.untyped_storage().data_ptr()


def test_equal_ends_condition_like_one_picture():
    ends, centre = randomised(MicroCinemaUNet(ENDS)), randomised(MicroCinemaUNet(TINY))
    x, timesteps, context, latents = inputs(2)
    torch.testing.assert_close(
        predict(ends, x, timesteps, context, latents.repeat(1, 2, 1, 1, 1)),
        predict(centre, x, timesteps, context, latents),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_features_can_be_interpolated_before_or_after_their_convolution():
    net = randomised(MicroCinemaUNet(ENDS))
    *_, latents = inputs(1, ENDS)
    with torch.no_grad():
        condition = net.encode_condition(latents)
        features = net.appearance(latents[0])
        for injection, feature, (scale, shift) in zip(
            net.appearance_injections, features, condition.modulations, strict=True
        ):
            expected = injection(spread(feature[None], 5)[0])
            torch.testing.assert_close(torch.cat([scale - 1, shift], 2)[0], injection(feature))
            actual = torch.cat([spread(scale, 5) - 1, spread(shift, 5)], dim=2)[0]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# Variants


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_learns(config):
    net = randomised(MicroCinemaUNet(config))
    x, timesteps, context, latents = inputs(2, config)
    out = net(x, timesteps, context, condition=net.encode_condition(latents), num_video_frames=5)
    assert out.shape == x.shape
    loss = out.square().mean()
    if config.forward_warp:  # its paths learn from where pixels go
        clips, k, _, height, width = latents.shape
        pixels, text = torch.rand(clips, k, 3, 4 * height, 4 * width), pooled(context) if context is not None else None
        points = net.forward_warp.read(net.look(latents, pixels), text)
        loss = loss + net.forward_warp.render(pixels, points, text, net.since(net.tau(torch.arange(5) - 2)))[0].mean()
    loss.backward()
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert [name for name, p in learned.items() if p.grad is None or not p.grad.any()] == []


def test_text_free_network_has_no_cross_attention():
    names = MicroCinemaUNet(replace(TINY, context_dim=None), device="meta").state_dict()
    assert not [name for name in names if "attn2" in name or "norm2" in name]
    names = MicroCinemaUNet(TINY, device="meta").state_dict()
    assert not [name for name in names if name.startswith("appearance.") and "attn2" in name]


def test_motion_embedding_is_zero_at_the_centre_and_follows_the_text():
    net = randomised(MicroCinemaUNet(replace(TINY, motion_embedding=True)))
    context = torch.randn(2, 7, 12)
    with torch.no_grad():
        added = net._embed_motion(pooled(context), net.tau(torch.arange(-2, 3))).unflatten(0, (2, 5))
        text = (context - context[:, 6:]).sum(dim=1) / 7**0.5
        first, second = text @ net.motion_first.weight.T, text @ net.motion_second.weight.T
    assert not added[:, 2].any()
    torch.testing.assert_close(added[:, 4], first + second)
    torch.testing.assert_close(added[:, 0], second - first)
    torch.testing.assert_close(added[:, 3], first / 2 + second / 4)


def test_timesteps_per_clip_equal_timesteps_per_frame():
    net = randomised(MicroCinemaUNet(replace(TINY, motion_embedding=True)))
    x, timesteps, context, latents = inputs(2)
    per_clip = predict(net, x, timesteps, context, latents)
    per_frame = predict(net, x, timesteps.repeat_interleave(5), context, latents)
    torch.testing.assert_close(per_clip, per_frame, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (9, 6)])
def test_sizes_that_do_not_halve_evenly_come_back_whole(size):
    net = randomised(MicroCinemaUNet(TINY))
    x, timesteps, context, latents = inputs(1, size=size)
    assert predict(net, x, timesteps, context, latents).shape == x.shape


def test_attention_of_training_equals_attention_of_inference():
    q, k, v = torch.randn(3, 2, 6, 16, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad():
        fused = attention(q, k, v, heads=4)
    torch.testing.assert_close(attention(q, k, v, heads=4), fused)
    head = slice(4, 8)
    one = (q[..., head] @ k[..., head].mT / 2).softmax(2) @ v[..., head]
    torch.testing.assert_close(fused[..., head], one)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_res_block_denormalises_by_appearance_then_by_time(scale_shift):
    block = randomised(ResBlock(8, 16, 12, 4, scale_shift))
    x, emb, scale, shift = (
        torch.randn(4, 8, 6, 6),
        torch.randn(4, 16),
        torch.randn(2, 2, 12, 6, 6),
        torch.randn(12, 1, 1),
    )
    time = block.emb_layers[1](F.silu(emb))[:, :, None, None]
    h = block.in_layers[2](F.silu(block.in_layers[0](x)))
    h = block.out_layers[0](h if scale_shift else h + time)
    h = h * scale.flatten(0, 1) + shift
    if scale_shift:
        h = h * (1 + time[:, :12]) + time[:, 12:]
    expected = block.skip_connection(x) + block.out_layers[3](F.silu(h))
    torch.testing.assert_close(block(x, emb, (scale, shift.expand_as(scale))), expected, rtol=1e-4, atol=1e-5)


def test_temporal_convolution_is_a_3d_one_with_norms_over_all_frames():
    layer = randomised(TemporalConv(8, 4))
    x = torch.randn(6, 8, 4, 5)
    norm, _, convolution = layer.layers[0]
    clips = x.view(2, 3, 8, 4, 5).transpose(1, 2)
    h = F.silu(F.group_norm(clips, 4, norm.weight, norm.bias))
    h = F.conv3d(h, convolution.weight[..., None], convolution.bias, padding=(1, 0, 0))
    expected = x + h.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(layer(x, 3), expected, rtol=1e-4, atol=1e-5)


# Memory layout, precision, operations


@pytest.mark.parametrize("config", [TINY, ENDS, VARIANTS["like the demo"]])
def test_channels_last_gives_the_same_and_stays_channels_last(config):
    net = randomised(MicroCinemaUNet(config))
    x, timesteps, context, latents = inputs(2, config)
    expected = predict(net, x, timesteps, context, latents)
    net.to(memory_format=torch.channels_last)
    left = []

    def check(module, args, output):
        if isinstance(output, torch.Tensor) and output.dim() == 4:
            left.append(not output.is_contiguous(memory_format=torch.channels_last))

    for module in net.modules():
        module.register_forward_hook(check)
    pictures = latents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    actual = predict(net, x, timesteps, context, pictures.view(latents.shape))
    scale = expected.abs().max()  # some hundreds where random weights warp
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-3)
    assert left and not any(left)


def test_half_precision_stays_half():
    net = MicroCinemaUNet(TINY, dtype=torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    x, timesteps, context, latents = inputs(2)
    out = predict(net, x.bfloat16(), timesteps, context.bfloat16(), latents.bfloat16())
    assert out.dtype == torch.bfloat16


def test_all_layers_come_from_the_given_operations():
    kinds = [nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm]
    own = {kind: type(kind.__name__, (kind,), {}) for kind in kinds}
    operations = SimpleNamespace(**{kind.__name__: mine for kind, mine in own.items()})
    net = MicroCinemaUNet(VARIANTS["like the demo"], operations=operations)
    layers = [module for module in net.modules() if any(True for _ in module.parameters(recurse=False))]
    assert {type(layer) for layer in layers} == set(own.values())


# Bad input


def test_batch_that_is_no_multiple_of_the_frames_is_refused():
    net = MicroCinemaUNet(TINY)
    x, timesteps, context, latents = inputs(2)
    with pytest.raises(MicroCinemaError, match="batch of 10 frames cannot be divided into clips of 4 frames"):
        predict(net, x, timesteps, context, latents, frames=4)


def test_conditions_that_do_not_fit_the_clips_are_refused():
    net = MicroCinemaUNet(TINY)
    x, timesteps, context, latents = inputs(3)
    with pytest.raises(MicroCinemaError, match="for 2 condition"):
        predict(net, x, timesteps, context, latents[:2])


def test_wrong_number_of_condition_pictures_is_refused():
    *_, latents = inputs(1, ENDS)
    with pytest.raises(MicroCinemaError, match="conditioned on 1 picture.* given 2.*centre frame"):
        MicroCinemaUNet(TINY).encode_condition(latents)
    with pytest.raises(MicroCinemaError, match="conditioned on 2 picture.* given 1.*first and the last"):
        MicroCinemaUNet(ENDS).encode_condition(latents[:, :1])


def test_missing_text_is_refused():
    x, timesteps, _, latents = inputs(1)
    with pytest.raises(MicroCinemaError, match="needs a text"):
        predict(MicroCinemaUNet(TINY), x, timesteps, None, latents)


def test_condition_counts_its_clips():
    planes = torch.zeros(3, 1, 4, 8, 8)
    assert Condition(planes, planes, []).clips == 3


@pytest.mark.parametrize("config", [TINY, ENDS])
def test_residual_preconditioning_turns_edms_target_into_v(config):
    """Karras et al. 2022, table 1: r = c_skip·y + c_out·F with y = z_t − √ᾱ·z̄; that F must give v of the whole clip."""
    net = MicroCinemaUNet(replace(config, residual_std=0.5))
    schedule, timesteps = NoiseSchedule(), torch.tensor([3, 777])
    alpha, sigma = (x.view(-1, 1, 1, 1, 1) for x in schedule.vp(timesteps))
    clips, noise = torch.randn(2, 2, 5, config.latent_channels, 8, 8)
    still = spread(clips[:, [2]] if config.condition == "centre" else clips[:, [0, -1]], 5)
    noisy, rho = alpha * clips + sigma * noise, 0.5
    q = (alpha**2 * rho**2 + sigma**2).sqrt()
    target = (clips - still - rho**2 * alpha / q**2 * (noisy - alpha * still)) * q / (rho * sigma)
    told = (target.flatten(0, 1), noisy.flatten(0, 1), timesteps, still.flatten(0, 1))
    expected = (alpha * noise - sigma * clips).flatten(0, 1)
    torch.testing.assert_close(net._around(*told, torch.ones(10, 1, 1, 1, dtype=bool)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "shown"), [("like the demo", [2]), ("warp between ends", [0, -1])])
def test_frames_that_the_condition_shows_come_out_as_it_shows_them(name, shown):
    net = randomised(MicroCinemaUNet(VARIANTS[name]))
    x, timesteps, context, latents = inputs(2, VARIANTS[name])
    v = predict(net, x, timesteps, context, latents).unflatten(0, (2, 5))
    alpha, sigma = (value.view(-1, 1, 1, 1, 1) for value in NoiseSchedule().vp(timesteps))
    denoised = alpha * x.unflatten(0, (2, 5)) - sigma * v
    torch.testing.assert_close(denoised[:, shown], latents, rtol=1e-3, atol=1e-3)
    assert (denoised[:, 1] - latents[:, 0]).abs().mean() > 0.1


def test_untrained_residual_network_predicts_a_still_clip():
    config = replace(TINY, residual_std=0.5)
    x, timesteps, context, latents = inputs(2, config, 5)
    timesteps = torch.full_like(timesteps, 999)  # hardly anything but noise: what is predicted is the condition
    with torch.no_grad():
        v = predict(MicroCinemaUNet(config), x, timesteps, context, latents, 5).unflatten(0, (2, 5))
    alpha, sigma = (float(value) for value in NoiseSchedule().vp(torch.tensor(999)))
    denoised = alpha * x.unflatten(0, (2, 5)) - sigma * v
    assert (denoised - latents).abs().max() < 0.1 * latents.abs().max()


def test_motion_is_as_large_as_the_noisy_clip_shows():
    """And smaller where the noise itself looks more like the condition."""
    torch.manual_seed(0)
    net = MicroCinemaUNet(replace(VARIANTS["warp"], residual_std=0.01, amplitude_std=0.2))
    with torch.no_grad():
        net.forward_warp.velocities.weight[2 * (REGIONS + 2)] = 0.2  # 3 pixels to the right, for the text below
        latents, text, since = torch.randn(1, 1, 4, 8, 8), torch.full((1, 1, 12), 0.2), torch.linspace(-1, 1, 5)[None]
        condition = net.encode_condition(latents)
        seen = condition.seen
        still = net.forward_warp(seen, text, 0 * since)[0]  # z^c, as this untrained autoencoder has it
        used = []
        net.forward_warp.register_forward_pre_hook(lambda _, args: used.append(args[2].max().item()))

        def amplitude(shown, gamma, timestep, told=text):
            alpha, sigma = NoiseSchedule().vp(torch.tensor(timestep))
            clip = net.forward_warp(seen, text, since * shown)[0] if shown else 0
            noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1)) + (LAMBDA + gamma) * still
            net._moved(alpha * clip + sigma * noise, torch.tensor([timestep]), still, condition, told, since)
            return used[-1]

        assert amplitude(1.1, 0, 0) - amplitude(1.0, 0, 0) == pytest.approx(0.1, abs=0.02)
        motions = [amplitude(0, gamma, 999) for gamma in (-0.3, 0, 0.3)]
        condition.lambda_ = LAMBDA + 0.3  # of a run whose noise has the same mean by λ alone: no less motion is meant
        assert amplitude(0, 0.3, 999) == pytest.approx(motions[1], abs=1e-5)
        condition.lambda_ = LAMBDA
        assert motions[0] > motions[1] > motions[2]
        assert amplitude(1.1, 0, 0, told=0 * text) == 1
