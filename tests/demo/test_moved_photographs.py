"""Moved photographs: the flow is exact, the same seed draws the same film, and pictures held out stay out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator

from microcinema_core.demo import film
from microcinema_core.demo.film import draw_film
from microcinema_core.demo.flow_data import MovedScenes, draw_shard
from microcinema_core.demo.moved_photographs import Photographs, _is_held_out, draw_scene
from microcinema_core.errors import MicroCinemaError
from microcinema_core.metrics.quality import psnr
from microcinema_core.optical_flow import warp

NAMES = [f"photo-{index}.jpg" for index in range(40)]
USED = [name for name in NAMES if not _is_held_out(name)][:2]
HELD_OUT = [name for name in NAMES if _is_held_out(name)][:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate([*USED, *HELD_OUT]):
        coarse = np.random.default_rng(seed).integers(0, 255, (80, 100, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((1000, 800), Image.Resampling.BICUBIC).save(folder / name)
    thing = Image.new("RGBA", (300, 300))
    ImageDraw.Draw(thing).ellipse((20, 60, 280, 240), fill=(200, 40, 90, 255))
    thing.save(folder / "thing-1.png")
    for size in ("640x480", "1280x800"):
        (folder / "set").mkdir(exist_ok=True)
        Image.new("RGB", tuple(map(int, size.split("x")))).save(folder / "set" / f"{size}.png")
    return folder


def test_a_folder_is_divided_into_pictures_for_training_and_others(folder):
    used, held_out = Photographs([folder]), Photographs([folder], held_out=True)
    names = [{path.name for _, path in kind.photographs} for kind in (used, held_out)]
    assert set(USED) <= names[0] and set(HELD_OUT) <= names[1] and not names[0] & names[1]
    assert used.identity != held_out.identity


def test_of_one_picture_in_several_sizes_the_largest_is_used(folder):
    every = Photographs([folder]).photographs + Photographs([folder], held_out=True).photographs
    assert [path.stem for _, path in every if path.parent.name == "set"] == ["1280x800"]


def test_a_folder_without_photographs_is_told_with_the_packages_that_have_some(tmp_path):
    with pytest.raises(MicroCinemaError, match=r"too few photographs .*apt install gnome-backgrounds"):
        Photographs([tmp_path])


@pytest.mark.parametrize("time", [0.25, 0.5])
def test_the_velocity_is_the_flow_between_the_frames(folder, time):
    """A pixel of the frame between shows what one of the end frames shows at the place that its velocity leads to."""
    photographs, errors = Photographs([folder]), []
    for seed in range(8):
        frames, velocity = draw_scene(photographs, Generator().manual_seed(seed), (0, time, 1), 96)
        wrong = -velocity[1:2]
        for flow in (velocity[1:2], wrong):
            pairs = (frames[:1], -time * flow), (frames[2:], (1 - time) * flow)
            difference = torch.stack([(warp(end, to_end) - frames[1:2]).abs() for end, to_end in pairs])
            errors.append(difference.amin(0).median().item())
    exact, reversed_ = np.array(errors).reshape(8, 2).T
    assert np.median(exact) < 0.01 and (exact <= reversed_ + 0.002).all() and reversed_.mean() > 2 * exact.mean()


def test_a_film_is_that_of_its_seed(folder):
    photographs = Photographs([folder])
    films = [draw_film(photographs, seed, 64) for seed in (1, 1, 2)]
    assert torch.equal(films[0], films[1]) and not torch.equal(films[0], films[2])
    assert films[0].shape == (5, 3, 64, 64)


@pytest.mark.parametrize("coding", sorted(set(film.CODECS), key=str), ids=lambda coding: str(coding[0]))
def test_every_codec_keeps_the_frames_and_their_order(folder, coding, monkeypatch):
    photographs = Photographs([folder])
    times = [index / 4 for index in range(-1, 5)]
    frames, _ = draw_scene(photographs, Generator().manual_seed(7), times, 96)
    monkeypatch.setattr(film, "CODECS", (coding,))
    monkeypatch.setattr(film, "NOISE", 0.0)
    filmed = draw_film(photographs, 7, 96)
    found = [max(range(6), key=lambda index: psnr(frame, frames[index])) for frame in filmed]
    assert found == [1, 2, 3, 4, 5]
    assert min(psnr(frame, true) for frame, true in zip(filmed, frames[1:], strict=True)) > 24


def test_the_noise_of_a_coded_film_stands_still(folder, monkeypatch):
    """In a part that does not move, frames differ less from one another than noise would have them differ."""
    still = torch.zeros(6, 3, 96, 96) + 0.5
    monkeypatch.setattr(film, "draw_scene", lambda *_: (still, torch.zeros(6, 2, 96, 96)))
    monkeypatch.setattr(film, "NOISE", 0.03)
    changes = {}
    for name, coding in (("none", (None, (0, 0))), ("coded", ("libx264", (30, 30)))):
        monkeypatch.setattr(film, "CODECS", (coding,))
        films = [draw_film(Photographs([folder]), seed, 96) for seed in range(12)]
        changes[name] = sum((frames[1:] - frames[:-1]).square().mean() for frames in films)
    assert 0 < changes["coded"] < 0.3 * changes["none"]


@pytest.fixture(scope="module")
def shard(folder, tmp_path_factory, request):
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr("microcinema_core.demo.flow_data.SCENES_PER_SHARD", 6)
    return draw_shard(tmp_path_factory.mktemp("pool"), [folder], 0, False)


def test_a_batch_holds_three_frames_of_each_scene(shard):
    """The one between is nearer to the end frame from which its time is nearer."""
    scenes, nearer = MovedScenes([shard]), []
    assert len(scenes) == 6
    for step in range(24):
        time, frames, flows = scenes.sample(Generator().manual_seed(step), 2, 96)
        assert time in (0.25, 0.5, 0.75) and frames.shape == (2, 3, 3, 96, 96) and flows.shape == (2, 2, 2, 48, 48)
        first, last = ((frames[:, 1] - frames[:, end]).square().mean() for end in (0, 2))
        if time != 0.5 and first + last:
            nearer.append(bool((first < last) == (time < 0.5)))
    assert len(nearer) > 8 and sum(nearer) > 0.7 * len(nearer)


def test_the_flows_of_a_batch_are_cropped_and_mirrored_with_its_frames(shard):
    scenes, better = MovedScenes([shard]), []
    for step in range(24):
        _, frames, flows = scenes.sample(Generator().manual_seed(step), 2, 96)
        ends = F.avg_pool2d(frames[:, [0, 2]].flatten(0, 1), 2).unflatten(0, (-1, 2))
        for way in (0, 1):
            to, other = ends[:, way], ends[:, 1 - way]
            errors = [(warp(other, sign * flows[:, way] / 2) - to).square().mean() for sign in (1, -1)]
            if flows[:, way].abs().mean() > 2:
                better.append(bool(errors[0] < 0.7 * errors[1]))
    assert len(better) > 16 and all(better)
