"""`microcinema fvd` on a set of three classes, with small random models and a stand-in for I3D."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import ROOT, assert_one_sentence
from PIL import Image
from safetensors.torch import load_file
from stand_in import Plain, StandIn, save_network, write_avi, write_ucf

from microcinema_core import video
from microcinema_core.checkpoint import save_model
from microcinema_core.cli import main
from microcinema_core.fvd import network as networks
from microcinema_core.fvd.clips import Options, real_window
from microcinema_core.fvd.sets import Item, class_words, draw
from microcinema_core.metrics.frechet import frechet_distance


@pytest.fixture(scope="module")
def place(tiny_model, tiny_ends_model, tmp_path_factory) -> Path:
    """A folder with models, a network, a set of 12 clips and 20 pictures."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "base.safetensors", tiny_model)
    save_model(folder / "between.safetensors", tiny_ends_model)
    save_network(folder / "stand-in.pt")
    write_ucf(folder / "ucf")
    (folder / "pictures").mkdir()
    for number in range(20):
        pixels = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(number)) * 255
        Image.fromarray(pixels.byte().numpy()).resize((40, 30)).save(folder / "pictures" / f"{number:05}.png")
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def command(work: Path, *options: str) -> list[str]:
    """20 clips of 5 frames, in one step, with generated pictures; later options count."""
    words = ["fvd", "base.safetensors", "--set", "ucf101", "--data", "ucf", "--i3d", "stand-in.pt", "--work", str(work)]
    words += ["--pictures", "pictures", "--samples", "20", "--frames", "5", "--steps", "1", "--device", "cpu"]
    return [*words, *options]


def measure(capsys, work: Path, *options: str) -> dict:
    assert main(command(work, *options, "--json")) == 0
    return json.loads(capsys.readouterr().out)


def shards(work: Path) -> dict[str, torch.Tensor]:
    return {path.name: load_file(path)["features"] for path in sorted(work.glob("[!.]*.safetensors"))}


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """The work folder of a run that nothing disturbed."""
    work = tmp_path_factory.mktemp("whole") / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(command(work)) == 0
    return work


def run_program(program: str, work: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *command(work), "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- the figure ---


def test_the_figure_is_the_distance_of_the_features(whole, capsys):
    report = measure(capsys, whole)
    found = shards(whole)
    assert [(name, len(rows)) for name, rows in found.items()] == [
        ("generated-00000.safetensors", 8), ("generated-00001.safetensors", 8), ("generated-00002.safetensors", 4),
        ("real-00000.safetensors", 8), ("real-00001.safetensors", 4),
    ]  # fmt: skip
    real, generated = (torch.cat([v for k, v in found.items() if k.startswith(kind)]) for kind in ("real", "gene"))
    assert report["distance"] == frechet_distance(real, generated) > 1
    assert report["interval"][0] < report["distance"] < report["interval"][1]
    assert (report["generated"], report["real"], report["features"]) == (20, 12, 4)
    assert report["settings"]["gamma"] == 0.02 and report["settings"]["steps"] == 1


def test_real_features_are_those_of_the_real_frames(whole, place):
    """By another way: the first clip's window, read whole, through the network."""
    item = draw("ucf101", place / "ucf", None, 20, 0)[0]
    options = Options(5, 32, 32, 1, 1.0, 0.03, 0.02, 0, 0, None)
    window = real_window(item, options)
    frames, _ = video.read_video(item.clip, (32, 32))
    starts = [n for n in range(8) if torch.equal((frames[n : n + 5] * 255).round().byte(), window)]
    assert len(starts) == 1
    expected = StandIn()(window.float().transpose(0, 1)[None], rescale=True, resize=True, return_features=True)
    torch.testing.assert_close(shards(whole)["real-00000.safetensors"][:1], expected.detach())


def test_another_network_is_never_called_fvd(whole, capsys):
    assert main(command(whole)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Fréchet distance (features of stand-in.pt): ")
    assert "FVD" not in printed and "the paper" not in printed
    assert "stand-in.pt is no I3D that this program knows" in printed


def test_a_known_file_is_called_fvd_and_stands_beside_the_paper_only_with_its_settings(whole, capsys, monkeypatch):
    sha256 = networks.file_sha256(Path("stand-in.pt"))
    monkeypatch.setitem(networks.KNOWN_I3D, sha256, "as if it were")
    assert main(command(whole)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("FVD: ") and "the paper" not in printed
    monkeypatch.setattr("microcinema_core.fvd.measure.as_the_paper", lambda *_: True)
    assert main(command(whole)) == 0
    assert "the paper: 342.86" in capsys.readouterr().out


def test_frames_of_the_real_clips_as_pictures_are_told_to_be_no_zero_shot_setting(capsys, tmp_path):
    report = measure(capsys, tmp_path / "a", "--pictures", "real")
    assert any("not the paper's zero-shot setting" in note for note in report["notes"])
    assert report["distance"] > 1


# --- interruptions and ranks ---


@pytest.mark.parametrize("fatal", [2, 4])
def test_a_killed_run_goes_on_to_the_same_features(whole, tmp_path, capsys, fatal):
    """kill -9 while shard 2, of real clips, or 4, of generated ones, is half written."""
    program = f"""
import os, signal
from microcinema_core import cli
from microcinema_core.fvd import work
saved, save = [], work.save_file
def killed(tensors, path):
    saved.append(path)
    if len(saved) == {fatal}:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(tensors, path)
work.save_file = killed
cli.main()
"""
    process = run_program(program, tmp_path / "work")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(shards(tmp_path / "work")) == fatal - 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("[!.]*.safetensors")}
    assert len(list((tmp_path / "work").glob(".*part*"))) == 1
    report = measure(capsys, tmp_path / "work")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was there is not made again
    assert not list((tmp_path / "work").glob(".*part*"))
    found, expected = shards(tmp_path / "work"), shards(whole)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert report == measure(capsys, whole)


def test_two_ranks_at_once_give_the_figure_of_one(whole, tmp_path, capsys):
    program = "import sys; from microcinema_core.cli import main; sys.exit(main())"
    ranks = [run_program(program, tmp_path / "work", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    printed = [process.communicate() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], printed
    for rank, (out, _) in enumerate(printed):
        assert out.startswith("{") or f"rank {rank} of 2 has made its clips" in out
    report = measure(capsys, tmp_path / "work")
    assert report == measure(capsys, whole)
    assert all(json.loads(out) == report for out, _ in printed if out.startswith("{"))


def test_a_rank_makes_its_own_shards_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(tmp_path / "work")) == 0
    assert "rank 1 of 2 has made its clips" in capsys.readouterr().out
    assert [*shards(tmp_path / "work")] == ["generated-00001.safetensors", "real-00001.safetensors"]


def test_kept_clips_are_lossless_and_are_not_made_again(whole, tmp_path, capsys, monkeypatch):
    first = measure(capsys, tmp_path / "work", "--keep-clips")
    assert first == measure(capsys, whole)
    frames, fps = video.read_video(tmp_path / "work" / "clips" / "00000.mkv")
    assert frames.shape == (5, 3, 32, 32) and fps == 2
    (tmp_path / "work" / "generated-00001.safetensors").unlink()
    monkeypatch.setattr("microcinema_core.pipeline.Pipeline.animate", None)
    assert measure(capsys, tmp_path / "work", "--keep-clips") == first


def test_interpolated_clips_are_compared_at_their_middle(tmp_path, capsys):
    more = ["--interpolate", "1", "--interpolation-model", "between.safetensors", "--frames", "9", "--samples", "2"]
    report = measure(capsys, tmp_path / "work", *more, "--keep-clips")
    assert report["settings"]["interpolate"] == 1 and report["generated"] == 2
    assert any("2 clips are too few" in note for note in report["notes"])
    frames, fps = video.read_video(tmp_path / "work" / "clips" / "00001.mkv")
    assert frames.shape == (17, 3, 32, 32) and fps == 8
    clip = (frames[4:13] * 255).round().transpose(0, 1)[None]
    expected = StandIn()(clip, rescale=True, resize=True, return_features=True).detach()
    torch.testing.assert_close(shards(tmp_path / "work")["generated-00000.safetensors"][1:], expected)


# --- the sets ---


def test_clips_are_drawn_in_rounds_and_their_classes_are_the_prompts(place):
    items = draw("ucf101", place / "ucf", None, 20, 0)
    assert len({item.name for item in items[:12]}) == 12 and items[12].clip == items[0].clip
    assert {item.prompt for item in items} == {"apply eye makeup", "tai chi", "yo yo"}
    assert [item.name for item in items] != [item.name for item in draw("ucf101", place / "ucf", None, 20, 1)]
    assert items == draw("ucf101", place / "ucf", None, 20, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("ApplyEyeMakeup", "apply eye makeup"), ("YoYo", "yo yo"), ("TVShow2", "tv show 2"), ("_", "_")],
)
def test_words_of_a_class(name, words):
    assert class_words(name) == words


def test_sentences_of_classes_from_a_file(place, tmp_path):
    sentences = {"ApplyEyeMakeup": "a face", "TaiChi": "a park", "YoYo": "a toy", "Archery": "a bow"}
    (tmp_path / "sentences.json").write_text(json.dumps(sentences))
    for item in draw("ucf101", place / "ucf", tmp_path / "sentences.json", 12, 0):
        assert item.prompt == sentences[item.name.split("/")[0]]


@pytest.fixture
def msrvtt(tmp_path) -> Path:
    """Two clips of the test split and one of the training's, with MSR-VTT's JSON."""
    for number in (0, 7010, 7011):
        write_avi(tmp_path / "set" / "videos" / f"video{number}.avi", 12, number)
    videos = [{"video_id": f"video{n}", "split": "test" if n else "train"} for n in (0, 7010, 7011)]
    sentences = [{"video_id": f"video{n}", "caption": f"caption {c} of {n}"} for n in (0, 7010, 7011) for c in range(9)]
    (tmp_path / "set" / "info.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    return tmp_path / "set"


def test_captions_of_the_test_split(msrvtt):
    items = draw("msrvtt", msrvtt, None, 4, 0)
    assert sorted(item.name for item in items[:2]) == ["videos/video7010.avi", "videos/video7011.avi"]
    assert all(item.prompt.endswith(f"of {item.clip.stem[5:]}") for item in items)
    assert items == draw("msrvtt", msrvtt, None, 4, 0)
    assert len({draw("msrvtt", msrvtt, None, 1, seed)[0].prompt for seed in range(20)}) > 4


def test_captions_of_a_csv(msrvtt, tmp_path, capsys):
    path = tmp_path / "JSFUSION.csv"
    path.write_text("key,vid_key,video_id,sentence\nret0,msr7011,video7011,a disc moves\n")
    assert [item.prompt for item in draw("msrvtt", msrvtt, path, 2, 0)] == ["a disc moves"] * 2
    options = ["--set", "msrvtt", "--data", str(msrvtt), "--prompts", str(path), "--samples", "2"]
    write_avi(msrvtt / "videos" / "video7012.avi", 12, 3)
    path.write_text(path.read_text() + "ret1,msr7012,video7012,a star moves\n")
    assert measure(capsys, tmp_path / "work", *options)["settings"]["set"] == "msrvtt"


def test_a_whole_measurement_on_captions(msrvtt, tmp_path, capsys):
    report = measure(capsys, tmp_path / "work", "--set", "msrvtt", "--data", str(msrvtt), "--samples", "4")
    assert (report["real"], report["generated"]) == (2, 4)
    with (tmp_path / "work" / "prompts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["00000", "00001", "00002", "00003"]


def test_a_window_at_a_lower_rate_skips_frames(tmp_path):
    write_avi(tmp_path / "a.avi", 12, 0, (32, 32))
    item = Item(0, "", tmp_path / "a.avi", "a.avi")
    frames = video.read_video(tmp_path / "a.avi")[0]
    window = real_window(item, Options(4, 32, 32, 1, 1.0, 0.03, 0.02, 0, 0, 8.0))  # 25 fps: every 3.125th
    starts = [n for n in range(3) if torch.equal((frames[[n, n + 3, n + 6, n + 9]] * 255).round().byte(), window)]
    assert len(starts) == 1


# --- bad input ---


@pytest.fixture
def odd(tmp_path, place) -> Path:
    """Files that are not what their names promise."""
    save_network(tmp_path / "map.pt", StandIn("map"))
    save_network(tmp_path / "nan.pt", StandIn("nan"))
    save_network(tmp_path / "plain.pt", Plain())
    torch.save({"a": torch.ones(1)}, tmp_path / "pickle.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "some.json").write_text('{"YoYo": "a toy"}')
    return tmp_path


BAD = {
    # options: words of the message
    "--i3d ODD/nobody.pt": ["nobody.pt", "cannot be read"],
    "--i3d ODD/pickle.pt": ["pickle.pt", "no TorchScript", "i3d_torchscript.pt"],
    "--i3d ODD/plain.pt": ["plain.pt", "cannot be called as StyleGAN-V's I3D", "5 frames"],
    "--i3d ODD/map.pt": ["map.pt", "(2, 4, 1)", "not (2, d) features"],
    "--i3d ODD/nan.pt": ["nan.pt", "NaN or infinite"],
    "--data ODD/nowhere": ["nowhere", "does not exist", "--data"],
    "--data ODD/empty": ["empty", "no class folders", "UCF-101"],
    "--prompts ODD/list.json": ["list.json", "JSON object"],
    "--prompts ODD/some.json": ["some.json", "ApplyEyeMakeup"],
    "--set msrvtt": ["ucf", "0 files of captions", "--prompts"],
    "--set msrvtt --prompts ODD/some.json": ["some.json", "videos and sentences"],
    "--pictures ODD/nowhere": ["nowhere", "does not exist", "--pictures real"],
    "--frames 16": ["5 frames", "16", "--interpolate"],
    "--interpolate 1": ["demo-interpolation"],
    "--interpolate 1 --interpolation-model base.safetensors": ["tiny-base", "animates pictures"],
    "--samples 1": ["--samples", "at least 2"],
    "--size 33x32": ["33x32", "--size 32x32"],
    "--gamma nan": ["--gamma", "number"],
    "--steps 0": ["--steps"],
    "--device nowhere": ["nowhere", "auto or cpu"],
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_ends_with_one_sentence(odd, capsys, options, monkeypatch):
    monkeypatch.setattr("microcinema_core.header.BUNDLED", odd)
    words = [word.replace("ODD", str(odd)) for word in options.split()]
    assert_one_sentence(capsys, command(odd / "work", *words), BAD[options], odd)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_an_odd_rank(tmp_path, capsys, monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert_one_sentence(capsys, command(tmp_path / "work"), [f"RANK={rank}", "torchrun"], tmp_path)


def test_missing_pictures_are_told_with_the_list_of_prompts(tmp_path, capsys):
    (tmp_path / "some").mkdir()
    shutil.copy("pictures/00000.png", tmp_path / "some")
    assert main(command(tmp_path / "work", "--pictures", str(tmp_path / "some"))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "lacks 19 of 20 pictures, the first 00001.png" in error and "prompts.csv" in error
    assert len((tmp_path / "work" / "prompts.csv").read_text().splitlines()) == 21
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["prompts.csv"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--gamma 0.01", "with gamma 0.02, not 0.01"),
        ("--steps 2", "with steps 1, not 2"),
        ("--samples 12", "with samples 20, not 12"),
        ("--seed 1", "with items"),
        ("--pictures real", "with pictures"),
        ("--real-fps 10", "with real_fps None, not 10.0"),
    ],
)
def test_a_folder_of_other_settings_is_refused(whole, capsys, options, words):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    assert main(command(whole, *options.split())) == 2
    error = capsys.readouterr().err
    assert words in error and "another folder with --work" in error
    assert {path: path.read_bytes() for path in whole.iterdir()} == before


def test_a_damaged_shard_and_damaged_settings_are_told(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "work")
    (tmp_path / "work" / "real-00001.safetensors").write_bytes(b"half")
    assert main(command(tmp_path / "work")) == 2
    message = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert message.startswith("microcinema: ") and "real-00001.safetensors' is damaged" in message
    (tmp_path / "work" / "settings.json").write_text("{")
    assert_one_sentence(capsys, command(tmp_path / "work"), ["settings.json", "damaged"], tmp_path)


def test_a_clip_that_is_too_short_is_named(tmp_path, capsys):
    write_ucf(tmp_path / "short", clips=2, frames=4)
    assert main(command(tmp_path / "work", "--data", str(tmp_path / "short"))) == 2
    error = capsys.readouterr().err
    assert "has 4 frames, fewer than the 5 of a window" in error and error.splitlines()[-1].startswith("microcinema: ")


def test_a_model_with_its_own_words_tells_of_others(whole, capsys):
    report = measure(capsys, whole)
    assert any("3 of 3 prompts have words that the model does not know" in note for note in report["notes"])
