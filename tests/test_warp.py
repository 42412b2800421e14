"""Forward warping: points go where the text says, and what arrives is what left."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from microcinema_core.config import AutoencoderConfig, NetworkConfig
from microcinema_core.model import warp as warping
from microcinema_core.model.warp import FINE, RATE, REGIONS, ForwardWarp, splat

CENTRE = NetworkConfig(
    model_channels=16, norm_groups=4, context_dim=4, frames=5,
    forward_warp=AutoencoderConfig(channels=4, channel_multipliers=(1, 2, 2), res_blocks=1, norm_groups=2),
)  # fmt: skip
ENDS = replace(CENTRE, context_dim=None, condition="ends")
HEIGHT, WIDTH = 20, 28  # pixels: 5 × 7 cells
UNIT = 32.0  # pixels
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
    paths = warp._paths(torch.zeros(1, 1, 2, HEIGHT, WIDTH), text, TIMES)[0, :, 0]
    middle, scale = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])[:, None, None], UNIT
    x, y = (grid()[0, 0] - middle) / scale
    for path, time in zip(paths, TIMES[0].tolist(), strict=True):
        torch.testing.assert_close((path - middle) / scale, torch.stack(moved(x, y, time)), rtol=1e-5, atol=1e-5)


def test_roll_turns_points_about_the_middle_and_keeps_their_distance():
    motion = torch.zeros(REGIONS + 3, 2)
    motion[REGIONS] = torch.tensor([0.0, math.pi / 2])
    motion[REGIONS + 1] = torch.tensor([-math.pi / 2, 0.0])
    warp, text = told(motion)
    paths = warp._paths(torch.zeros(1, 1, 2, HEIGHT, HEIGHT), text, TIMES)[0, :, 0]
    corner = [[0, 0], [HEIGHT - 1, 0]]  # a quarter turn takes the first corner to the second
    assert paths[2, :, 0, 0].tolist() == pytest.approx(corner[0], abs=1e-4)
    assert paths[4, :, 0, 0].tolist() == pytest.approx(corner[1], abs=1e-4)


def seen_by(warp: ForwardWarp, clips: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    k = 1 if warp.reads_text else 2
    return warp.look(torch.randn(clips, k, 4, 5, 7), torch.randn(clips, k, 16, 5, 7))


def test_regions_move_as_they_are_told_and_only_they():
    motion = torch.zeros(REGIONS + 3, 2)
    motion[3] = torch.tensor([0.0, 0.5])
    warp, text = told(motion)
    head = warp.points[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-50)
        head.bias[4 * 3 + 1] = 50  # region 3: of each four pixels the second, above on the right
    velocities = warp.read(seen_by(warp), text)[0, 0, :2]
    torch.testing.assert_close(velocities[1, ::2, 1::2], torch.full((HEIGHT // 2, WIDTH // 2), 0.5))
    velocities[1, ::2, 1::2] = 0
    assert velocities.abs().max() < 1e-4


def test_flow_is_how_fast_pixels_leave_their_places():
    torch.manual_seed(0)
    warp, text = told(0.3 * torch.randn(REGIONS + 3, 2))
    points = 0.1 * torch.randn(1, 1, 4, HEIGHT, WIDTH)
    soon = warp._paths(points[:, :, :2], text, torch.tensor([[-1e-3, 1e-3]]))[0]
    torch.testing.assert_close(warp.flow(points, text)[0], (soon[1] - soon[0]) / 2e-3, rtol=1e-2, atol=0.05)
    ends = ForwardWarp(ENDS)
    points = 0.1 * torch.randn(1, 2, 4, HEIGHT, WIDTH)
    later = ends._paths(points[:, :, :2], None, torch.tensor([[0.0, 0.5], [-0.5, 0.0]]))[0]
    torch.testing.assert_close(ends.flow(points, None)[0, 0], (later[1, 0] - later[0, 0]) / 0.5, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ends.flow(points, None)[0, 1], (later[1, 1] - later[0, 1]) / 0.5, rtol=1e-4, atol=1e-3)


def test_what_lies_behind_shows_where_nothing_arrives():
    """A bright square leaves a dark ground; a pixel's weights say which of the two is a background."""
    warp = ForwardWarp(CENTRE)
    pixels, points = torch.full((1, 1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 1, 4, HEIGHT, WIDTH)
    pixels[..., 8:14, 10:16], points[:, :, 3, 8:14, 10:16] = 0.9, -50
    points[:, :, 0, 8:14, 10:16] = 1.0  # a unit: out of the picture
    text = torch.zeros(1, 1, 4)
    shown, known = (x[0] for x in warp.render(pixels, points, text, torch.tensor([[0.0, 1.0]])))
    torch.testing.assert_close(shown[0], pixels[0, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(shown[1], torch.full((3, HEIGHT, WIDTH), 0.1), rtol=0, atol=0.02)
    assert known[1, 0, 9:13, 11:15].max() < 0.01 and known[0].min() > 0.4


def test_what_a_thing_blurs_into_goes_with_it(monkeypatch):
    """Half a pixel's worth of a bright square lies around it, and the network found the square alone."""
    warp = ForwardWarp(CENTRE)
    pixels, points = torch.full((1, 1, 3, HEIGHT, WIDTH), 0.1), torch.zeros(1, 1, 4, HEIGHT, WIDTH)
    pixels[..., 7:15, 9:17] = 0.5
    pixels[..., 8:14, 10:16], points[:, :, 1, 8:14, 10:16] = 0.9, -1.0  # a unit up, out of the picture

    def left():
        shown, _ = warp.render(pixels, points, torch.zeros(1, 1, 4), torch.tensor([[1.0]]))
        return (shown[0, 0] - 0.1).abs().max()

    assert left() < 0.02
    still = torch.cat([torch.zeros(1, 1, 2, HEIGHT, WIDTH), torch.randn(1, 1, 2, HEIGHT, WIDTH)], dim=2)
    assert torch.equal(warping._with_edges(still), still)
    monkeypatch.setattr(warping, "_with_edges", lambda points: points)
    assert left() > 0.3


def test_what_is_nearly_found_goes_as_the_text_tells():
    warp, text = ForwardWarp(CENTRE), torch.tensor([[[1.0, 0, 0, 0]]])
    assert not warp.named.weight.requires_grad  # taught with the text tower, not by motion
    found = torch.tensor([[0.23, 0.02], [0.0, -0.41], [0.02, 0.03], [0.1, -0.25]]).T.reshape(1, 1, 2, 2, 2)
    assert torch.equal(warp._decided(found, text), found)  # a text that names nothing
    with torch.no_grad():
        warp.named.weight[:4, 0] = torch.tensor([0.25, 0.0, 0.0, -0.375])
    expected = torch.tensor([[0.25, 0.0], [0.0, -0.375], [0.0, 0.0], [0.0, -0.375]]).T.reshape(1, 1, 2, 2, 2)
    torch.testing.assert_close(warp._decided(found, text), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(warp._decided(found, 0 * text), found)


def test_a_second_look_changes_nothing_at_first_and_then_sees_the_whole_picture():
    torch.manual_seed(0)
    look = ForwardWarp(CENTRE).look_again
    h, text = torch.randn(1, FINE, HEIGHT // 2, WIDTH // 2), torch.randn(1, 4)
    assert torch.equal(look(h, text), h)
    for parameter in look.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    elsewhere = h.clone()
    elsewhere[..., -1, -1] += 1
    assert (look(elsewhere, text) - look(h, text))[..., 0, 0].abs().max() > 1e-6
    assert (look(h, -text) - look(h, text)).abs().max() > 1e-3


def test_told_to_pan_it_shows_the_shifted_picture():
    motion = torch.zeros(REGIONS + 3, 2)
    motion[REGIONS + 2] = torch.tensor([4 / UNIT, 0.0])  # one cell to the right
    warp, text = told(motion)
    latents = torch.randn(1, 1, 4, 5, 7)
    seen = warp.look(latents, torch.randn(1, 1, 16, 5, 7))
    torch.testing.assert_close(seen[0][0], warp.autoencoder.decode(latents[0]).clamp(0, 1))
    shown, _ = warp.render(seen[0], warp.read(seen, text), text, torch.tensor([[0.0, 1.0]]))
    for frame, expected in ((shown[0, 0], seen[0][0, 0]), (shown[0, 1, ..., 4:], seen[0][0, 0, ..., :-4])):
        torch.testing.assert_close(frame, expected, rtol=0, atol=0.05)
    made, known = warp(seen, text, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(made, warp.autoencoder.encode(shown[0]), rtol=0, atol=1e-4)
    assert known.shape == (2, 1, 5, 7) and known[1, 0, :, 0].max() < 0.1 < known[1, 0, :, 2:].min()


def test_both_halves_of_a_guided_batch_share_what_is_seen():
    torch.manual_seed(0)
    warp = ForwardWarp(CENTRE)
    torch.nn.init.normal_(warp.velocities.weight)
    seen, text = seen_by(warp, 2), torch.randn(4, 1, 4)
    both = warp(seen, text, TIMES)
    halves = zip(warp(seen, text[:2], TIMES), warp(seen, text[2:], TIMES), strict=True)
    for found, expected in zip(both, halves, strict=True):
        torch.testing.assert_close(found, torch.cat(expected))
    assert [found.shape for found in both] == [(4 * 5, 4, 5, 7), (4 * 5, 1, 5, 7)]


def test_between_ends_a_clip_played_backwards_is_warped_alike():
    torch.manual_seed(0)
    warp = ForwardWarp(ENDS)
    pixels, features = seen_by(warp)
    times = torch.stack([TIMES[0] + 1, TIMES[0] - 1])
    latents, own = torch.randn(1, 2, 4, 5, 7), torch.randn(1, 2, 16, 5, 7)
    for there, back in zip(
        warp(warp.look(latents, own), None, times), warp(warp.look(latents.flip(1), own.flip(1)), None, times),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(back, there.flip(0))
    still = torch.zeros(1, 2, 4, HEIGHT, WIDTH)
    shown = warp.render(pixels, still, None, times)[0][0]
    for index, weight in enumerate(torch.linspace(0, 1, 5)):  # where nothing moves, a blend
        torch.testing.assert_close(shown[index], torch.lerp(pixels[0, 0], pixels[0, 1], weight), rtol=0, atol=0.03)


def test_it_finds_each_of_two_pictures_in_the_other():
    picture = torch.rand(1, 3, HEIGHT, WIDTH)
    pair = torch.stack([picture, picture.roll((2, -4), (2, 3))], dim=1)  # pixels down and right
    matches, velocities = ForwardWarp(ENDS)._match(pair)
    torch.testing.assert_close(matches.sum(1), torch.ones(2, HEIGHT // 2, WIDTH // 2))
    for found, expected in zip(velocities * UNIT, ((-2.0, 1.0), (2.0, -1.0)), strict=True):  # τ is 2 from end to end
        inner = found[:, 3:-3, 4:-4]
        torch.testing.assert_close(inner, torch.tensor(expected).view(2, 1, 1).expand_as(inner), rtol=0, atol=0.05)


def test_the_autoencoder_within_stays_as_it_is():
    warp = ForwardWarp(CENTRE)
    assert not any(p.requires_grad for p in warp.autoencoder.parameters())
    text = torch.randn(1, 1, 4)
    points = warp.read(seen_by(warp), text)
    assert points.requires_grad and warp.flow(points, text).requires_grad
    assert not warp(seen_by(warp), text, TIMES)[0].requires_grad
