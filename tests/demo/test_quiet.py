"""Quiet places: what a clip's own given frames say of them decides between its motion and a blend."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from microcinema_core.demo.evaluate import PHOTOGRAPHS
from microcinema_core.images import load_picture
from microcinema_core.metrics.quality import psnr
from microcinema_core.pipeline import Pipeline

SIDE, GIVEN = 96, 5
SPEED = 1.5  # pixels between given frames


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_file(Path(__file__).parents[2] / "models" / "demo-interpolation.safetensors")


@pytest.fixture(scope="module")
def photograph():
    picture = load_picture(sorted(PHOTOGRAPHS.glob("*.jpg"))[0])
    return F.interpolate(picture[None], size=(160, 240), mode="bicubic", antialias=True).clamp(0, 1)


def shifted(picture, pixels):
    """A part of a picture, SIDE pixels wide, this far to the right."""
    places = torch.arange(SIDE) + 0.5
    x, y = 2 * (places + 40 + pixels) / picture.shape[-1] - 1, 2 * (places + 20) / picture.shape[-2] - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    return F.grid_sample(picture, grid, mode="bicubic", align_corners=False)[0].clamp(0, 1)


def blends(given):
    """The linear blends between given frames, three each, (n − 1, 3, 3, h, w)."""
    return torch.stack([torch.lerp(given[:-1], given[1:], index / 4) for index in (1, 2, 3)], 1)


def between(frames):
    return frames[:-1].unflatten(0, (-1, 4))[:, 1:]


def test_slow_motion_is_followed_where_the_given_frames_follow_it(pipeline, photograph):
    clip = torch.stack([shifted(photograph, SPEED * index / 4) for index in range(4 * GIVEN - 3)])
    made, given = between(pipeline.interpolate(clip[::4])), clip[::4]
    assert pipeline.compare(given.unfold(0, 3, 1).movedim(-1, 1)).select(1, 1).gt(0).all()
    assert psnr(made, between(clip)) > psnr(blends(given), between(clip)) + 3


def test_where_the_given_frames_are_blends_of_their_neighbours_those_between_are_too(pipeline, photograph):
    ends = torch.stack([shifted(photograph, SPEED * (GIVEN - 1) * index) for index in (0, 1)])
    given = torch.stack([torch.lerp(*ends, index / (GIVEN - 1)) for index in range(GIVEN)])
    made = pipeline.interpolate(given)
    assert torch.equal(made[::4], given)
    moved = torch.cat([between(pipeline.interpolate(given[index : index + 2])) for index in range(GIVEN - 1)])
    assert psnr(moved, blends(given)) < 55, "nothing would be moved here: this test tests nothing"
    assert psnr(between(made), blends(given)) > psnr(moved, blends(given)) + 6


def test_a_cut_and_what_moves_far_tell_nothing(pipeline, photograph):
    other = load_picture(sorted(PHOTOGRAPHS.glob("*.jpg"))[3])
    other = shifted(F.interpolate(other[None], size=(160, 240), mode="area"), 0)
    still = shifted(photograph, 0)
    assert torch.equal(pipeline.compare(torch.stack([still, still, other])[None]), torch.zeros(1, 2))
    fast = torch.stack([shifted(photograph, 9 * index) for index in range(3)])
    slow = torch.stack([shifted(photograph, 1 * index) for index in range(3)])
    squares = pipeline.compare(torch.stack([fast, slow]))[:, 1]
    assert squares[0] < squares[1]
