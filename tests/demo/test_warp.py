"""Forward warping: pixels go where the text says, and what arrives is what left."""

from __future__ import annotations

import math

import pytest
import torch
from demo_networks import PIXELS

from microcinema_core.demo import warp as warping
from microcinema_core.demo.config import DemoNetworkConfig
from microcinema_core.demo.edges import show_uncovered
from microcinema_core.demo.splat import splat, splat_clip
from microcinema_core.demo.warp import MOTION_CHANNELS, REGIONS, WEIGHT_SCALE, ForwardWarp

CONFIG = DemoNetworkConfig(
    model_channels=16, norm_groups=4, context_dim=4, frames=5, forward_warp=PIXELS, residual_std=0.5
)
HEIGHT, WIDTH = 20, 28  # pixels: 5 × 7 cells
UNIT = 32.0  # pixels
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


def test_splat_loses_what_leaves_the_picture_and_has_gradients():
    values = torch.rand(1, 1, HEIGHT, WIDTH, dtype=torch.float64).requires_grad_()
    places = (grid().double() + torch.rand(1, 2, HEIGHT, WIDTH, dtype=torch.float64) * 8 - 4).requires_grad_()
    assert splat(values, places + WIDTH).sum() == 0
    assert torch.autograd.gradcheck(lambda v, p: splat(v, p)[..., :4, :4], (values, places))


# Paths


def warp_and_text(vectors: torch.Tensor) -> tuple[ForwardWarp, torch.Tensor]:
    """A warp, and a text that says these vectors (REGIONS + 3, 2)."""
    warp = ForwardWarp(CONFIG)
    with torch.no_grad():
        warp.region_velocities.weight[:, 0] = vectors.flatten() / WEIGHT_SCALE
    return warp, torch.tensor([[1.0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("column", "vector", "expected"),
    [
        (2, (0.25, 0.0), lambda x, y, t: (x + 0.25 * t, y)),  # pan
        (0, (0.3, 0.0), lambda x, y, t: (x * math.exp(0.3 * t), y)),  # half of a zoom
    ],
)
def test_camera_moves_the_whole_picture(column, vector, expected):
    vectors = torch.zeros(REGIONS + 3, 2)
    vectors[REGIONS + column] = torch.tensor(vector)
    warp, text = warp_and_text(vectors)
    places = warp._trajectories(torch.zeros(1, 2, HEIGHT, WIDTH), text, TIMES)[0]
    middle, scale = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])[:, None, None], UNIT
    x, y = (grid()[0] - middle) / scale
    for place, time in zip(places, TIMES.tolist(), strict=True):
        torch.testing.assert_close((place - middle) / scale, torch.stack(expected(x, y, time)), rtol=1e-5, atol=1e-5)


def test_roll_turns_pixels_about_the_middle_and_keeps_their_distance():
    vectors = torch.zeros(REGIONS + 3, 2)
    vectors[REGIONS] = torch.tensor([0.0, math.pi / 2])
    vectors[REGIONS + 1] = torch.tensor([-math.pi / 2, 0.0])
    warp, text = warp_and_text(vectors)
    places = warp._trajectories(torch.zeros(1, 2, HEIGHT, HEIGHT), text, TIMES)[0]
    corner = [[0, 0], [HEIGHT - 1, 0]]  # a quarter turn takes the first corner to the second
    assert places[2, :, 0, 0].tolist() == pytest.approx(corner[0], abs=1e-4)
    assert places[4, :, 0, 0].tolist() == pytest.approx(corner[1], abs=1e-4)


def random_inputs(warp: ForwardWarp, clips: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return warp.encode(torch.randn(clips, 4, 5, 7), torch.randn(clips, 16, 5, 7))


def test_regions_move_as_the_text_says_and_only_they():
    vectors = torch.zeros(REGIONS + 3, 2)
    vectors[3] = torch.tensor([0.0, 0.5])
    warp, text = warp_and_text(vectors)
    head = warp.head[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-50)
        head.bias[4 * 3 + 1] = 50  # region 3: of each four pixels the second, above on the right
    velocities = warp.estimate(random_inputs(warp), text)[0, :2]
    torch.testing.assert_close(velocities[1, ::2, 1::2], torch.full((HEIGHT // 2, WIDTH // 2), 0.5))
    velocities[1, ::2, 1::2] = 0
    assert velocities.abs().max() < 1e-4


def test_flow_is_how_fast_pixels_leave_their_places():
    torch.manual_seed(0)
    warp, text = warp_and_text(0.3 * torch.randn(REGIONS + 3, 2))
    motion = 0.1 * torch.randn(1, 4, HEIGHT, WIDTH)
    soon = warp._trajectories(motion[:, :2], text, torch.tensor([-1e-3, 1e-3]))[0]
    torch.testing.assert_close(warp.flow(motion, text)[0], (soon[1] - soon[0]) / 2e-3, rtol=1e-2, atol=0.05)


# What is in front, and what behind


def test_what_lies_behind_shows_where_nothing_arrives():
    """A bright square leaves a dark ground; a pixel's weights say which of the two is a background."""
    warp = ForwardWarp(CONFIG)
    pixels, motion = torch.full((1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 4, HEIGHT, WIDTH)
    pixels[..., 8:14, 10:16], motion[:, 3, 8:14, 10:16] = 0.9, -50
    motion[:, 0, 8:14, 10:16] = 1.0  # a unit: out of the picture
    shown, visibility = (x[0] for x in warp.render(pixels, motion, torch.zeros(1, 4), torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(shown[0], pixels[0], rtol=0, atol=0.02)
    torch.testing.assert_close(shown[1], torch.full((3, HEIGHT, WIDTH), 0.1), rtol=0, atol=0.02)
    assert visibility[1, 0, 9:13, 11:15].max() < 0.01 and visibility[0].min() > 0.4


def test_what_a_thing_blurs_into_goes_with_it(monkeypatch):
    """Half a pixel's worth of a bright square lies around it, and the network found the square alone."""
    warp = ForwardWarp(CONFIG)
    pixels, motion = torch.full((1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 4, HEIGHT, WIDTH)
    pixels[..., 7:15, 9:17] = 0.5
    pixels[..., 8:14, 10:16], motion[:, 1, 8:14, 10:16] = 0.9, -1.0  # a unit up, out of the picture

    def left():
        shown, _ = warp.render(pixels, motion, torch.zeros(1, 4), torch.tensor([1.0]))
        return (shown[0, 0] - 0.1).abs().max()

    assert left() < 0.02
    static = torch.cat([torch.zeros(1, 2, HEIGHT, WIDTH), torch.randn(1, 2, HEIGHT, WIDTH)], dim=1)
    assert torch.equal(warping._dilate_moving(static), static)
    monkeypatch.setattr(warping, "_dilate_moving", lambda motion: motion)
    assert left() > 0.3


# What the text decides


def test_velocities_are_snapped_to_those_of_the_text():
    warp, text = ForwardWarp(CONFIG), torch.tensor([[1.0, 0, 0, 0]])
    assert not warp.colour_velocities.weight.requires_grad  # set with the text tower, not learned from motion
    found = torch.tensor([[0.23, 0.02], [0.0, -0.41], [0.02, 0.03], [0.1, -0.25]]).T.reshape(1, 2, 2, 2)
    assert torch.equal(warp._snap_velocities(found, text), found)  # a text that names nothing
    with torch.no_grad():
        warp.colour_velocities.weight[:4, 0] = torch.tensor([0.25, 0.0, 0.0, -0.375])
    expected = torch.tensor([[0.25, 0.0], [0.0, -0.375], [0.0, 0.0], [0.0, -0.375]]).T.reshape(1, 2, 2, 2)
    torch.testing.assert_close(warp._snap_velocities(found, text), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(warp._snap_velocities(found, 0 * text), found)


def test_the_refinement_changes_nothing_at_first_and_then_depends_on_the_whole_picture():
    torch.manual_seed(0)
    refine = ForwardWarp(CONFIG).refine
    h, text = torch.randn(1, MOTION_CHANNELS, HEIGHT // 2, WIDTH // 2), torch.randn(1, 4)
    assert torch.equal(refine(h, text), h)
    for parameter in refine.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    elsewhere = h.clone()
    elsewhere[..., -1, -1] += 1
    assert (refine(elsewhere, text) - refine(h, text))[..., 0, 0].abs().max() > 1e-6
    assert (refine(h, -text) - refine(h, text)).abs().max() > 1e-3


def test_a_text_that_pans_gives_the_shifted_picture():
    vectors = torch.zeros(REGIONS + 3, 2)
    vectors[REGIONS + 2] = torch.tensor([4 / UNIT, 0.0])  # one cell to the right
    warp, text = warp_and_text(vectors)
    latents = torch.randn(1, 4, 5, 7)
    inputs = warp.encode(latents, torch.randn(1, 16, 5, 7))
    [picture] = inputs[0]
    torch.testing.assert_close(picture, warp.autoencoder.decode(latents)[0].clamp(0, 1))
    shown, _ = warp.render(inputs[0], warp.estimate(inputs, text), text, torch.tensor([0.0, 1.0]))
    for frame, expected in ((shown[0, 0], picture), (shown[0, 1, ..., 4:], picture[..., :-4])):
        torch.testing.assert_close(frame, expected, rtol=0, atol=0.05)
    warped, visibility = warp(inputs, text, torch.tensor([0.0, 1.0]))
    uncovered = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1, 0, 4], [0, 1, 0]]])
    shown = show_uncovered(shown, inputs[0], uncovered[None])
    torch.testing.assert_close(warped, warp.autoencoder.encode(shown[0]), rtol=0, atol=1e-4)
    assert visibility.shape == (2, 1, 5, 7) and visibility[1, 0, :, 0].max() < 0.1 < visibility[1, 0, :, 2:].min()


def test_both_halves_of_a_guided_batch_share_their_inputs():
    torch.manual_seed(0)
    warp = ForwardWarp(CONFIG)
    torch.nn.init.normal_(warp.region_velocities.weight)
    inputs, text = random_inputs(warp, 2), torch.randn(4, 4)
    both = warp(inputs, text, TIMES)
    halves = zip(warp(inputs, text[:2], TIMES), warp(inputs, text[2:], TIMES), strict=True)
    for found, expected in zip(both, halves, strict=True):
        torch.testing.assert_close(found, torch.cat(expected))
    assert [found.shape for found in both] == [(4 * 5, 4, 5, 7), (4 * 5, 1, 5, 7)]


def test_every_clip_may_have_times_of_its_own():
    torch.manual_seed(0)
    warp = ForwardWarp(CONFIG)
    torch.nn.init.normal_(warp.region_velocities.weight)
    inputs, text = random_inputs(warp, 2), torch.randn(2, 4)
    times = torch.stack([TIMES, 0.5 * TIMES])
    both = warp(inputs, text, times)
    for index in range(2):
        alone = warp((inputs[0][[index]], inputs[1][[index]]), text[[index]], times[index])
        for found, expected in zip(both, alone, strict=True):
            torch.testing.assert_close(found.chunk(2)[index], expected)


# Learning


def test_the_autoencoder_within_stays_as_it_is():
    warp = ForwardWarp(CONFIG)
    assert not any(p.requires_grad for p in warp.autoencoder.parameters())
    text = torch.randn(1, 4)
    motion = warp.estimate(random_inputs(warp), text)
    assert motion.requires_grad and warp.flow(motion, text).requires_grad
    assert not warp(random_inputs(warp), text, TIMES)[0].requires_grad
