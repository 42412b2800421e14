"""Forward warping: pixels go where the text says, and what arrives is what left."""

from __future__ import annotations

import pytest
import torch
from demo_networks import PIXELS

from microcinema_core.demo import warp as warping
from microcinema_core.demo.captions import CAMERA_VERBS, COLOURS, SPEEDS
from microcinema_core.demo.config import DEMO_BASE, DemoNetworkConfig
from microcinema_core.demo.edges import show_uncovered
from microcinema_core.demo.scenes import camera_transforms, draw_clip
from microcinema_core.demo.splat import splat, splat_clip
from microcinema_core.demo.text import MEANINGS, VELOCITIES, axis_velocity
from microcinema_core.demo.video import set_velocities
from microcinema_core.demo.warp import ForwardWarp, render
from microcinema_core.metrics.quality import psnr

CONFIG = DemoNetworkConfig(
    model_channels=16, norm_groups=4, context_dim=4, frames=5, forward_warp=PIXELS, residual_std=0.5
)
HEIGHT, WIDTH = 20, 28  # pixels: 5 × 7 cells
TIMES = torch.linspace(-1, 1, 5)


def grid() -> torch.Tensor:
    """(1, 2, H, W): every pixel at its own place."""
    return torch.stack(torch.meshgrid(torch.arange(WIDTH), torch.arange(HEIGHT), indexing="xy"))[None].float()


def shifted(x: float, y: float) -> torch.Tensor:
    return grid() + torch.tensor([x, y]).view(2, 1, 1)


# Splatting


def test_splat_at_home_is_the_identity_and_whole_steps_shift():
    values = torch.randn(1, 3, HEIGHT, WIDTH)
    assert torch.equal(splat(values, grid()), values)
    out = splat(values, shifted(2, -3))
    assert torch.equal(out[..., :-3, 2:], values[..., 3:, :-2])
    assert not out[..., -3:, :].any()
    assert not out[..., :2].any()


def test_splat_shares_a_value_among_four_neighbours_and_adds_up_values():
    values, places = torch.zeros(1, 1, HEIGHT, WIDTH), shifted(0.25, 0.5)
    values[..., 5, 7], values[..., 5, 9] = 1.0, 10.0
    places[0, :, 5, 9] = torch.tensor([8.0, 6.0])
    out = splat(values, places)[0, 0]
    torch.testing.assert_close(out[5:7, 7:9], torch.tensor([[0.375, 0.125], [0.375, 10.125]]))
    assert out.sum() == 11


def test_splat_keeps_pictures_apart():
    values, places = torch.randn(2, 3, HEIGHT, WIDTH), torch.cat([shifted(2, -3), shifted(0.25, 0.5)])
    apart = [splat(values[[index]], places[[index]]) for index in range(2)]
    assert torch.equal(splat(values, places), torch.cat(apart))


def test_a_clip_has_each_picture_splatted_at_every_time():
    values, places = torch.randn(2, 3, HEIGHT, WIDTH), torch.randn(2, 4, 2, HEIGHT, WIDTH) + grid()
    frames = splat_clip(values, places)
    for time in range(4):
        assert torch.equal(frames[:, time], splat(values, places[:, time]))


def test_splat_loses_what_leaves_the_picture():
    values, places = torch.rand(1, 1, HEIGHT, WIDTH), grid() + 8 * torch.rand(1, 2, HEIGHT, WIDTH) - 4
    assert splat(values, places + WIDTH).sum() == 0
    assert 0 < splat(values, places).sum() < values.sum()


# What the text says


@pytest.fixture(scope="module")
def told() -> ForwardWarp:
    """A warp of the bundled model's shape, whose text tower gives each meaning a direction of its own."""
    warp = ForwardWarp(DEMO_BASE.network)
    set_velocities(warp, torch.eye(DEMO_BASE.network.context_dim)[:MEANINGS], DEMO_BASE)
    return warp


def meaning(axis: int, value: float) -> torch.Tensor:
    """A pooled text of that tower."""
    text = torch.zeros(1, DEMO_BASE.network.context_dim)
    text[0, axis] = value
    return text


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("motion", CAMERA_VERBS)
def test_the_camera_moves_as_that_of_the_drawn_scenes(told, motion, speed):
    offsets = [-4, -1.5, 0, 2, 4]
    views = told._views(meaning(*axis_velocity(motion, speed)), torch.tensor(offsets) / 4, None)[0]
    inverse = camera_transforms(motion, speed, offsets, 96)  # from the frame to the picture
    both = torch.einsum("tij,tjk->tik", inverse[..., :2], views)
    both[..., 2] += inverse[..., 2]
    torch.testing.assert_close(both, torch.eye(2, 3).expand(5, 2, 3), rtol=0, atol=1e-4)


def test_a_velocity_is_named_for_each_colour(told):
    named = told.named_velocities(meaning(VELOCITIES.start + 2 * list(COLOURS).index("blue") + 1, -1.0))[0]
    expected = torch.zeros(1 + len(COLOURS), 2)
    expected[1 + list(COLOURS).index("blue"), 1] = -4 * 3.0  # up, to the end of nine frames
    torch.testing.assert_close(named, expected)


def test_a_colour_that_does_not_move_is_never_chosen(told):
    text = meaning(VELOCITIES.start, 1.0)
    logits = torch.zeros(1, 1 + len(COLOURS), 8, 8)
    logits[:, 3], logits[:, 1, :4] = 30.0, 1.0
    told.choice.forward, forward = lambda pixels, text: logits, told.choice.forward
    try:
        velocities = told.estimate(torch.rand(1, 3, 8, 8), text)
        probabilities = told.log_probabilities(torch.rand(1, 3, 8, 8), text).exp()
    finally:
        told.choice.forward = forward
    assert velocities[0, 0].tolist() == [[12.0] * 8] * 4 + [[0.0] * 8] * 4 and not velocities[0, 1].any()
    assert probabilities[0, 2:].max() < 1e-3


def test_the_likelihood_is_that_of_the_true_velocity():
    """Two things of one velocity are the same choice."""
    warp, text = ForwardWarp(CONFIG), torch.tensor([[1.0, 0, 0, 0]])
    with torch.no_grad():
        warp.colour_velocities.weight[:6, 0] = torch.tensor([6.0, 0, 6.0, 0, 0, -9.0])
    pixels, velocities = torch.rand(1, 3, HEIGHT, WIDTH), torch.zeros(1, 2, HEIGHT, WIDTH)
    velocities[:, 0, :10], velocities[:, 1, 10:16] = 6.0, -9.0
    probabilities, found = warp.log_probabilities(pixels, text).exp()[0], warp.log_likelihood(pixels, text, velocities)
    expected = torch.cat([(probabilities[1] + probabilities[2])[:10], probabilities[3, 10:16], probabilities[0, 16:]])
    torch.testing.assert_close(found[0].exp(), expected, rtol=1e-4, atol=1e-6)
    assert not warp.colour_velocities.weight.requires_grad and not warp.camera.weight.requires_grad
    found.sum().backward()
    assert all(p.grad is not None for p in warp.choice.parameters())


def test_the_choice_depends_on_the_whole_picture_and_on_the_text():
    torch.manual_seed(0)
    warp = ForwardWarp(CONFIG)
    for parameter in warp.choice.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pixels, text = torch.rand(1, 3, HEIGHT, WIDTH), torch.randn(1, 4)
    elsewhere = pixels.clone()
    elsewhere[..., -1, -1] += 1
    choice = warp.choice(pixels, text)
    assert choice.shape == (1, 1 + len(COLOURS), HEIGHT, WIDTH)
    assert (warp.choice(elsewhere, text) - choice)[..., 0, 0].abs().max() > 1e-6
    assert (warp.choice(pixels, -text) - choice).abs().max() > 1e-3


# Frames

STILL = torch.eye(2, 3).expand(1, 1, 2, 3)


def test_the_flow_of_a_drawn_picture_takes_it_to_the_frames_around_it():
    clips = (draw_clip(seed, frames=9, size=96) for seed in range(100))
    clip = next(clip for clip in clips if clip.kind == "thing" and clip.speed == "quickly" and clip.motion == "left")
    [rendered], _ = render(clip.frames[[4]], 4 * clip.flow[[4]], STILL.expand(1, 2, 2, 3), torch.tensor([-0.5, 0.5]))
    for frame, expected in zip(rendered, clip.frames[[2, 6]], strict=True):
        assert psnr(frame, expected) > psnr(clip.frames[4], expected) + 5


def test_what_lies_behind_shows_where_nothing_arrives():
    """A bright square leaves a dark ground."""
    pixels, velocities = torch.full((1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 2, HEIGHT, WIDTH)
    pixels[..., 8:14, 10:16], velocities[:, 0, 8:14, 10:16] = 0.9, 32.0  # out of the picture
    shown, visibility = (x[0] for x in render(pixels, velocities, STILL.expand(1, 2, 2, 3), torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(shown[0], pixels[0], rtol=0, atol=0.02)
    torch.testing.assert_close(shown[1], torch.full((3, HEIGHT, WIDTH), 0.1), rtol=0, atol=0.02)
    assert visibility[1, 0, 9:13, 11:15].max() < 0.01 and visibility[0].min() > 0.4


def test_what_moves_is_in_front():
    pixels, velocities = torch.full((1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 2, HEIGHT, WIDTH)
    pixels[..., 8:14, 4:10], velocities[:, 0, 8:14, 4:10] = 0.9, 8.0
    [[shown]], _ = render(pixels, velocities, STILL, torch.tensor([1.0]))
    assert shown[:, 9:13, 13:17].min() > 0.75 and shown[:, 9:13, 5:9].max() < 0.15


def test_a_thing_moves_within_what_the_camera_shows():
    """Twice as far on the screen where the camera magnifies twice."""
    pixels, velocities = torch.full((1, 3, 40, 40), 0.1), torch.zeros(1, 2, 40, 40)
    pixels[..., 18:22, 18:22], velocities[:, 0, 18:22, 18:22] = 0.9, 5.0
    [[shown]], _ = render(pixels, velocities, 2 * STILL, torch.tensor([1.0]))
    columns = (shown[0].amax(0) > 0.5).nonzero()
    assert columns.float().mean() == pytest.approx(19.5 + 10, abs=1)


def test_what_a_thing_blurs_into_goes_with_it(monkeypatch):
    """Half a pixel's worth of a bright square lies around it, and the network found the square alone."""
    pixels, velocities = torch.full((1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 2, HEIGHT, WIDTH)
    pixels[..., 7:15, 9:17] = 0.5
    pixels[..., 8:14, 10:16], velocities[:, 1, 8:14, 10:16] = 0.9, -32.0  # out of the picture

    def left():
        return (render(pixels, velocities, STILL, torch.tensor([1.0]))[0][0, 0] - 0.1).abs().max()

    assert left() < 0.02
    dilate = warping._dilate_moving
    monkeypatch.setattr(warping, "_dilate_moving", lambda found: (found, *dilate(found)[1:]))
    assert left() > 0.3


# Clips


def panning(pixels_per_tau: float) -> tuple[ForwardWarp, torch.Tensor]:
    """A warp, and a text that moves the whole picture to the right."""
    warp = ForwardWarp(CONFIG)
    with torch.no_grad():
        warp.camera.weight[2, 0] = pixels_per_tau
    return warp, torch.tensor([[1.0, 0, 0, 0]])


def test_a_text_that_pans_gives_the_shifted_picture():
    warp, text = panning(4.0)  # one cell
    latents = torch.randn(1, 4, 5, 7)
    pixels, velocities, times = warp.decode(latents), torch.zeros(1, 2, HEIGHT, WIDTH), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(pixels, warp.autoencoder.decode(latents).clamp(0, 1))
    uncovered = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1, 0, 4], [0, 1, 0]]])[None]
    shown, _ = render(pixels, velocities, uncovered, times)
    for frame, expected in ((shown[0, 0], pixels[0]), (shown[0, 1, ..., 4:], pixels[0, ..., :-4])):
        torch.testing.assert_close(frame, expected, rtol=0, atol=0.05)
    warped, visibility = warp(pixels, velocities, text, times)
    shown = show_uncovered(shown, pixels, uncovered)
    torch.testing.assert_close(warped, warp.autoencoder.encode(shown[0]), rtol=0, atol=1e-4)
    assert visibility.shape == (2, 1, 5, 7) and visibility[1, 0, :, 0].max() < 0.1 < visibility[1, 0, :, 2:].min()


def random_motion(warp: ForwardWarp, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two pictures, and velocities and texts of `count` clips."""
    torch.manual_seed(0)
    torch.nn.init.normal_(warp.camera.weight, std=0.2)
    return torch.rand(2, 3, HEIGHT, WIDTH), 3 * torch.randn(count, 2, HEIGHT, WIDTH), torch.randn(count, 4)


def test_both_halves_of_a_guided_batch_share_their_pictures():
    warp = ForwardWarp(CONFIG)
    pixels, velocities, text = random_motion(warp, 4)
    both = warp(pixels, velocities, text, TIMES)
    halves = zip(
        *(warp(pixels, *half, TIMES) for half in zip(velocities.split(2), text.split(2), strict=True)), strict=True
    )
    for found, expected in zip(both, halves, strict=True):
        torch.testing.assert_close(found, torch.cat(expected))
    assert [found.shape for found in both] == [(4 * 5, 4, 5, 7), (4 * 5, 1, 5, 7)]
    estimate = warp.estimate(pixels, text)
    torch.testing.assert_close(estimate, torch.cat([warp.estimate(pixels, half) for half in text.split(2)]))


def test_every_clip_may_have_times_of_its_own():
    warp = ForwardWarp(CONFIG)
    pixels, velocities, text = random_motion(warp, 2)
    times = torch.stack([TIMES, 0.5 * TIMES])
    both = warp(pixels, velocities, text, times)
    for index in range(2):
        alone = warp(pixels[[index]], velocities[[index]], text[[index]], times[index])
        for found, expected in zip(both, alone, strict=True):
            torch.testing.assert_close(found.chunk(2)[index], expected)


def test_an_untrained_warp_moves_nothing():
    warp, text = ForwardWarp(CONFIG), torch.randn(1, 4)
    assert not any(p.requires_grad for p in warp.autoencoder.parameters())
    assert not warp.estimate(torch.rand(1, 3, HEIGHT, WIDTH), text).any()
    assert torch.equal(warp._views(text, TIMES, None), STILL.expand(1, 5, 2, 3))
