"""Dense flow and the report on a clip: moves that are known, and what a clip that stands still is told."""

import math

import pytest
import torch
from command import PHOTO

from microcinema_core.images import fit, load_picture
from microcinema_core.metrics.clip_report import clip_report
from microcinema_core.metrics.motion import move_camera
from microcinema_core.optical_flow import optical_flow, warp


@pytest.fixture(scope="module")
def picture():
    return fit(load_picture(PHOTO), 192, 128)


def moved(picture, right=0.0, down=0.0, out=0.0, roll=0.0):
    """The picture after a move of the camera's content, and the true flow with the pixels that stay inside."""
    shown, _ = move_camera(picture[None], torch.tensor([[right, down, out, roll]]))
    height, width = picture.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    cos, sin = math.exp(-out) * math.cos(roll), math.exp(-out) * math.sin(roll)
    to_x, to_y = cos * (x - right) + sin * (y - down), -sin * (x - right) + cos * (y - down)
    inside = (to_x.abs() < width / 2 - 8) & (to_y.abs() < height / 2 - 8)
    inside &= (x.abs() < width / 2 - 8) & (y.abs() < height / 2 - 8)
    return shown, torch.stack([to_x - x, to_y - y]), inside


@pytest.mark.parametrize(
    "move", [{"right": 0.3}, {"right": 3.3, "down": -2.1}, {"right": 12.0, "down": 5.0}, {"out": 0.03}, {"roll": 0.05}]
)
def test_flow_finds_a_move_of_a_photograph(picture, move):
    after, true, inside = moved(picture, **move)
    error = (optical_flow(picture[None], after)[0] - true).norm(dim=0)[inside]
    assert error.median() < 0.1 and (error < 0.5).float().mean() > 0.93


def test_flow_of_a_still_picture_is_zero(picture):
    assert optical_flow(picture[None], picture[None]).abs().max() < 1e-4


def test_flow_leads_back_what_has_moved(picture):
    after, _, inside = moved(picture, right=5.0)
    flow = optical_flow(picture[None], after)
    assert (warp(after, flow) - picture)[:, :, inside].abs().mean() < 0.01
    assert (after - picture)[:, :, inside].abs().mean() > 0.03


def test_the_report_of_a_pan(picture):
    clip = torch.cat([moved(picture, right=2.0 * i)[0] for i in range(5)]).clamp(0, 1)
    report = clip_report(clip, picture)
    assert report.motion == pytest.approx(2, abs=0.2) and report.motion_95 == pytest.approx(2, abs=0.5)
    assert report.moving > 0.9 and len(report.steps) == 4
    assert report.consistency > 35
    assert report.fidelity == 100 and report.similarity == pytest.approx(1)
    assert "2.0" in report.words()


def test_a_still_clip_is_consistent_and_does_not_move(picture):
    report = clip_report(picture.expand(3, -1, -1, -1))
    assert report.motion < 0.01 and report.moving == 0
    assert report.consistency > 60 and report.fidelity is None


def test_motion_is_in_pixels_of_the_clip_whatever_its_size(picture):
    large = fit(load_picture(PHOTO), 768, 512)
    clip = torch.cat([moved(large, right=8.0 * i)[0] for i in range(2)]).clamp(0, 1)
    assert clip_report(clip).motion == pytest.approx(8, rel=0.1)


def test_colour_drift_is_the_largest_change_of_a_mean(picture):
    clip = torch.stack([picture * gain for gain in (1.0, 0.9, 0.95)])
    assert clip_report(clip).colour_drift == pytest.approx(0.1 * picture.mean((1, 2)).max().item(), rel=1e-3)


def test_one_frame_has_no_motion(picture):
    report = clip_report(picture[None], picture)
    assert report.motion == 0 and report.steps == [] and report.fidelity == 100
