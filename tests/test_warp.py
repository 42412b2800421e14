"""Forward warping: points go where the text says, and what arrives is what left."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from microcinema_core.config import NetworkConfig
from microcinema_core.model.warp import FINE, RATE, REGIONS, UNIT, ForwardWarp, splat

CENTRE = NetworkConfig(model_channels=16, context_dim=4, frames=5, forward_warp=True)
ENDS = replace(CENTRE, context_dim=None, condition="ends")
HEIGHT, WIDTH = 20, 28  # of the points' grid
TIMES = torch.linspace(-1, 1, 5)[None]


def grid() -> torch.Tensor:
    """(1, 1, 2, H, W): every point at its own place."""
    return torch.stack(torch.meshgrid(torch.arange(WIDTH), torch.arange(HEIGHT), indexing="xy"))[None, None].float()


def shifted(x: float, y: float) -> torch.Tensor:
    return grid() + torch.tensor([x, y]).view(2, 1, 1)


def test_splat_at_home_is_the_identity_and_whole_steps_shift():
    values = torch.randn(1, 1, 3, HEIGHT, WIDTH)
    assert torch.equal(splat(values, grid()), values[:, 0])
    moved = splat(values, shifted(2, -3))
    assert torch.equal(moved[..., :-3, 2:], values[:, 0, :, 3:, :-2])
    assert not moved[..., -3:, :].any()
    assert not moved[..., :2].any()


def test_splat_shares_a_value_among_four_neighbours_and_adds_up_pictures():
    values = torch.zeros(1, 2, 1, HEIGHT, WIDTH)
    values[0, :, 0, 5, 7] = torch.tensor([1.0, 10.0])
    out = splat(values, torch.cat([shifted(0.25, 0.5), shifted(1, 1)], 1))[0, 0]
    torch.testing.assert_close(out[5:7, 7:9], torch.tensor([[0.375, 0.125], [0.375, 10.125]]))
    assert out.sum() == 11


def test_splat_loses_what_leaves_the_picture_and_has_gradients():
    values = torch.rand(1, 1, 1, HEIGHT, WIDTH, dtype=torch.float64).requires_grad_()
    places = (grid().double() + torch.rand(1, 1, 2, HEIGHT, WIDTH, dtype=torch.float64) * 8 - 4).requires_grad_()
    assert splat(values, places + WIDTH).sum() == 0
    assert torch.autograd.gradcheck(lambda v, p: splat(v, p)[..., :4, :4], (values, places))


def told(motion: torch.Tensor) -> tuple[ForwardWarp, torch.Tensor]:
    """A warp whose text says this vector (REGIONS + 3, 2), and the text."""
    warp = ForwardWarp(CENTRE)
    with torch.no_grad():
        warp.velocities.weight[:, 0] = motion.flatten() / RATE
    return warp, torch.tensor([[[1.0, 0, 0, 0]]])


@pytest.mark.parametrize(
    ("column", "vector", "moved"),
    [
        (2, (0.25, 0.0), lambda x, y, t: (x + 0.25 * t, y)),  # pan
        (0, (0.3, 0.0), lambda x, y, t: (x * math.exp(0.3 * t), y)),  # half of a zoom
    ],
)
def test_camera_moves_the_whole_picture(column, vector, moved):
    motion = torch.zeros(REGIONS + 3, 2)
    motion[REGIONS + column] = torch.tensor(vector)
    warp, text = told(motion)
    paths = warp._paths(torch.zeros(1, 1, REGIONS, HEIGHT, WIDTH), text, TIMES)[0, :, 0]
    middle, scale = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])[:, None, None], FINE * UNIT
    x, y = (grid()[0, 0] - middle) / scale
    for path, time in zip(paths, TIMES[0].tolist(), strict=True):
        torch.testing.assert_close((path - middle) / scale, torch.stack(moved(x, y, time)), rtol=1e-5, atol=1e-5)


def test_roll_turns_points_about_the_middle_and_keeps_their_distance():
    motion = torch.zeros(REGIONS + 3, 2)
    motion[REGIONS] = torch.tensor([0.0, math.pi / 2])
    motion[REGIONS + 1] = torch.tensor([-math.pi / 2, 0.0])
    warp, text = told(motion)
    paths = warp._paths(torch.zeros(1, 1, REGIONS, HEIGHT, HEIGHT), text, TIMES)[0, :, 0]
    corner = [[0, 0], [HEIGHT - 1, 0]]  # a quarter turn takes the first corner to the second
    assert paths[2, :, 0, 0].tolist() == pytest.approx(corner[0], abs=1e-4)
    assert paths[4, :, 0, 0].tolist() == pytest.approx(corner[1], abs=1e-4)


def test_regions_move_apart_and_only_there():
    motion = torch.zeros(REGIONS + 3, 2)
    motion[3] = torch.tensor([0.0, 0.5])
    warp, text = told(motion)
    regions = torch.full((1, 1, REGIONS, HEIGHT, WIDTH), -50.0)
    regions[0, 0, 3, 4:8, 4:8] = 50.0
    paths = warp._paths(regions, text, TIMES)[0, :, 0] - grid()[0]
    torch.testing.assert_close(paths[4, 1, 4:8, 4:8], torch.full((4, 4), 0.5 * FINE * UNIT))
    paths[:, :, 4:8, 4:8] = 0
    assert paths.abs().max() < 1e-4


def test_flow_is_how_fast_points_leave_their_places():
    torch.manual_seed(0)
    warp, text = told(0.3 * torch.randn(REGIONS + 3, 2))
    points = torch.randn(1, 1, REGIONS + 2 + 4, HEIGHT, WIDTH)
    soon = warp._paths(points[:, :, :REGIONS], text, torch.tensor([[-1e-3, 1e-3]]))[0]
    torch.testing.assert_close(warp.flow(points, text)[0], (soon[1] - soon[0]) / 2e-3, rtol=1e-2, atol=0.05)
    ends = ForwardWarp(ENDS)
    points = torch.randn(1, 2, 2 + 2 + 4, HEIGHT, WIDTH)
    later = ends._paths(points[:, :, :2], None, torch.tensor([[0.0, 0.5], [-0.5, 0.0]]))[0]
    torch.testing.assert_close(ends.flow(points, None)[0, 0], (later[1, 0] - later[0, 0]) / 0.5, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ends.flow(points, None)[0, 1], (later[0, 1] - later[1, 1]) / 0.5, rtol=1e-4, atol=1e-3)


def test_what_lies_behind_shows_where_nothing_arrives():
    """A bright square leaves a dark ground; a pixel's weights say which of the two is a background."""
    motion = torch.zeros(REGIONS + 3, 2)
    motion[0] = torch.tensor([1.0, 0.0])  # a unit of UNIT cells: out of the picture
    warp, text = told(motion)
    points = torch.zeros(1, 1, REGIONS + 2 + 4, HEIGHT, WIDTH)
    points[:, :, :REGIONS] = -50
    points[:, :, -4:] = -1
    square = points[:, :, :, 8:14, 10:16]
    square[:, :, 0], square[:, :, REGIONS + 1], square[:, :, -4:] = 50, -50, 3
    with torch.no_grad():
        warp.to_latents.weight.zero_()
        for channel in range(4):
            warp.to_latents.weight[channel, channel * FINE**2 : (channel + 1) * FINE**2] = 1 / FINE**2
    change = warp(points, text, torch.tensor([[0.0, 1.0]]))[1]
    assert change[0].abs().max() < 0.2
    after = change[1] - 0  # from 3 to about -1 where the square was, cell (2, 3)
    torch.testing.assert_close(after[:, 2, 3], torch.full((4,), -4.0), rtol=0, atol=0.3)


def test_untrained_it_changes_nothing_until_told_and_then_shifts_the_latents():
    latents = torch.randn(1, 1, 4, 5, 7)
    motion = torch.zeros(REGIONS + 3, 2)
    motion[REGIONS + 2] = torch.tensor([1 / UNIT, 0.0])  # one cell to the right
    warp, text = told(motion)
    points = warp.read_points(latents, torch.zeros(1, 1, 16, 5, 7))
    features, change = warp(points, text, torch.tensor([[0.0, 1.0]]))
    assert not features[0].any() and not change[0].any()
    torch.testing.assert_close((latents[0] + change)[1, ..., 1:], latents[0, 0, ..., :-1], rtol=0, atol=0.05)
    for untold in warp(points, 0 * text, torch.tensor([[-1.0, 1.0]])):
        assert not untold.any()


def test_both_halves_of_a_guided_batch_share_the_points():
    torch.manual_seed(0)
    warp = ForwardWarp(CENTRE)
    torch.nn.init.normal_(warp.velocities.weight)
    points = warp.read_points(torch.randn(2, 1, 4, 5, 7), torch.randn(2, 1, 16, 5, 7))
    assert points.shape == (2, 1, REGIONS + 2 + 4, 5 * FINE, 7 * FINE)
    text = torch.randn(4, 1, 4)
    both = warp(points, text, TIMES)
    halves = zip(warp(points, text[:2], TIMES), warp(points, text[2:], TIMES), strict=True)
    for found, expected in zip(both, halves, strict=True):
        torch.testing.assert_close(found, torch.cat(expected))
    assert [change.shape for change in both] == [(4 * 5, 16, 5, 7), (4 * 5, 4, 5, 7)]


def test_between_ends_a_clip_played_backwards_is_warped_alike_and_the_ends_stay():
    torch.manual_seed(0)
    warp = ForwardWarp(ENDS)
    latents, features = torch.randn(1, 2, 4, 5, 7), torch.randn(1, 2, 16, 5, 7)
    times = torch.stack([TIMES[0] + 1, TIMES[0] - 1])
    for untrained in warp(warp.read_points(latents, features), None, times):
        torch.testing.assert_close(untrained, torch.zeros_like(untrained), rtol=0, atol=1e-6)
    torch.nn.init.normal_(warp.points.weight)
    forwards = warp(warp.read_points(latents, features), None, times)
    backwards = warp(warp.read_points(latents.flip(1), features.flip(1)), None, times)
    for there, back in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(back, there.flip(0))
        assert not there[0].any() and not there[-1].any()
        assert there[1:-1].abs().amin() > 0
