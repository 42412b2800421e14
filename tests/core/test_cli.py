"""The command as a person types it: a clip of a small model, and one sentence for every kind of bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import PHOTO, PROMPT, ROOT, animate, assert_one_sentence
from PIL import Image

from microcinema_core import __version__, header, video
from microcinema_core.checkpoint import save_model
from microcinema_core.cli import main


@pytest.fixture(scope="module")
def models(tiny_model, tiny_ends_model, tmp_path_factory) -> Path:
    """A folder of small models under the names of the bundled ones, which the command takes where none is named."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "demo-base.safetensors", tiny_model)
    save_model(folder / "demo-interpolation.safetensors", tiny_ends_model)
    return folder


@pytest.fixture(scope="module", autouse=True)
def bundled(models):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "BUNDLED", models)
        yield


@pytest.fixture(scope="module")
def model(models) -> str:
    """For a process of its own."""
    return str(models / "demo-base.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    options = ["--steps", "2", "--seed", "7", "--cfg", "1.5", "--gamma", "-0.01", "--interpolate", "1"]
    return animate(folder / "clip.mp4", "--size", "96x96", *options, "--sheet", str(folder / "sheet.png"))


# --- clips ---


def test_a_photograph_becomes_a_clip(clip):
    frames, fps = video.read_video(clip)
    assert frames.shape == (17, 3, 96, 96)
    assert fps == 8
    assert frames.std() > 0.05
    assert sorted(path.name for path in clip.parent.iterdir()) == ["clip.mp4", "sheet.png"]
    with Image.open(clip.parent / "sheet.png") as sheet:
        assert sheet.size == (17 * 96, 96)


def test_the_clip_holds_its_settings(clip):
    assert video.read_metadata(clip)["comment"] == {
        "prompt": PROMPT, "model": "tiny-base", "frames": 5, "steps": 2, "cfg": 1.5, "lambda": 0.03, "gamma": -0.01,
        "churn": 0.0, "motion": 1.0, "overscan": False, "seed": 7,
        "width": 96, "height": 96, "fps": 2.0, "interpolate": 1, "version": __version__,
    }  # fmt: skip


def test_the_same_seed_gives_the_same_file(tmp_path):
    options = ["--size", "96x96", "--steps", "2"]
    first, again = (animate(tmp_path / name, *options, "--seed", "1") for name in ("a.mp4", "b.mp4"))
    other = animate(tmp_path / "c.mp4", *options, "--seed", "2")
    assert first.read_bytes() == again.read_bytes()
    assert not torch.equal(video.read_video(first)[0], video.read_video(other)[0])


def test_frames_fps_and_size(tmp_path):
    path = animate(tmp_path / "a.webm", "--steps", "1", "--frames", "3", "--fps", "3", "--size", "128x64")
    frames, fps = video.read_video(path)
    assert frames.shape == (3, 3, 64, 128) and fps == 3


def test_a_size_that_nobody_names_is_of_the_pictures_shape(tmp_path):
    """The photograph is 451x300."""
    path = animate(tmp_path / "a.mp4", "--frames", "2", "--steps", "1")
    assert video.read_video(path)[0].shape == (2, 3, 256, 384)
    assert video.read_metadata(path)["comment"]["width"] == 384


def test_interpolate_a_video(tmp_path):
    before = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    video.write_video(tmp_path / "in.mkv", before, 8)  # which keeps every pixel
    output = tmp_path / "out.mkv"
    assert main(["interpolate", str(tmp_path / "in.mkv"), "-o", str(output), "--passes", "2", "--steps", "1"]) == 0
    after, fps = video.read_video(output)
    assert after.shape == (33, 3, 48, 64) and fps == 128
    assert torch.equal((after[::16] * 255).round(), (before * 255).round())


def test_sound_and_odd_sizes_of_a_video_are_kept(tmp_path, capsys):
    tone = torch.sin(torch.arange(48_000) * 2 * 3.14159 * 440 / 48_000).expand(2, -1)
    video.write_video(tmp_path / "a.mkv", torch.rand(9, 3, 51, 75), 8, audio=(tone, 48_000))
    for name in ("b.mp4", "b.mkv", "b.gif"):
        options = ["--steps", "1", "--device", "cpu", *["--passes", "1"][: 2 * (name == "b.gif")]]
        assert main(["interpolate", str(tmp_path / "a.mkv"), "-o", str(tmp_path / name), *options]) == 0
    opened = video.open_video(tmp_path / "b.mp4")
    assert (opened.count, opened.fps, opened.size) == (33, 32, (76, 52))
    assert sum(piece.shape[1] for piece in opened.sound.pieces) == pytest.approx(33 / 32 * 48_000, abs=2048)
    assert video.open_video(tmp_path / "b.mkv").size == (75, 51) and video.open_video(tmp_path / "b.mkv").sound
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("microcinema: note:")]
    assert "75x51 is made even" in notes[0] and "b.gif' cannot hold the sound" in notes[1] and len(notes) == 2


def test_a_word_outside_the_vocabulary_is_a_warning(tmp_path, capsys):
    output = tmp_path / "a.mp4"
    assert main(["animate", PHOTO, "--prompt", f"{PROMPT} xylophone", "-o", str(output), "--size", "96x96"]) == 0
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("microcinema:")]
    assert "warning" in warning and "'xylophone'" in warning and "zooms" in warning.partition("knows")[2]
    assert output.exists()


def test_info(capsys):
    assert main(["info", "--config", "base", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"]["steps"] == 50 and printed["config"]["cfg"] == 7.5
    assert printed["parameters"]["network"] == pytest.approx(2.0e9, rel=0.02)
    assert main(["info"]) == 0
    assert "tiny-base: 5 frames of 32x32 at 2 fps" in capsys.readouterr().out


# --- interrupted and killed ---


def test_interrupted_leaves_no_file(tmp_path, model):
    command = [sys.executable, "-m", "microcinema_core", "animate", PHOTO, "--prompt", PROMPT, "--steps", "1000"]
    command += ["--model", model, "-o", str(tmp_path / "a.mp4")]
    # A background job of a shell ignores the signal, and so would what it starts.
    handled = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **handled) as process:
        started = process.stderr.read(1)  # the progress bar
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode()
    assert started and process.returncode == 130
    assert rest.splitlines()[-1] == "microcinema: interrupted" and "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, model):
    options = ["animate", PHOTO, "--prompt", PROMPT, "--size", "32x32", "--steps", "1", "-o", str(tmp_path / "a.gif")]
    options += ["--model", model]
    program = (
        "import os, signal; from microcinema_core import animations, cli\n"
        "def killed(path, *rest): path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "from microcinema_core import video; video.write_animation = killed; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".a.part-")
    mine = left.with_name(left.name.replace(left.name.split(".")[-2], str(os.getppid())))  # of a process that runs
    others = [tmp_path / ".a.part-00000000.99999.gif", tmp_path / ".a.4.gif", mine]
    for path in others:
        path.touch()
    assert main(options) == 0
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a.gif"])


def test_names_that_are_no_text_in_this_encoding(tmp_path, model):
    """Bytes that are no UTF-8, as file systems allow."""
    output = os.fsencode(tmp_path) + b"/a\xff.mp4"
    command = [sys.executable, "-m", "microcinema_core", "animate", PHOTO, "--model", model, "--size", "32x32"]
    command += ["-o", output, "--prompt"]
    done = subprocess.run([*command, PROMPT], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"a\\udcff.mp4: 5 frames" in done.stdout and os.path.exists(output)
    done = subprocess.run([*command, b"pan \xff left"], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b"is no valid UTF-8: type it anew" in done.stderr and b"Trace" not in done.stderr


# --- bad input ---


@pytest.fixture
def workplace(tmp_path, monkeypatch, model) -> Path:
    """The current folder, with files that are not what their names promise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(Path(PHOTO).read_bytes()[:500])
    (tmp_path / "truncated.safetensors").write_bytes(Path(model).read_bytes()[:5000])
    (tmp_path / "foreign.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", ["itself", "spelling", "symlink", "hard link"])
def test_no_input_is_overwritten(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for given, command in (
        ("clip.mp4", "interpolate clip.mp4 -o"),
        ("photo.png", "animate photo.png --prompt left -o clip.mp4 --sheet"),
        ("photo.gif", "animate photo.gif --prompt left -o"),
    ):
        if given == "photo.png":
            Image.new("RGB", (32, 32)).save(given)
        else:
            video.write_video(given, torch.rand(2, 3, 32, 32), 2)
        other = {"itself": given, "spelling": f"folder/../{given}"}.get(kind, f"folder/{given}")
        if kind == "symlink":
            Path(other).symlink_to(tmp_path / given)
        elif kind == "hard link":
            Path(other).hardlink_to(given)
        before = Path(given).read_bytes()
        assert main([*command.split(), other]) == 2
        assert "would overwrite" in capsys.readouterr().err
        assert Path(given).read_bytes() == before
        Path(given).unlink()


OPTIONS = ["fps", "size", "prompt", "model", "sheet", "dtype", "seed", "device", "tokenizer", "interpolate", "output"]


@pytest.mark.parametrize("option", [*(f"--{name}" for name in OPTIONS), "-o"])
def test_two_dashes_are_no_value(workplace, capsys, option):
    words = [option, "has no value", "--help"]
    assert_one_sentence(capsys, ["animate", PHOTO, "--prompt", "left", "-o", "a.mp4", f"{option}=--"], words, workplace)


@pytest.mark.parametrize(
    "name", ["", "nowhere", "cpu:1", "meta", "cuda:99", "cuda:", "xla", "mps:x", "privateuseone", "hpu", "\0"]
)
def test_odd_devices(workplace, capsys, name):
    options = ["animate", PHOTO, "--prompt", "left", "-o", "a.mp4", "--device", name]
    assert_one_sentence(capsys, options, ["the device", "choose auto or cpu"], workplace)


BAD_ANIMATE = {
    # options after "animate": words of the message
    "missing.jpg": ["missing.jpg", "does not exist"],
    "broken.jpg": ["broken.jpg", "broken", "PNG or JPEG"],
    "folder": ["folder", "is a folder"],
    "PHOTO --size 99x96": ["99x96", "multiples of 4", "--size 100x96"],
    "PHOTO --size 4x4": ["4x4", "from 8 on", "--size 8x8"],
    "PHOTO --size 0x96": ["--size", "96x96"],
    "PHOTO --size 96": ["--size", "96x96"],
    "PHOTO --size -96x96": ["--size"],
    "PHOTO --frames 0": ["--frames", "'0'", "from 2"],
    "PHOTO --frames 1": ["--frames", "'1'", "from 2"],
    "PHOTO --frames 2.5": ["--frames", "'2.5'", "whole number"],
    "PHOTO --steps 0": ["--steps", "'0'", "from 1"],
    "PHOTO --steps -3": ["--steps", "'-3'", "from 1"],
    "PHOTO --interpolate 3": ["--interpolate", "'3'", "from 0 to 2"],
    "PHOTO --cfg nan": ["--cfg", "'nan'", "number"],
    "PHOTO --cfg inf": ["--cfg", "'inf'", "number"],
    "PHOTO --lambda nan": ["--lambda", "'nan'", "number"],
    "PHOTO --gamma 1e999": ["--gamma", "'1e999'", "number"],
    "PHOTO --churn -1": ["--churn", "'-1'", "number"],
    "PHOTO --fps 0": ["--fps", "'0'", "number"],
    "PHOTO --fps nan": ["--fps", "'nan'", "number"],
    "PHOTO --seed -1": ["--seed", "'-1'", "whole number from 0"],
    "PHOTO --seed x": ["--seed", "'x'", "whole number"],
    "PHOTO --device nowhere": ["nowhere", "choose auto or cpu"],
    "PHOTO --model nobody": ["nobody", "demo-base", "demo-interpolation"],
    "PHOTO --model demo-interpolation": ["tiny-interpolation", "microcinema interpolate", "demo-base"],
    "PHOTO --model truncated.safetensors": ["truncated"],
    "PHOTO --model foreign.safetensors": ["foreign"],
    "PHOTO --prompt xylophone": ["'xylophone'", "knows", "zooms"],
    "PHOTO --sheet sheet.jpg": ["sheet.jpg", ".png"],
    "PHOTO --sheet nowhere/sheet.png": ["nowhere", "does not exist", "create it"],
    "PHOTO -o clip.avi": ["clip.avi", ".mp4"],
    "PHOTO -o nowhere/clip.mp4": ["nowhere", "does not exist", "create it"],
    "PHOTO -o folder.mp4": ["folder.mp4", "is a folder"],
    "PHOTO -o broken.jpg/clip.mp4": ["broken.jpg", "does not exist"],
    "PHOTO -o clip.gif --fps 20 --interpolate 1": ["clip.gif", "50 frames per second", "lower the fps"],
    "PHOTO --nonsense": ["--nonsense", "--help"],
}


@pytest.mark.parametrize("options", BAD_ANIMATE)
def test_bad_input_ends_with_one_sentence(workplace, capsys, options):
    command = ["animate", "-o", "clip.mp4", "--prompt", PROMPT]
    command += [PHOTO if word == "PHOTO" else word for word in options.split()]
    assert_one_sentence(capsys, command, BAD_ANIMATE[options], workplace)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["COMMAND", "--help"]),
        ("nonsense", ["nonsense"]),
        ("animate photo.jpg -o clip.mp4", ["--prompt"]),
        ("interpolate missing.mp4 -o clip.mp4", ["missing.mp4", "does not exist"]),
        ("interpolate broken.jpg -o clip.mp4", ["broken.jpg"]),
        ("interpolate one.gif -o clip.mp4", ["one.gif", "1 frame"]),
        ("interpolate odd.gif -o clip.mp4 --passes 0", ["--passes", "'0'"]),
        ("interpolate odd.gif -o clip.mp4 --size 96x64 --model demo-base", ["tiny-base", "demo-interpolation"]),
        ("info nobody", ["nobody", "demo-base"]),
        ("info --config nobody", ["nobody", "base", "interpolation"]),
        ("train missing.toml", ["missing.toml", "does not exist"]),
        ("train missing.toml --set steps", ["--set", "key=value"]),
        ("evaluate --scenes 0", ["--scenes", "'0'"]),
    ],
)
def test_bad_input_of_the_other_commands(workplace, capsys, command, words):
    video.write_video("one.gif", torch.rand(1, 3, 48, 96), 2)
    video.write_video("odd.gif", torch.rand(3, 3, 50, 100), 2)
    assert_one_sentence(capsys, command.split(), words, workplace)


@pytest.mark.parametrize("command", ["train run.toml", "evaluate"])
def test_commands_of_the_bundled_models_need_their_folder(workplace, capsys, monkeypatch, command):
    for module in [module for module in sys.modules if module.startswith("microcinema_core.demo.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "microcinema_core.demo", None)
    Path("run.toml").write_text('task = "diffusion"\nmodel = "demo-base"\n')
    assert_one_sentence(capsys, command.split(), ["lacks the folder demo", "install the package again"], workplace)
