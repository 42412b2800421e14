"""A model is measured on videos of one's own: its figures are right, and what cannot be measured is refused."""

import csv
import json
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from command import assert_one_sentence
from footage import pan, picture, write_footage
from PIL import Image
from tiny_runs import footage_folder, tiny_run

from microcinema_core import evaluation
from microcinema_core.checkpoint import LoadedModel, save_model
from microcinema_core.cli import main
from microcinema_core.metrics.quality import MAX_PSNR
from microcinema_core.pipeline import Pipeline
from microcinema_core.training import recipe
from microcinema_core.training.data.order import generator
from microcinema_core.training.data.videos import VideoSet


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six videos, two of which are shorter than the two seconds of a clip."""
    return footage_folder(tmp_path_factory.mktemp("videos") / "clips")


@pytest.fixture(scope="module")
def models(tiny_model, tiny_ends_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "base.safetensors", tiny_model)
    save_model(folder / "ends.safetensors", tiny_ends_model)
    save_model(folder / "mute.safetensors", replace(tiny_model, text=None))
    return folder


def measured(capsys, *words: object) -> dict:
    assert main(["evaluate", *map(str, words), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def psnr(a, b) -> float:
    return -10 * np.log10(((a.double().numpy() - b.double().numpy()) ** 2).mean())


# --- the figures ---


class Known(Pipeline):
    """A model that gives, for a picture or a pair of ends, what `made` makes of the true clip."""

    def __init__(self, model: LoadedModel, made):
        super().__init__(model)
        self.made, self.truth = made, None

    def animate(self, picture, prompt, **settings):
        return self.made(self.truth)

    def interpolate(self, frames, **settings):
        return self.made(self.truth)

    def measure(self, truth):
        self.truth = truth
        measure = evaluation.interpolation if self.text is None else evaluation.animation
        return measure(self, truth, "the camera pans", 0)[1]


@pytest.fixture(scope="module")
def panned():
    """A camera that moves by 2 pixels a frame."""
    return torch.from_numpy(np.stack(list(pan(5, (96, 64), 3, 2)))).movedim(-1, 1) / 255


def test_a_model_that_gives_the_true_clip_has_the_true_figures(tiny_model, panned):
    found = Known(tiny_model, lambda truth: truth.clone()).measure(panned)
    assert found["all frames"]["PSNR, dB"] == found["centre frame"]["PSNR, dB"] == MAX_PSNR
    assert found["all frames"]["SSIM"] == pytest.approx(1)
    assert found["all frames"]["still PSNR, dB"] == pytest.approx(psnr(panned[2:3], panned), abs=1e-4)
    assert found["motion"]["pixels a frame"] == found["motion"]["true pixels a frame"] == pytest.approx(2, abs=0.2)
    assert found["motion"]["moving share"] > 0.9
    warped = found["each frame and the next, warped"]
    assert warped["PSNR, dB"] == warped["true PSNR, dB"] > found["all frames"]["still PSNR, dB"]
    assert found["colour drift"]["from the centre frame"] == found["colour drift"]["true"]


def test_a_model_that_stands_still_is_as_good_as_a_still_picture(tiny_model, panned):
    found = Known(tiny_model, lambda truth: truth[2].expand_as(truth)).measure(panned)
    assert found["all frames"]["PSNR above still, dB"] == 0 and found["motion"]["pixels a frame"] < 0.01
    assert found["all frames"]["SSIM"] == pytest.approx(found["all frames"]["still SSIM"])
    assert found["colour drift"]["from the centre frame"] < 1e-6


def test_a_dark_frame_is_a_drift_of_its_colour_and_loses_what_a_formula_says(tiny_model, panned):
    found = Known(tiny_model, lambda truth: torch.cat((truth[:4], truth[4:] - 0.1))).measure(panned + 0.0)
    assert found["all frames"]["PSNR, dB"] == pytest.approx(-10 * np.log10(0.01 / 5), abs=1e-3)
    assert found["centre frame"]["PSNR, dB"] == MAX_PSNR
    assert found["colour drift"]["from the centre frame"] == pytest.approx(0.1, abs=0.02)


def test_the_ceiling_is_the_autoencoders_round_trip(tiny_model, panned):
    found = Known(tiny_model, lambda truth: truth).measure(panned)
    with torch.no_grad():
        decoded = tiny_model.autoencoder.decode(tiny_model.autoencoder.encode(panned)).clamp(0, 1)
    assert found["all frames"]["round trip PSNR, dB"] == pytest.approx(psnr(decoded, panned), abs=1e-3)
    assert found["centre frame"]["round trip PSNR, dB"] == pytest.approx(psnr(decoded[2], panned[2]), abs=1e-3)


def test_of_an_interpolation_the_new_frames_alone_count(tiny_ends_model, panned):
    blend = torch.stack([panned[0] + (panned[4] - panned[0]) * share for share in (0, 0.25, 0.5, 0.75, 1)])
    found = Known(tiny_ends_model, lambda truth: blend).measure(panned)["new frames"]
    assert found["PSNR, dB"] == pytest.approx(psnr(blend[1:4], panned[1:4]), abs=1e-3)
    assert found["PSNR above blend, dB"] == pytest.approx(0, abs=1e-3)
    found = Known(tiny_ends_model, lambda truth: torch.cat((blend[:1], truth[1:4], blend[4:]))).measure(panned)
    assert found["new frames"]["PSNR, dB"] == MAX_PSNR and found["new frames"]["PSNR above blend, dB"] > 50


# --- on videos ---


def test_a_base_model_is_measured_on_videos_with_captions(models, clips, capsys, tiny_model):
    report = measured(capsys, models / "base.safetensors", "--clips", clips)
    assert report["clips"]["measured"] == 4 and report["clips"]["videos"] == 6
    assert report["clips"]["skipped"] == {"shorter than a clip of 5 frames at 2 fps": 2}
    note = "4 of 4 captions have words that the model does not know and leaves out, 46% of all words"
    assert report["notes"] == [note]  # of "the camera pans over picture a" it knows four, of "… b" three
    for section, figures in report["figures"].items():
        for name, found in figures.items():
            values = [row[section][name] for row in report["each clip"]]
            assert found["mean"] == pytest.approx(sum(values) / 4) and found["low"] <= found["mean"] <= found["high"]
    row, videos = report["each clip"][0], VideoSet.from_folder(clips)
    place = [video.id for video in videos].index(row["video"])
    truth = videos.random_clip(place, generator(0, 1, place), 5, 2, (32, 32)) / 255
    frames = Pipeline(tiny_model).animate(truth[2], row["caption"], seed=place)
    assert row["all frames"]["PSNR, dB"] == pytest.approx(psnr(frames, truth), abs=1e-3)
    assert row["all frames"]["still PSNR, dB"] == pytest.approx(psnr(truth[2:3], truth), abs=1e-3)


def test_an_interpolation_model_needs_no_captions(models, clips, tmp_path, capsys):
    for path in clips.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report = measured(capsys, models / "ends.safetensors", "--clips", tmp_path)
    assert report["clips"]["measured"] == 4 and set(report["figures"]) == {"new frames", "motion"}
    assert (
        report["figures"]["new frames"]["PSNR, dB"]["mean"] < report["figures"]["new frames"]["blend PSNR, dB"]["mean"]
    )


def test_the_seed_chooses_videos_places_and_noise(models, clips, capsys):
    command = [models / "base.safetensors", "--clips", clips, "--count", "2"]
    first, again, other = (measured(capsys, *command, "--seed", seed) for seed in (1, 1, 2))
    assert first == again and len(first["each clip"]) == 2
    assert first["figures"] != other["figures"]


def test_captions_may_be_in_a_table(models, clips, tmp_path, capsys):
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["videoid", "name"], ["clip0", "the camera zooms in"], ["gone", "the camera pans left"]])
    command = ["--clips", clips, "--table", tmp_path / "table.csv"]
    report = measured(capsys, models / "base.safetensors", *command)
    assert [row["caption"] for row in report["each clip"]] == ["the camera zooms in"]
    assert report["clips"]["skipped"] == {"no such file": 1} and report["notes"] == []
    found = report["figures"]["all frames"]["PSNR, dB"]
    assert found["low"] is None and found["high"] is None  # of one clip


def test_the_table_for_the_terminal_and_the_sheets(models, clips, tmp_path, capsys):
    command = ["evaluate", models / "base.safetensors", "--clips", clips, "--sheets", tmp_path / "sheets"]
    assert main([*map(str, command), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model: name tiny-base, frames 5, size 32x32, fps 2.0") and "95% interval" in out
    assert {"centre frame", "all frames", "motion", "colour drift"} <= set(out.splitlines())
    with Image.open(tmp_path / "sheets" / "clips-1.png") as sheet:
        assert sheet.size == (5 * 32, 4 * 2 * 32)


def test_a_still_video_is_told_as_one(models, tmp_path, capsys):
    write_footage(tmp_path / "still", repeat(picture(0, 64, 64), 60), 20)
    (tmp_path / "still.txt").write_text("the camera stays")
    report = measured(capsys, models / "base.safetensors", "--clips", tmp_path)
    assert report["figures"]["motion"]["true pixels a frame"]["mean"] < 0.05
    assert report["figures"]["all frames"]["still PSNR, dB"]["mean"] > 45


def test_a_trained_model_is_measured_and_told_what_it_learned_from(tmp_path, clips, capsys):
    path = recipe.main(tiny_run(tmp_path, clips), tmp_path / "run", {"train.steps": "1"})
    capsys.readouterr()
    report = measured(capsys, path, "--clips", clips)
    assert report["clips"]["measured"] == 6  # of 0.8 s
    assert report["notes"] == ["the model learned from this set of videos: figures of other videos may be worse"]
    (clips.parent / "others").mkdir()
    for path_of_clip in clips.glob("clip[12].*"):
        (clips.parent / "others" / path_of_clip.name).write_bytes(path_of_clip.read_bytes())
    assert measured(capsys, path, "--clips", clips.parent / "others")["notes"] == []


# --- bad input ---


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("base.safetensors --clips nowhere", ["'nowhere' is no folder"]),
        ("base.safetensors --clips empty", ["there is no usable video in 'empty'"]),
        ("base.safetensors --clips silent", ["no usable video in 'silent'", "no caption (1)"]),
        ("base.safetensors --clips broken", ["no usable video in 'broken'", "skipped"]),
        ("base.safetensors --clips short", ["no video has a clip of 5 frames at 2 fps for 'tiny-base'", "shorter"]),
        ("base.safetensors --clips foreign", ["'tiny-base' knows no word of the captions in 'foreign'"]),
        ("base.safetensors --clips empty --table no.csv", ["'no.csv' cannot be read"]),
        ("mute.safetensors --clips short", ["'tiny-base' has no text encoder in its file"]),
        ("nobody --clips short", ["no model 'nobody'"]),
        ("base.safetensors --clips short --device moon", ["'moon' cannot be used"]),
        ("base.safetensors --clips short --scenes 5", ["--scenes does nothing with --clips"]),
        ("base.safetensors --count 5", ["--count does nothing without --clips"]),
        ("base.safetensors --clips short --count 0", ["of at least 1"]),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(models, tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "silent", "broken", "short", "foreign"):
        Path(name).mkdir()
    for name, count in (("silent/a", 60), ("short/a", 20), ("foreign/a", 60)):
        write_footage(Path(name), pan(count, (64, 64)), 20)
    Path("short/a.txt").write_text("the camera pans left")
    Path("foreign/a.txt").write_text("ein Hund rennt")
    Path("broken/a.mp4").write_bytes(b"no video")
    Path("broken/a.txt").write_text("the camera pans left")
    typed = [str(models / word) if word.endswith(".safetensors") else word for word in command.split()]
    if "--scenes" not in typed and "--clips" in typed and "--device" not in typed:
        typed += ["--device", "cpu"]
    assert_one_sentence(capsys, ["evaluate", *typed], words, tmp_path)
