"""What the bundled models add to the paper's network: preconditioning around a prediction, and the forward warp
that makes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from demo_networks import VARIANTS
from networks import TINY, assert_channels_last_is_kept, assert_layers_are_the_given_ones, inputs, predict, randomised

from microcinema_core.config import LAMBDA
from microcinema_core.demo.flow_unet import FlowUNet
from microcinema_core.demo.network import DemoUNet, Prediction, WarpUNet, pooled
from microcinema_core.diffusion import NoiseSchedule
from microcinema_core.model import MicroCinemaUNet, build
from microcinema_core.model.clips import Clips, over_frames


def test_a_configuration_gets_its_class():
    assert type(build(TINY, device="meta")) is MicroCinemaUNet
    classes = {name: type(build(config, device="meta")) for name, config in VARIANTS.items()}
    own = {"warp": WarpUNet, "like the demo": WarpUNet, "flow between ends": FlowUNet}
    assert classes == dict.fromkeys(VARIANTS, DemoUNet) | own


def test_without_its_additions_it_is_the_papers_network_to_the_bit():
    paper, demo = randomised(build(TINY)), build(VARIANTS["none"])
    demo.load_state_dict(paper.state_dict())
    assert torch.equal(predict(demo, *inputs(2)), predict(paper, *inputs(2)))


# The frames of the condition


@pytest.mark.parametrize("frames", [2, 4, 5, 8])
def test_one_frame_of_every_clip_is_the_picture(frames):
    """With a preconditioned network the picture's own frame has no residual: its v at t = 0 is that of the picture."""
    net = randomised(build(VARIANTS["warp"]))
    latents, text = torch.randn(1, 1, 4, 8, 8), torch.randn(1, 3, 12)
    x = torch.zeros(frames, 4, 8, 8)
    with torch.no_grad():
        out = predict(net, x, torch.tensor([999.0]), text, latents, frames)
    sigma = NoiseSchedule().noise_level(torch.tensor([999.0]))
    # v = √ᾱ·noise − √(1−ᾱ)·z_0 with z_t = 0: noise = −√ᾱ/√(1−ᾱ)·z_0
    expected = -((1 - sigma**2) / sigma + sigma) * latents[0, 0]
    close = [torch.allclose(frame, expected, atol=1e-4) for frame in out]
    assert close == [index == frames // 2 for index in range(frames)]


# The residual


def batch_of(x, timesteps, condition=None):
    """Clips of five frames x (b·5, C, h, w) at timesteps (b,)."""
    return Clips(x, timesteps.repeat_interleave(5), None, condition, torch.arange(5.0) - 2)


@pytest.mark.parametrize("config", [VARIANTS["residual"], replace(VARIANTS["residual"], condition="ends")])
def test_residual_preconditioning_turns_edms_target_into_v(config):
    """Karras et al. 2022, table 1: r = c_skip·y + c_out·F with y = z_t − √ᾱ·z̄; that F must give v of the whole clip."""
    net = build(config)
    schedule, timesteps = NoiseSchedule(), torch.tensor([3, 777])
    alpha, sigma = (x.view(-1, 1, 1, 1, 1) for x in schedule.vp(timesteps))
    clips, noise = torch.randn(2, 2, 5, config.latent_channels, 8, 8)
    static = over_frames(clips[:, [2]] if config.condition == "centre" else clips[:, [0, -1]], 5)
    noisy, rho = alpha * clips + sigma * noise, 0.5
    q = (alpha**2 * rho**2 + sigma**2).sqrt()
    target = (clips - static - rho**2 * alpha / q**2 * (noisy - alpha * static)) * q / (rho * sigma)
    prediction = Prediction(static.flatten(0, 1), None, is_given=torch.zeros(10, 1, 1, 1, dtype=torch.bool))
    found = net._precondition(target.flatten(0, 1), batch_of(noisy.flatten(0, 1), timesteps), prediction)
    torch.testing.assert_close(found, (alpha * noise - sigma * clips).flatten(0, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "shown"), [("like the demo", [2]), ("flow between ends", [0, -1])])
def test_frames_that_the_condition_shows_come_out_as_it_shows_them(name, shown):
    net = randomised(build(VARIANTS[name]))
    x, timesteps, context, latents = inputs(2, VARIANTS[name])
    v = predict(net, x, timesteps, context, latents).unflatten(0, (2, 5))
    alpha, sigma = (value.view(-1, 1, 1, 1, 1) for value in NoiseSchedule().vp(timesteps))
    denoised = alpha * x.unflatten(0, (2, 5)) - sigma * v
    torch.testing.assert_close(denoised[:, shown], latents, rtol=1e-3, atol=1e-3)
    assert (denoised[:, 1] - latents[:, 0]).abs().mean() > 0.1


def test_untrained_residual_network_predicts_a_static_clip():
    config = VARIANTS["residual"]
    x, timesteps, context, latents = inputs(2, config, 5)
    timesteps = torch.full_like(timesteps, 999)  # hardly anything but noise: what is predicted is the condition
    with torch.no_grad():
        v = predict(build(config), x, timesteps, context, latents, 5).unflatten(0, (2, 5))
    alpha, sigma = (float(value) for value in NoiseSchedule().vp(torch.tensor(999)))
    denoised = alpha * x.unflatten(0, (2, 5)) - sigma * v
    assert (denoised - latents).abs().max() < 0.1 * latents.abs().max()


# The motion's amplitude


def test_motion_is_as_large_as_the_noisy_clip_shows():
    """And smaller where the noise itself looks more like the condition."""
    torch.manual_seed(0)
    net = build(replace(VARIANTS["warp"], residual_std=0.01, amplitude_std=0.2)).eval()
    with torch.no_grad():
        net.forward_warp.camera.weight[2] = 1.28  # 3 pixels to the right, for the text below
        latents, text, times = torch.randn(1, 1, 4, 8, 8), torch.full((1, 12), 0.2), torch.linspace(-1, 1, 5)
        condition = net.encode_condition(latents, lambda_=LAMBDA)
        still = condition.picture, torch.zeros(1, 2, *condition.picture.shape[-2:])
        static = net.forward_warp(*still, text, 0 * times)[0]  # z^c, as this untrained autoencoder has it
        used = []
        net.forward_warp.register_forward_pre_hook(lambda _, args: used.append(args[3].max().item()))

        def amplitude(shown, gamma, timestep, text=text):
            alpha, sigma = NoiseSchedule().vp(torch.tensor(timestep))
            clip = net.forward_warp(*still, text, times * shown)[0] if shown else 0
            noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1)) + (LAMBDA + gamma) * static
            batch = batch_of(alpha * clip + sigma * noise, torch.tensor([timestep]), condition)
            net._warp(batch, static, text, times, None)
            return used[-1]

        assert amplitude(1.1, 0, 0) - amplitude(1.0, 0, 0) == pytest.approx(0.1, abs=0.02)
        motions = [amplitude(0, gamma, 999) for gamma in (-0.3, 0, 0.3)]
        condition.lambda_ = LAMBDA + 0.3  # of a run whose noise has the same mean by λ alone: no less motion is meant
        assert amplitude(0, 0.3, 999) == pytest.approx(motions[1], abs=1e-5)
        condition.lambda_ = LAMBDA
        assert motions[0] > motions[1] > motions[2]
        assert amplitude(1.1, 0, 0, 0 * text) == 1
        net.train()
        assert amplitude(1.1, 0, 0) == 1  # where clips move as their text says


# As in the paper's network


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_learns(config):
    net = randomised(build(config))
    x, timesteps, context, latents = inputs(2, config)
    condition = net.encode_condition(latents)
    out = net(x, timesteps, context, condition=condition, num_video_frames=5)
    assert out.shape == x.shape
    loss = out.square().mean()
    if config.forward_warp:  # it learns from where pixels go
        velocities = net.forward_warp.named_velocities(pooled(context)[:, 0])[:, 1, :, None, None].expand(
            -1, -1, 32, 32
        )
        pixels = torch.rand(2, 3, 32, 32)
        loss = loss - net.forward_warp.log_likelihood(pixels, pooled(context)[:, 0], velocities).mean()
    if config.flow_warp:  # the flow network learns from frames
        [made], _ = net.flow_warp.between(torch.rand(2, 2, 3, 64, 64), [0.25])
        loss = loss + made.frame.square().mean() + net.flow_warp.residual(latents.flatten(0, 1)).square().mean()
    loss.backward()
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert [name for name, p in learned.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["residual", "like the demo"])
def test_timesteps_per_clip_equal_timesteps_per_frame(name):
    net = randomised(build(VARIANTS[name]))
    x, timesteps, context, latents = inputs(2, VARIANTS[name])
    per_clip = predict(net, x, timesteps, context, latents)
    per_frame = predict(net, x, timesteps.repeat_interleave(5), context, latents)
    torch.testing.assert_close(per_clip, per_frame, rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_and_stays_channels_last():
    assert_channels_last_is_kept(randomised(build(VARIANTS["like the demo"])), VARIANTS["like the demo"])


def test_all_layers_come_from_the_given_operations():
    assert_layers_are_the_given_ones(VARIANTS["like the demo"])
