"""The video network: SD2.1's size and names, SD2.1's function at the start, and what frames, clips and conditions may
and may not exchange afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import (
    ENDS,
    TINY,
    assert_channels_last_is_kept,
    assert_layers_are_the_given_ones,
    inputs,
    predict,
    randomised,
)  # fmt: skip

from microcinema_core.config import BASE, INTERPOLATION
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model import Condition, SpatialUNet, build
from microcinema_core.model.clips import over_frames
from microcinema_core.model.layers import ResBlock, attention
from microcinema_core.model.parameters import parameter_table
from microcinema_core.model.temporal import TemporalConv, from_time_axis, to_time_axis

VARIANTS = {
    "base": TINY,
    "ends": ENDS,
    "scale-shift": replace(TINY, scale_shift_norm=True),
    "no text": replace(ENDS, context_dim=None),
    "like ModelScope": replace(TINY, temporal_conv_depth=4, temporal_attentions=2, temporal_positions=False),
    "input layer": replace(TINY, temporal_input=True),  # 64 channels inside, 16 outside
}


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


def test_names_and_shapes_are_those_of_sd21_checkpoints():
    shapes = {name: tuple(p.shape) for name, p in build(BASE.network, device="meta").named_parameters()}
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
    video = {name: p.shape for name, p in build(config, device="meta").state_dict().items()}
    assert spatial.items() < video.items()


# At the start: SD, frame by frame


@pytest.mark.parametrize("frames", [1, 5, 8])
@pytest.mark.parametrize("config", [TINY, ENDS, VARIANTS["scale-shift"], VARIANTS["input layer"]])
def test_untrained_network_is_the_picture_network_to_the_bit(config, frames):
    spatial = randomised(SpatialUNet(config))
    net = build(config)
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


@pytest.mark.parametrize("layers", ["temporal_convs", "temporal_transformers", "temporal_input"])
def test_frames_mix_through_the_temporal_layers_only(layers):
    net = build(VARIANTS["input layer"])
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


@pytest.mark.parametrize("config", [TINY, ENDS, VARIANTS["like ModelScope"], VARIANTS["input layer"]])
def test_clips_of_a_batch_do_not_mix(config):
    net = randomised(build(config))
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
def test_temporal_attention_depends_on_the_order_of_frames_by_their_positions_alone(positions):
    net = build(replace(TINY, temporal_attentions=2, temporal_positions=positions))
    randomised(net)
    for convolution in net.temporal_convs.parameters():
        convolution.data.zero_()
    x, timesteps, context, latents = inputs(1)
    order = [3, 0, 4, 1, 2]
    ordered, shuffled = (predict(net, frames, timesteps, context, latents) for frames in (x, x[order]))
    difference = (ordered[order] - shuffled).abs().max()
    assert difference > 0.01 if positions else difference < 1e-4 * ordered.abs().max()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_time_axis_is_a_view_of_the_frames(memory_format):
    x = torch.randn(6, 4, 2, 5).contiguous(memory_format=memory_format)
    clips = to_time_axis(x, 3)
    assert clips.shape == (2, 4, 3, 10)
    assert clips.data_ptr() == x.data_ptr()
    assert torch.equal(clips[1, :, 2], x[5].flatten(1))
    assert torch.equal(from_time_axis(clips, (2, 5)), x)


# Places in the clip


def test_a_window_of_a_clip_has_the_places_that_its_frames_have_in_the_whole():
    net = randomised(build(TINY))
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


def test_windows_at_their_place_in_the_clip_are_nearer_to_the_whole_clip():
    net = randomised(build(TINY))
    _, timesteps, context, latents = inputs(1)
    x, condition = torch.randn(13, 4, *latents.shape[-2:]), net.encode_condition(latents)

    def run(frames, **options):
        return net(x[frames], timesteps[:1], context, condition=condition, num_video_frames=len(x[frames]), **options)

    whole, first = run(slice(None)), slice(0, 5)
    placed = (run(first, offsets=torch.arange(5.0) - 6) - whole[first]).norm()
    assert placed < 0.9 * (run(first) - whole[first]).norm()


def test_attention_in_half_precision_holds_logits_far_beyond_it():
    torch.manual_seed(0)
    q, k, v = 150 * torch.randn(2, 256, 128), 150 * torch.randn(2, 256, 128), torch.randn(2, 256, 128)
    assert (q[0, :, :64] @ k[0, :, :64].T).abs().max() > 5e5
    with torch.no_grad():
        found = attention(q.half(), k.half(), v.half(), 2)
        expected = attention(q.half().double(), k.half().double(), v.half().double(), 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


# The condition


def test_appearance_network_runs_once_per_clip_and_never_in_a_step():
    net = randomised(build(TINY))
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
    net = randomised(build(TINY))
    for name in ("condition_in", "appearance_injections"):
        if name != part:
            for p in getattr(net, name).parameters():
                p.data.zero_()
    x, timesteps, context, latents = inputs(1)
    difference = predict(net, x, timesteps, context, latents) - predict(net, x, timesteps, context, latents + 1)
    assert (difference.abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_input_is_the_papers_convolution_over_both_latents():
    net = randomised(build(ENDS))
    x, timesteps, context, latents = inputs(1, ENDS)
    entered = []
    net.input_blocks[1][0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    predict(net, x, timesteps, context, latents)
    first = net.input_blocks[0][0]
    weights = torch.arange(5).view(5, 1, 1, 1) / 4
    interpolated = latents[0, :1] * (1 - weights) + latents[0, 1:] * weights
    weight = torch.cat([first.weight, net.condition_in.weight], dim=1)
    expected = F.conv2d(torch.cat([x, interpolated], dim=1), weight, first.bias, padding=1)
    torch.testing.assert_close(entered[0], expected, rtol=1e-4, atol=1e-5)


def test_guidance_halves_share_one_condition():
    net = randomised(build(TINY))
    x, timesteps, context, latents = inputs(4)
    shared = predict(net, x, timesteps, context, latents[:2])
    repeated = predict(net, x, timesteps, context, latents[:2].repeat(2, 1, 1, 1, 1))
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-5)


def test_two_pictures_are_interpolated_over_the_frames():
    encoded = torch.randn(2, 2, 3, 4, 4)
    frames = over_frames(encoded, 5)
    assert torch.equal(frames[:, 0], encoded[:, 0])
    assert torch.equal(frames[:, 4], encoded[:, 1])
    torch.testing.assert_close(frames[:, 1], 0.75 * encoded[:, 0] + 0.25 * encoded[:, 1])


def test_one_picture_is_expanded_over_the_frames_without_a_copy():
    encoded = torch.randn(2, 1, 3, 4, 4)
    frames = over_frames(encoded, 9)
    assert frames.shape == (2, 9, 3, 4, 4)
    assert frames.untyped_storage().data_ptr() == encoded.untyped_storage().data_ptr()


def test_pictures_between_two_are_decoded_and_get_what_the_autoencoder_lost_of_the_ends():
    net, pixels = build(ENDS), 0.3 + 0.4 * torch.rand(2, 2, 3, 8, 8)
    *_, latents = inputs(2, ENDS)
    condition, sampled = net.encode_condition(latents, pixels=pixels), torch.randn(2, 5, *latents.shape[2:])

    def decode(latents):
        return 0.5 + 0.01 * latents[:, :3]

    frames = net.pictures_between(condition, sampled, decode, torch.ones(2))
    lost = pixels - decode(latents.flatten(0, 1)).unflatten(0, (2, 2))
    torch.testing.assert_close(frames[:, 1], 0.5 + 0.01 * sampled[:, 2, :3] + lost.mean(1))
    assert torch.equal(frames, (0.5 + 0.01 * sampled[:, 1:-1, :3] + over_frames(lost, 5)[:, 1:-1]).clamp(0, 1))


def test_equal_ends_condition_like_one_picture():
    ends, centre = randomised(build(ENDS)), randomised(build(TINY))
    x, timesteps, context, latents = inputs(2)
    torch.testing.assert_close(
        predict(ends, x, timesteps, context, latents.repeat(1, 2, 1, 1, 1)),
        predict(centre, x, timesteps, context, latents),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_features_can_be_interpolated_before_or_after_their_convolution():
    net = randomised(build(ENDS))
    *_, latents = inputs(1, ENDS)
    with torch.no_grad():
        condition = net.encode_condition(latents)
        features = net.appearance(latents[0])
        for injection, feature, (scale, shift) in zip(
            net.appearance_injections, features, condition.modulations, strict=True
        ):
            expected = injection(over_frames(feature[None], 5)[0])
            torch.testing.assert_close(torch.cat([scale - 1, shift], 2)[0], injection(feature))
            actual = torch.cat([over_frames(scale, 5) - 1, over_frames(shift, 5)], dim=2)[0]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# Variants


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_learns(config):
    net = randomised(build(config))
    x, timesteps, context, latents = inputs(2, config)
    out = net(x, timesteps, context, condition=net.encode_condition(latents), num_video_frames=5)
    assert out.shape == x.shape
    out.square().mean().backward()
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert [name for name, p in learned.items() if p.grad is None or not p.grad.any()] == []


def test_text_free_network_has_no_cross_attention():
    names = build(replace(TINY, context_dim=None), device="meta").state_dict()
    assert not [name for name in names if "attn2" in name or "norm2" in name]
    names = build(TINY, device="meta").state_dict()
    assert not [name for name in names if name.startswith("appearance.") and "attn2" in name]


def test_timesteps_per_clip_equal_timesteps_per_frame():
    net = randomised(build(TINY))
    x, timesteps, context, latents = inputs(2)
    per_clip = predict(net, x, timesteps, context, latents)
    per_frame = predict(net, x, timesteps.repeat_interleave(5), context, latents)
    torch.testing.assert_close(per_clip, per_frame, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (9, 6)])
def test_sizes_that_do_not_halve_evenly_come_back_whole(size):
    net = randomised(build(TINY))
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


@pytest.mark.parametrize("config", [TINY, ENDS])
def test_channels_last_gives_the_same_and_stays_channels_last(config):
    assert_channels_last_is_kept(randomised(build(config)), config)


def test_half_precision_stays_half():
    net = build(TINY, dtype=torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    x, timesteps, context, latents = inputs(2)
    out = predict(net, x.bfloat16(), timesteps, context.bfloat16(), latents.bfloat16())
    assert out.dtype == torch.bfloat16


def test_all_layers_come_from_the_given_operations():
    assert_layers_are_the_given_ones(VARIANTS["scale-shift"])


# Bad input


def test_batch_that_is_no_multiple_of_the_frames_is_refused():
    net = build(TINY)
    x, timesteps, context, latents = inputs(2)
    with pytest.raises(MicroCinemaError, match="batch of 10 frames cannot be divided into clips of 4 frames"):
        predict(net, x, timesteps, context, latents, frames=4)


def test_conditions_that_do_not_fit_the_clips_are_refused():
    net = build(TINY)
    x, timesteps, context, latents = inputs(3)
    with pytest.raises(MicroCinemaError, match="for 2 condition"):
        predict(net, x, timesteps, context, latents[:2])


def test_wrong_number_of_condition_pictures_is_refused():
    *_, latents = inputs(1, ENDS)
    with pytest.raises(MicroCinemaError, match="conditioned on 1 picture.* given 2.*centre frame"):
        build(TINY).encode_condition(latents)
    with pytest.raises(MicroCinemaError, match="conditioned on 2 picture.* given 1.*first and the last"):
        build(ENDS).encode_condition(latents[:, :1])


def test_missing_text_is_refused():
    x, timesteps, _, latents = inputs(1)
    with pytest.raises(MicroCinemaError, match="needs a text"):
        predict(build(TINY), x, timesteps, None, latents)


def test_condition_counts_its_clips():
    planes = torch.zeros(3, 1, 4, 8, 8)
    assert Condition(planes, planes, [], planes).clips == 3
