"""The command with the bundled models."""

import json

import pytest
from command import PHOTO, PROMPT, animate, assert_one_sentence
from PIL import Image

from microcinema_core import video
from microcinema_core.cli import main


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Nothing is chosen but the number of frames: the photograph is 451x300."""
    return animate(tmp_path_factory.mktemp("clip") / "clip.mp4", "--frames", "3", "--interpolate", "1")


def test_a_photograph_becomes_a_clip_of_its_shape(clip):
    frames, fps = video.read_video(clip)
    assert frames.shape == (9, 3, 256, 384) and fps == 8
    assert frames.std() > 0.05
    made_with = video.read_metadata(clip)["comment"]
    assert made_with["model"] == "demo-base" and made_with["steps"] == 1 and made_with["cfg"] == 1.0


def test_interpolate_a_video(clip, tmp_path):
    before, fps = video.read_video(clip)
    output = tmp_path / "out.mp4"
    assert main(["interpolate", str(clip), "-o", str(output), "--steps", "1", "--device", "cpu"]) == 0
    after, fps_after = video.read_video(output)
    assert len(after) == 4 * (len(before) - 1) + 1 and fps_after == 4 * fps
    assert (after[::4] - before).abs().mean() < 0.02  # its own frames stay, but for encoding them twice


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_type_that_the_model_does_not_offer_is_refused(tmp_path, capsys, dtype):
    options = ["animate", PHOTO, "--prompt", PROMPT, "-o", str(tmp_path / "a.mp4"), "--dtype", dtype]
    assert_one_sentence(capsys, options, ["demo-base", dtype, "choose float32"], tmp_path)


def test_info(capsys):
    assert main(["info"]) == 0
    assert "demo-base: 9 frames of 96x96 at 2 fps" in capsys.readouterr().out
    assert main(["info", "--config", "demo-interpolation", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"]["network"]["residual_std"] == 0.4
    assert printed["parameters"]["network"] < 1e7


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("animate PHOTO --size 100x96", ["100x96", "multiples of 8", "--size 96x96"]),
        ("animate PHOTO --size 8x8", ["8x8", "from 32 on", "--size 32x32"]),
        ("animate PHOTO --model nobody", ["nobody", "demo-base", "demo-interpolation"]),
        ("animate PHOTO --model demo-interpolation", ["demo-interpolation", "microcinema interpolate", "demo-base"]),
        ("animate PHOTO --frames 9 --motion -1", ["-1", "from 0 to 4"]),
        ("animate PHOTO --prompt xylophone", ["'xylophone'", "knows", "zooms"]),
        ("interpolate odd.gif --size 96x64 --model demo-base", ["demo-base", "demo-interpolation"]),
        ("info nobody", ["nobody", "demo-base", "demo-interpolation"]),
        ("info --config nobody", ["nobody", "demo-base", "demo-interpolation"]),
        ("evaluate nobody", ["nobody", "demo-base"]),
        ("train nobody.toml", ["unknown model 'nobody'", "demo-base, demo-interpolation"]),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nobody.toml").write_text(
        'task = "diffusion"\nmodel = "nobody"\nsteps = 3\nbatch_size = 1\nlearning_rate = 1e-3\n'
    )
    if "odd.gif" in command:
        Image.new("RGB", (100, 50)).save("odd.gif", save_all=True, append_images=[Image.new("RGB", (100, 50), "red")])
    words_of_command = [PHOTO if word == "PHOTO" else word for word in command.split()]
    if words_of_command[0] in ("animate", "interpolate"):
        words_of_command += ["-o", "clip.mp4"]
    if words_of_command[0] == "animate" and "--prompt" not in command:
        words_of_command += ["--prompt", PROMPT]
    assert_one_sentence(capsys, words_of_command, words, tmp_path)
