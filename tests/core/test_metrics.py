"""Each measurement is right on clips of a given motion, and fails on clips with a given fault."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from microcinema_core import images
from microcinema_core.metrics.motion import camera_motion, camera_steps, lever, move_camera, thing_masks, thing_motion
from microcinema_core.metrics.quality import (
    MAX_PSNR,
    background_consistency,
    camera_consistency,
    colour_drift,
    iou,
    psnr,
    ssim,
)  # fmt: skip

PHOTO = Path(__file__).parents[2] / "pictures" / "photo.jpg"
SIZE = 64
ARM = lever(SIZE, SIZE)
STEPS = {  # the camera's: pixels right, pixels down, log zoom out, roll
    "right": (1.5, 0.0, 0.0, 0.0), "left": (-5.0, 0.0, 0.0, 0.0), "down": (0.0, 1.5, 0.0, 0.0),
    "up": (0.0, -5.0, 0.0, 0.0), "out": (0.0, 0.0, 0.07, 0.0), "in": (0.0, 0.0, -0.02, 0.0),
    "clockwise": (0.0, 0.0, 0.0, 0.03), "counterclockwise": (0.0, 0.0, 0.0, -0.08),
}  # fmt: skip


def camera_clip(step: tuple[float, float, float, float], frames: int = 3) -> torch.Tensor:
    """A photograph from a camera that makes the same step again and again, by Pillow's affine transform."""
    right, down, out, roll = step
    picture = Image.open(PHOTO)
    scale, cos, sin = math.exp(out), math.cos(roll), math.sin(roll)
    step = np.array([[scale * cos, -scale * sin, right], [scale * sin, scale * cos, down], [0, 0, 1]])
    centre = np.array([[1, 0, picture.width / 2], [0, 1, picture.height / 2], [0, 0, 1]])
    corner = np.array([[1, 0, -SIZE / 2], [0, 1, -SIZE / 2], [0, 0, 1]])
    clip = []
    for index in range(frames):
        place = centre @ np.linalg.matrix_power(step, index) @ corner
        frame = picture.transform((SIZE, SIZE), Image.Transform.AFFINE, place[:2].flatten(), Image.Resampling.BICUBIC)
        clip.append(torch.from_numpy(np.array(frame)).permute(2, 0, 1) / 255)
    return torch.stack(clip)


def square_clip(step: int, frames: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A red square that moves to the right by so many pixels a frame over a photograph, its masks and the ground."""
    background = images.fit(images.load_picture(PHOTO), SIZE, SIZE)
    masks = torch.zeros(frames, SIZE, SIZE, dtype=torch.bool)
    for index, mask in enumerate(masks):
        left = 26 + step * (index - frames // 2)
        mask[20:32, left : left + 12] = True
    clip = torch.where(masks[:, None], torch.tensor([1.0, 0.0, 0.0])[:, None, None], background)
    return clip, masks, background


# --- pictures ---


def test_psnr_and_ssim_of_known_errors():
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    assert psnr(picture, picture + 0.1) == pytest.approx(20, abs=1e-3)
    where = torch.zeros(32, 32, dtype=torch.bool)
    where[:16] = True
    damaged = picture.clone()
    damaged[:, 16:] = 1
    assert psnr(damaged, picture, where) == MAX_PSNR
    assert ssim(picture, picture) == pytest.approx(1)
    assert ssim(picture, picture.flip(-1)) < 0.2


def test_iou_counts_pixels():
    a, b = torch.zeros(2, 4, 4, dtype=torch.bool)
    a[:2], b[1:3] = True, True
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a & b & ~a, a & ~a) == 1


def test_colour_drift_is_that_of_the_worst_frame_and_colour():
    clip = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    drifted = clip.clone()
    drifted[1, 2] += 0.2
    drifted[2, 0] -= 0.1
    assert colour_drift(clip, clip) == 0
    assert colour_drift(drifted, clip) == pytest.approx(0.2, abs=1e-6)


# --- the camera ---


@pytest.mark.parametrize("motion", STEPS)
def test_the_camera_is_followed_on_a_photograph(motion):
    clip, expected = camera_clip(STEPS[motion]), torch.tensor(STEPS[motion])
    pixels = torch.tensor([1, 1, ARM, ARM])
    assert ((camera_steps(clip) - expected) * pixels).abs().max() < 0.1
    measured = camera_motion(clip, 0.5)
    assert measured.name == motion
    assert measured.magnitude == pytest.approx((expected * pixels).abs().max().item(), abs=0.1)


def test_a_reversed_camera_move_is_the_opposite_and_a_frozen_one_has_no_motion():
    clip = camera_clip(STEPS["out"])
    assert camera_motion(clip.flip(0), 0.5).name == "in"
    assert camera_motion(clip[1:2].expand(5, -1, -1, -1), 0.5).name == "still"


def test_a_blotch_does_not_mislead_the_flow():
    clip = camera_clip(STEPS["out"], frames=5)
    clip[3:, :, :20, :20] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    assert camera_steps(clip)[:, 2].median() == pytest.approx(0.07, abs=0.005)


def test_a_picture_after_a_step_of_the_camera_is_the_next_frame():
    clip = camera_clip((2.0, -1.0, 0.05, 0.04), frames=2)
    warped, inside = move_camera(clip[:1], torch.tensor([[2.0, -1.0, 0.05, 0.04]]))
    inside[:, [0, 1, -2, -1]], inside[:, :, [0, 1, -2, -1]] = False, False
    assert psnr(warped, clip[1:], inside) > 35
    assert psnr(clip[:1], clip[1:], inside) < 25


def test_consistency_follows_the_motion_but_not_flicker():
    clip = camera_clip(STEPS["left"], frames=5)
    flicker = (clip + 0.1 * torch.tensor([0, 1, 0, 1, 0.0])[:, None, None, None]).clamp(0, 1)
    assert camera_consistency(clip) > 30
    assert camera_consistency(flicker) < camera_consistency(clip) - 6


# --- a thing ---


@pytest.mark.parametrize(("step", "name"), [(3, "right"), (-2, "left"), (0, "still")])
def test_a_thing_is_found_and_followed(step, name):
    clip, masks, background = square_clip(step)
    found = thing_masks(clip, background, clip[2], masks[2])
    assert min(iou(a, b) for a, b in zip(found, masks, strict=True)) > 0.9
    assert thing_motion(found, 0.5) == (name, pytest.approx(abs(step), abs=0.05))


def test_a_thing_that_vanished_is_not_found():
    clip, masks, background = square_clip(3)
    found = thing_masks(background.expand_as(clip), background, clip[2], masks[2])
    assert not found.any() and thing_motion(found, 0.5) is None


def test_consistency_of_the_background_leaves_out_what_moves():
    clip, masks, _ = square_clip(3)
    assert background_consistency(clip, masks) == MAX_PSNR
    assert background_consistency(clip, masks & False) < 30
    flicker = clip + 0.1 * torch.tensor([0, 1, 0, 1, 0.0])[:, None, None, None]
    assert background_consistency(flicker, masks) == pytest.approx(20, abs=1e-3)
