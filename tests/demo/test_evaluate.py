"""The evaluation measures drawn scenes and photographs right, and fails models with a given fault."""

import json
import math
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from microcinema_core import images
from microcinema_core.checkpoint import save_model
from microcinema_core.demo import evaluate, evaluate_photographs, measuring
from microcinema_core.demo.captions import CAMERA_VERBS, camera_caption
from microcinema_core.demo.scenes import SPEED_ZOOM, camera_move, draw_clip
from microcinema_core.demo.shards import CLIPS_PER_SHARD
from microcinema_core.errors import MicroCinemaError
from microcinema_core.metrics.motion import camera_motion, camera_steps
from microcinema_core.metrics.quality import MAX_PSNR, camera_consistency, iou, psnr

SIZE = 64
SEEDS = range(evaluate.EVALUATION_SEEDS.start, evaluate.EVALUATION_SEEDS.start + 24)


@pytest.fixture(scope="module")
def photograph():
    return images.fit(images.load_picture(evaluate.PHOTOGRAPHS / "coffee.jpg"), SIZE, SIZE)


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(seed, frames=5, size=SIZE) for seed in SEEDS]


def moves(clip, frames):
    motion, masks = evaluate.measure_motion(frames, clip, clip.background)
    return motion, masks


# --- the camera ---


@pytest.mark.parametrize("motion", [*CAMERA_VERBS, "still"])
def test_the_camera_is_followed_on_a_photograph(photograph, motion):
    for speed in ("slowly", "quickly"):
        clip, _ = camera_move(photograph, motion, speed, frames=3)
        measured = camera_motion(clip, measuring.minimum_magnitude("camera", SIZE))
        assert measured.name == motion
        assert measured.magnitude == pytest.approx(measuring.true_magnitude(motion, speed, SIZE), abs=0.1)


def test_a_reversed_camera_move_is_the_opposite_and_a_frozen_one_has_no_motion(photograph):
    clip, _ = camera_move(photograph, "in", "", frames=5)
    minimum = measuring.minimum_magnitude("camera", SIZE)
    assert camera_motion(clip.flip(0), minimum).name == "out"
    assert camera_motion(clip[2:3].expand(5, -1, -1, -1), minimum).name == "still"


def test_a_blotch_does_not_mislead_the_flow(photograph):
    clip, _ = camera_move(photograph, "in", "quickly", frames=5)
    clip[3:, :, :20, :20] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    zoom = camera_steps(clip)[:, 2].median()
    assert zoom == pytest.approx(-math.log(SPEED_ZOOM["quickly"]), abs=0.005)


def test_consistency_follows_the_motion_but_not_flicker(photograph):
    clip, _ = camera_move(photograph, "left", "quickly", frames=5)
    flicker = (clip + 0.1 * torch.tensor([0, 1, 0, 1, 0.0])[:, None, None, None]).clamp(0, 1)
    assert camera_consistency(clip) > 30
    assert camera_consistency(flicker) < camera_consistency(clip) - 6


# --- drawn scenes ---


def test_the_truth_is_measured_right(clips):
    right = [(motion := moves(clip, clip.frames)[0]) is not None and motion.name == clip.motion for clip in clips]
    assert sum(right) >= len(clips) - 1  # a pan along stripes shows no motion


def test_reversed_clips_move_the_other_way(clips):
    for clip in clips:
        motion, _ = moves(clip, clip.frames.flip(0))
        assert motion.name != clip.motion or clip.motion == "still"


def test_frozen_clips_have_no_motion(clips):
    for clip in clips:
        motion, _ = moves(clip, clip.frames[2:3].expand_as(clip.frames))
        assert motion.name == "still"


def test_overlap_is_near_one_on_the_truth_and_falls_with_a_shift(clips):
    things = [clip for clip in clips if clip.kind == "thing"]
    assert len(things) >= 5
    overlaps = [iou(moves(clip, clip.frames)[1][0], clip.masks[0]) for clip in things]
    assert sum(overlaps) / len(overlaps) > 0.9 and sorted(overlaps)[1] > 0.8  # white on white cannot be found
    for clip in things:
        alone = torch.where(clip.masks[:, None], clip.frames, clip.background)
        shifted = torch.where(clip.masks.roll(8, -1)[:, None], alone.roll(8, -1), clip.background)
        _, masks = moves(clip, shifted)
        assert iou(masks[0], clip.masks[0]) < 0.65


def test_a_thing_that_vanished_is_not_found(clips):
    clip = next(clip for clip in clips if clip.kind == "thing")
    motion, _ = moves(clip, clip.background.expand_as(clip.frames))
    assert motion is None


# --- the whole evaluation, of a perfect and of a frozen model ---


class Perfect:
    """Looks up the truth; its autoencoder loses nothing."""

    def __init__(self, count):
        network = SimpleNamespace(frames=5, condition="centre")
        self.config = SimpleNamespace(
            name="fake", network=network, width=SIZE, height=SIZE, steps=1, cfg=1.0, lambda_=0.03, gamma=0.02
        )
        self.autoencoder = torch.nn.Conv2d(3, 3, 1)
        self.autoencoder.encode = self.autoencoder.decode = lambda x: x
        scenes, _ = evaluate.measurable_scenes(SEEDS.start, count, 5, SIZE)
        self.scenes = {scene.seed: scene.clip.frames for scene in scenes}
        drawn, moved = evaluate.drawn_clips(SEEDS.start, self), evaluate.moved_clips(evaluate.PHOTOGRAPHS, SEEDS.start)
        self.between = [clip for clips in (drawn, moved) for _, clip in islice(clips, count)]
        self.sentences = {camera_caption(m, s): (m, s) for m in CAMERA_VERBS for s in ("slowly", "", "quickly")}

    def animate(self, picture, prompt, *, seed, frames, **settings):
        if seed in self.scenes:
            return self.scenes[seed]
        return camera_move(picture, *self.sentences[prompt], frames=frames)[0]

    def interpolate(self, frames, **settings):
        return next(clip for clip in self.between if torch.equal(clip[[0, -1]], frames))


class Frozen(Perfect):
    def animate(self, picture, prompt, *, frames, **settings):
        return picture.expand(frames, -1, -1, -1)

    def interpolate(self, frames, **settings):
        return torch.lerp(frames[:1], frames[1:], torch.linspace(0, 1, 5)[:, None, None, None])


def test_a_perfect_model_passes_all_that_it_can(tmp_path):
    model = Perfect(6)
    report = evaluate.evaluate(model, model, scenes=6, sheets=tmp_path)
    failed = [floor["name"] for floor in report["floors"] if not floor["passed"]]
    assert failed == ["motion falls as gamma rises"]  # it ignores gamma
    assert report["motion"]["right"] == report["motion"]["speed right"] == 1
    assert report["photographs"]["psnr"] == report["interpolation of moved photographs"]["psnr"] == MAX_PSNR
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert "motions right" in evaluate.table(report)
    assert images.load_picture(tmp_path / "scenes-1.png").shape == (3, 6 * (16 + 2 * SIZE), 5 * SIZE)


def test_a_frozen_model_fails_where_it_should():
    model = Frozen(6)
    report = evaluate.evaluate(model, model, scenes=6)
    failed = {floor["name"] for floor in report["floors"] if not floor["passed"]}
    assert failed >= {"motions right", "interpolation above blending, dB", "motion falls as gamma rises"}
    assert report["interpolation of moved photographs"]["gain"] == 0
    assert report["all frames"]["psnr"] == report["all frames"]["frozen"]
    assert report["consistency"]["pixels a frame"] < 0.05 < report["consistency"]["true pixels a frame"]


def test_a_continuation_is_measured_where_the_camera_uncovers_it():
    outside = torch.zeros(1, 20, 20, dtype=torch.bool)
    outside[..., :8] = True
    truth = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    blurred = torch.where(outside[:, None], truth / 2, truth)  # half the contrast, a quarter of its energy
    figures = evaluate_photographs.uncovered_figures(blurred, truth, outside)
    assert figures["contrast"] == pytest.approx(figures["truth"] / 4)
    assert figures["psnr"] == pytest.approx(psnr(blurred[..., :8], truth[..., :8]))
    worse_elsewhere = torch.where(outside[:, None], truth, 0.5)
    assert evaluate_photographs.uncovered_figures(worse_elsewhere, truth, outside)["psnr"] == MAX_PSNR


def test_evaluation_seeds_are_apart_from_training_seeds():
    assert evaluate.EVALUATION_SEEDS.start > 1000 * CLIPS_PER_SHARD


def test_a_model_of_other_words_is_sent_to_videos(tiny_model, tmp_path):
    save_model(tmp_path / "tiny.safetensors", tiny_model)
    with pytest.raises(MicroCinemaError, match="'tiny-base' does not know .* drawn scenes: measure it .* --clips"):
        evaluate.main(str(tmp_path / "tiny.safetensors"))
