"""The flow network finds displacements, warps by them, and interpolates; the flow warp around it holds cuts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from demo_networks import VARIANTS

from microcinema_core.checkpoint import load_model
from microcinema_core.demo.flow import COARSEST, FlowNetwork, _velocities, both_ways
from microcinema_core.demo.flow_warp import FlowWarp
from microcinema_core.demo.inverse_search import inverse_search
from microcinema_core.metrics.quality import psnr
from microcinema_core.optical_flow import warp

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FlowNetwork().requires_grad_(False)


def texture(height, width, seed=0):
    """A picture (3, height, width) with details of 4 to 64 pixels, the larger the stronger, as in photographs."""
    generator, picture = torch.Generator().manual_seed(seed), torch.full((3, height, width), 0.5)
    for cell, strength in ((4, 0.06), (16, 0.1), (64, 0.2)):
        noise = torch.randn(1, 3, height // cell + 1, width // cell + 1, generator=generator)
        picture += strength * F.interpolate(noise, (height, width), mode="bicubic")[0]
    return picture.clamp(0, 1)


def moved_pair(velocity, side=128):
    """Two pictures (1, 2, 3, side, side) of a texture that moves by a velocity in whole even pixels, and the middle."""
    x, y = velocity
    whole, margin = texture(side + 192, side + 192), 96

    def cut(time):
        top, left = (margin - round(time * step) for step in (y, x))
        return whole[:, top : top + side, left : left + side]

    return torch.stack([cut(0), cut(1)])[None], cut(0.5)[None]


def test_warping_by_whole_pixels_moves_pixels():
    picture = texture(16, 24)[None]
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24)
    torch.testing.assert_close(warp(picture, flow)[..., 2:, :-3], picture[..., :-2, 3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("velocity", [(0, 0), (2, -2), (16, 0), (-24, 8), (4, 40)])
def test_both_flows_tell_the_velocity_of_the_frame_between(velocity):
    pictures, _ = moved_pair(velocity)
    flows = both_ways(pictures)
    for time in (0.25, 0.5):
        for found in _velocities(flows, time):
            error = (found[..., 24:-24, 24:-24] - torch.tensor(velocity).view(2, 1, 1)).norm(dim=1)
            assert error.median() < 0.2


def test_flow_is_found_without_texture_noise_or_light_leading_astray():
    still = texture(64, 96)[None]
    assert inverse_search(still, still).abs().max() < 1e-3
    assert inverse_search(torch.full_like(still, 0.5), torch.full_like(still, 0.6)).abs().max() < 1e-3
    darker, shifted = 0.8 * still, still.roll(4, -1)
    noisy = shifted + 0.02 * torch.randn(shifted.shape, generator=torch.Generator().manual_seed(0))
    for first, last in ((darker, shifted), (still, noisy)):
        assert (inverse_search(first, last)[:, 0, 4:-4, 4:-4].median() - 4).abs() < 0.3


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (50, 16)])
def test_flow_has_half_the_size_of_any_picture(size):
    picture = torch.rand(2, 3, *size)
    assert inverse_search(picture, picture).shape == (2, 2, size[0] // 2, size[1] // 2)


def test_flows_are_found_once_for_all_times(network):
    pictures = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flows = both_ways(pictures)
    for time in (0.25, 0.5):
        torch.testing.assert_close(network(pictures, time, flows).frame, network(pictures, time).frame)


def test_a_pair_does_not_depend_on_the_others_of_its_batch(network):
    pictures = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = network(pictures, 0.25).frame
    torch.testing.assert_close(network(pictures[1:2], 0.25).frame, together[1:2], rtol=0, atol=1e-4)


def test_before_any_training_the_frame_is_the_mean_of_moved_pictures(network):
    pictures, middle = moved_pair((24, 0))
    result = network(pictures, 0.5)
    inner = (..., slice(16, -16), slice(16, -16))
    blended = pictures.mean(1)
    assert torch.equal(result.frame, result.blended)
    assert (result.frame - middle)[inner].abs().mean() < (blended - middle)[inner].abs().mean() / 5
    assert (result.velocity[:, 0][inner].median() - 24).abs() < 4


# --- the flow warp ---


@pytest.fixture(scope="module")
def flow_warp():
    torch.manual_seed(0)
    return FlowWarp(VARIANTS["flow between ends"]).requires_grad_(False)


def frames_between(flow_warp, ends, times=(0, 0.25, 0.5, 0.75, 1)):
    latents = flow_warp.autoencoder.encode(ends.flatten(0, 1)).unflatten(0, ends.shape[:2])
    return flow_warp(ends, latents, times), latents


def test_end_frames_stay_what_they_are(flow_warp):
    ends, _ = moved_pair((8, 0), side=64)
    warped, latents = frames_between(flow_warp, ends)
    assert torch.equal(warped.pixels[:, [0, -1]], ends) and torch.equal(warped.latents[:, [0, -1]], latents)
    assert not warped.disagreement[:, [0, -1]].any() and warped.pixels.shape == (1, 5, 3, 64, 64)


def test_sides_need_be_no_multiple_of_the_coarsest_cell(flow_warp):
    ends = moved_pair((0, 0), side=64)[0][..., :40, :56]
    assert 40 % COARSEST and 56 % COARSEST
    [result], _ = flow_warp.between(ends, [0.5])
    assert result.frame.shape == (1, 3, 40, 56) and result.velocity.shape == (1, 2, 40, 56)


def test_a_moved_picture_is_no_cut_and_another_picture_is_one(flow_warp):
    moved, _ = moved_pair((16, 8))
    other = torch.stack([moved[0, 0], texture(128, 128, seed=9)])[None]
    flat = torch.full_like(moved, 0.3)
    flat[:, 1] = 0.4  # a fade
    warped, _ = frames_between(flow_warp, torch.cat([moved, other, flat]))
    assert warped.is_cut.tolist() == [False, True, False] and not warped.moving[1].any()
    held = warped.pixels[1]
    assert all(torch.equal(frame, end) for frame, end in zip(held, other[0][[0, 0, 0, 1, 1]], strict=True))


def test_between_equal_frames_there_are_their_copies(flow_warp):
    """Of a film that shows each picture twice, or of a still: nothing that the network would change is better."""
    ends = texture(64, 64)[None, None].expand(1, 2, -1, -1, -1)
    warped, _ = frames_between(flow_warp, ends)
    assert not warped.moving.any() and torch.equal(warped.pixels, ends[:, :1].expand(-1, 5, -1, -1, -1))


def test_what_stands_still_is_blended_and_what_moves_is_not():
    """Noise that differs from picture to picture is no motion; a thing that moves in front of it is."""
    network = load_model(MODELS / "demo-interpolation.safetensors").network.flow_warp.network
    pictures = texture(128, 128)[None].repeat(2, 1, 1, 1)
    pictures += 0.004 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    pictures[0, :, 40:64, 40:64], pictures[1, :, 40:64, 56:80] = 0.9, 0.9
    with torch.no_grad():
        result = network(pictures[None], 0.25)
    still, blended = (..., slice(96, None), slice(96, None)), torch.lerp(pictures[0], pictures[1], 0.25)
    assert psnr(result.frame[0][still], blended[still]) > 48
    assert result.velocity[still].abs().max() < 0.5 and (result.moving[0, :, 44:60, 56:64] > 0.8).all()


def test_stripes_that_stand_still_get_no_flow():
    """At half the resolution stripes of two pixels vanish, and their noise seems to move."""
    x = torch.arange(128.0)
    stripes = 0.5 + 0.1 * torch.sin(2 * torch.pi * (x + 0.4 * x[:, None]) / 2.2)
    generator = torch.Generator().manual_seed(0)
    first, last = (stripes + 0.02 * torch.randn(1, 3, 128, 128, generator=generator) for _ in range(2))
    assert inverse_search(first, last).norm(dim=1).quantile(0.95) < 0.1


def test_a_residual_of_zero_changes_no_pixel(flow_warp):
    assert not flow_warp.residual(torch.zeros(1, 4, 8, 8)).any()
