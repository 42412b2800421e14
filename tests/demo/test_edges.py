"""What a camera uncovers looks like more of the picture, and overscan shows nothing of it."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from microcinema_core import images
from microcinema_core.checkpoint import resolve
from microcinema_core.demo import edges, warp
from microcinema_core.demo.edges import continue_picture, least_zoom, show_uncovered
from microcinema_core.demo.evaluate import PHOTOGRAPHS
from microcinema_core.errors import MicroCinemaError
from microcinema_core.metrics.quality import psnr
from microcinema_core.pipeline import Pipeline

SIZE, MARGIN = 96, 20


@pytest.fixture(scope="module")
def model():
    return Pipeline.from_file(resolve("demo-base"))


def view(scale: float = 1.0, right: float = 0.0, degrees: float = 0.0) -> torch.Tensor:
    """One frame's affine map (2, 3) from places in the picture to places in the frame."""
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[cos, -sin, right], [sin, cos, 0.0]])


def middle(canvas: torch.Tensor) -> torch.Tensor:
    return canvas[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def stripes(size: int) -> torch.Tensor:
    """Slanted stripes (1, 3, size, size), the same in the middle for any size."""
    line = torch.arange(size) - size / 2
    return (0.5 + 0.4 * torch.sin(0.25 * line[:, None] + 0.15 * line)).expand(1, 3, -1, -1)


# The continuation


def test_the_picture_stays_in_the_middle_and_an_even_one_stays_even():
    picture = torch.rand(2, 3, 24, 40)
    canvas = continue_picture(picture, 7, 5)
    assert canvas.shape == (2, 3, 34, 54) and torch.equal(canvas[..., 5:-5, 7:-7], picture)
    assert torch.equal(continue_picture(picture, 0, 0), picture)
    grey = continue_picture(torch.full((1, 3, 24, 40), 0.3), 9, 9)
    torch.testing.assert_close(grey, torch.full_like(grey, 0.3), rtol=0, atol=1e-5)
    for picture_alone, continued in zip(picture.split(1), canvas.split(1), strict=True):
        torch.testing.assert_close(continue_picture(picture_alone, 7, 5), continued)


def test_slanted_lines_go_on_straight():
    truth = stripes(SIZE + 2 * MARGIN)
    beside = continue_picture(middle(truth), MARGIN, 0)
    mirrored = F.pad(middle(truth), [MARGIN, MARGIN, 0, 0], mode="reflect")
    truth, outside = truth[..., MARGIN:-MARGIN, :], torch.ones(1, SIZE, SIZE + 2 * MARGIN, dtype=torch.bool)
    outside[..., MARGIN:-MARGIN] = False
    assert psnr(beside, truth, outside) > psnr(mirrored, truth, outside) + 6


def test_there_is_no_seam():
    photograph = images.fit(images.load_picture(PHOTOGRAPHS / "raccoon.jpg"), SIZE, SIZE)[None]
    canvas = continue_picture(photograph, MARGIN, MARGIN)
    steps = (canvas[..., 1:] - canvas[..., :-1])[..., MARGIN:-MARGIN, :].abs().mean((0, 1, 2))
    assert max(steps[MARGIN - 1], steps[MARGIN + SIZE - 1]) < steps[MARGIN : MARGIN + SIZE - 1].max()


def test_on_photographs_it_is_a_decibel_nearer_to_the_truth_than_a_mirror_and_as_detailed_as_the_picture(model):
    gains, contrasts = [], []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        truth = images.fit(images.load_picture(path), SIZE + 2 * MARGIN, SIZE + 2 * MARGIN)[None]
        outside = torch.ones(1, *truth.shape[-2:], dtype=torch.bool)
        middle(outside).fill_(False)
        seen = model.decode(model.encode(middle(truth)))  # by the network
        canvases = torch.cat([continue_picture(seen, MARGIN, MARGIN), F.pad(seen, [MARGIN] * 4, mode="reflect")])
        continued, mirrored = model.decode(model.encode(canvases)).split(1)
        gains.append(psnr(continued, truth, outside) - psnr(mirrored, truth, outside))
        detail = (continued.diff(dim=-1)[..., 1:, :].square() + continued.diff(dim=-2)[..., 1:].square()).mean(1)
        outside = outside[..., 1:, 1:]
        contrasts.append((detail[outside].mean() / detail[~outside].mean()).log().item())
    assert fmean(gains) > 1
    assert 0.6 < math.exp(fmean(contrasts)) < 1.1


# In frames


def test_frames_that_show_nothing_else_stay_as_they_are_to_the_bit():
    picture, frames = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 3, 32, 48)
    views = torch.stack([view(), view(1.2), view(right=0.4)])[None]
    assert torch.equal(show_uncovered(frames, picture, views), frames)
    views[0, 1] = view(right=3)
    shown = show_uncovered(frames, picture, views)
    assert torch.equal(shown[0, [0, 2]], frames[0, [0, 2]]) and torch.equal(shown[0, 1, ..., 3:], frames[0, 1, ..., 3:])
    expected = continue_picture(picture, 24, 16)[0, :, 16:48, 21:24]
    torch.testing.assert_close(shown[0, 1, ..., :3], expected, rtol=0, atol=1e-4)


def test_however_far_the_camera_goes_there_is_something_to_see():
    picture = torch.rand(1, 3, 32, 48).repeat(1, 1, 1, 1)
    views = torch.stack([view(right=5000), view(0.02), view(0.5, 40, 70)])[None]
    shown = show_uncovered(torch.zeros(1, 3, 3, 32, 48), picture, views)
    assert torch.isfinite(shown).all() and (shown.std((2, 3, 4)) > 0.02).all()


@pytest.mark.parametrize("moved", [view(right=6), view(0.8), view(degrees=15), view(0.9, -4, -8)])
def test_the_least_zoom_is_enough_and_a_smaller_one_is_not(moved):
    height, width = 96, 128
    zoom = least_zoom(moved[None, None], height, width)
    frames, picture = torch.zeros(1, 1, 3, height, width), torch.rand(1, 3, height, width)
    assert zoom > 1.05
    assert torch.equal(show_uncovered(frames, picture, zoom * moved[None, None]), frames)
    assert not torch.equal(show_uncovered(frames, picture, (zoom - 0.1) * moved[None, None]), frames)


def test_the_least_zoom_is_1_where_nothing_is_uncovered_and_endless_where_the_picture_is_left():
    views = torch.stack([view(1.3), view(right=0.3), view(right=30)])[:, None]
    zoom = least_zoom(views, 32, 48)
    assert zoom[:2].tolist() == [1, 1] and zoom[2] > 1e6


# In the bundled model's clips


@pytest.fixture(scope="module")
def picture():
    return images.fit(images.load_picture(PHOTOGRAPHS / "coffee.jpg"), 64, 64)


def clip(model, picture, prompt, **settings):
    return model.animate(picture, prompt, width=64, height=64, frames=5, **settings)


def magenta(pixels, right, down):
    canvas = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(len(pixels), 3, pixels.shape[-2] + 2 * down, -1)
    return canvas[..., :1].expand(-1, -1, -1, pixels.shape[-1] + 2 * right)


@pytest.mark.parametrize("prompt", ["pan left quickly", "zoom in", "roll clockwise"])
def test_with_overscan_nothing_outside_of_the_picture_is_shown(model, picture, monkeypatch, prompt):
    shown, with_edges = (clip(model, picture, prompt, overscan=overscan) for overscan in (True, False))
    monkeypatch.setattr(edges, "continue_picture", magenta)
    assert torch.equal(clip(model, picture, prompt, overscan=True), shown)
    assert (clip(model, picture, prompt) - with_edges).abs().max() > 0.3  # without it magenta is seen


def test_a_clip_that_uncovers_nothing_is_that_of_release_0_1_to_the_bit(model, picture, monkeypatch):
    prompts = ["the camera stays still", "a red star moves left quickly"]
    shown = [clip(model, picture, prompt) for prompt in prompts]
    assert torch.equal(clip(model, picture, prompts[0], overscan=True), shown[0])
    monkeypatch.setattr(warp, "show_uncovered", lambda frames, *_: frames)
    for prompt, expected in zip(prompts, shown, strict=True):
        assert torch.equal(clip(model, picture, prompt), expected)


def test_half_the_motion_is_half_the_way(model, picture):
    full, half = (clip(model, picture, "pan right", motion=motion) for motion in (1.0, 0.5))
    for frame, same in ((0, 1), (4, 3)):  # a frame at the end is where one half-way to it was, but for the noise
        assert psnr(half[frame], full[same]) > psnr(half[frame], full[frame]) + 3
    still = clip(model, picture, "pan right", motion=0.0)
    torch.testing.assert_close(still, full[2].expand_as(still), rtol=0, atol=1e-3)


def test_a_camera_that_leaves_the_picture_has_no_overscan(model, picture):
    with pytest.raises(MicroCinemaError, match="too far for overscan.*smaller motion"):
        clip(model, picture, "pan left quickly", motion=4.0, overscan=True)
