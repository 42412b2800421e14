"""Templates, blueprints and help pages follow from the schema; workflows of 0.1 run; a video goes in with its sound."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import pytest
import torch
from host import PACK

from microcinema_core import video

OLD = sorted((Path(__file__).parents[1] / "data" / "workflows-0.1").glob("*.json"))
TEMPLATES = sorted((PACK / "workflows").glob("*.json"))
BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))


@pytest.mark.parametrize("tool", ["templates", "help"])
def test_the_committed_files_are_what_the_schema_gives(tool):
    """After a change of the schema: run tools/templates.py and tools/help.py."""
    done = subprocess.run([sys.executable, PACK / "tools" / f"{tool}.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_names_what_it_needs_and_where_it_is_had(path):
    graph = json.loads(path.read_text())
    for node in graph["nodes"]:
        ours = node["type"].startswith("MicroCinema")
        assert node["properties"]["cnr_id"] == ("microcinema" if ours else "comfy-core")
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])
        if node["type"] == "CheckpointLoaderSimple":
            [model] = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0] and model["directory"] == "checkpoints"
            assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/" + model["name"], model["url"])
        if node["type"] == "UpscaleModelLoader":
            [model] = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0] and model["directory"] == "upscale_models"
            assert re.fullmatch(
                r"https://github\.com/[\w-]+/[\w-]+/releases/download/[\w.]+/" + model["name"], model["url"]
            )
    assert graph["groups"] and all(group["title"] for group in graph["groups"])
    [note] = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    if any("v2-1_512" in str(node["widgets_values"]) for node in graph["nodes"] if node["type"] != "MarkdownNote"):
        assert all(
            word in note for word in ("sd2-community", "5.2 GB", "RAIL++-M", "models/checkpoints/", "never released")
        )
    else:
        assert "What to expect" in note and ("Your picture" in note or "Your clip" in note)


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_has_the_inputs_a_person_wants(path):
    made = json.loads(path.read_text())
    [node], [inside] = made["nodes"], made["definitions"]["subgraphs"]
    assert [entry["name"] for entry in node["inputs"]] == [
        "picture", "sentence", "width", "height", "gamma", "frames", "seed", "format"]  # fmt: skip
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == path.stem
    ends = {(link["target_id"], link["target_slot"]) for link in inside["links"]}
    for inner in inside["nodes"]:
        wired = {(inner["id"], slot) for slot, entry in enumerate(inner["inputs"]) if entry["link"] is not None}
        assert wired == {end for end in ends if end[0] == inner["id"]}


@pytest.mark.parametrize("path", sorted((PACK / "web" / "docs").glob("*/zh.md")), ids=lambda path: path.parent.name)
def test_a_chinese_page_is_chinese(path):
    for line in path.read_text().splitlines():
        words = re.sub(r"<!--.*?-->|\[[^]]*\]|`[^`]*`|\([^)]*\)|\*\*[^*]*\*\*|https?://\S+", "", line)
        chinese, latin = len(re.findall(r"[\u4e00-\u9fff]", words)), len(re.findall(r"\b[a-z]{3,}\b", words))
        assert chinese >= latin, line
    assert (path.parents[1] / f"{path.parent.name}.md").is_file()


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_a_workflow_of_the_first_release_still_runs(server, path):
    outputs = server.run(json.loads(path.read_text()))
    [file] = server.files([file for output in outputs.values() for file in output.get("images", [])])
    frames, fps = video.read_video(file)
    assert (len(frames), fps) == (33, 8)


def test_a_loaded_video_is_interpolated_and_keeps_its_sound(server):
    """Load Video → Get Video Components → Temporal Interpolate → Video Combine, as the help says."""
    rate, seconds = 32000, 1.0
    sound = torch.sin(torch.arange(int(rate * seconds)) * (2 * torch.pi * 440 / rate)).expand(2, -1)
    pictures = torch.linspace(0, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 48, 64)
    video.write_video(server.base / "input" / "spoken.mp4", pictures, 5.0, {}, audio=(sound, rate))
    made = {
        "video": {"class_type": "LoadVideo", "inputs": {"file": "spoken.mp4"}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
        "base": {"class_type": "MicroCinemaLoader", "inputs": {
            "model_name": "demo-base (bundled)", "weight_dtype": "default"}},
        "ends": {"class_type": "MicroCinemaLoader", "inputs": {
            "model_name": "demo-interpolation (bundled)", "weight_dtype": "default"}},
        "between": {"class_type": "MicroCinemaInterpolate", "inputs": {
            "model": ["ends", 0], "vae": ["base", 2], "images": ["parts", 0], "passes": 1, "steps": 0, "seed": 0,
            "loop": False, "fps": ["parts", 2]}},
        "file": {"class_type": "MicroCinemaVideoCombine", "inputs": {
            "images": ["between", 0], "fps": ["between", 1], "audio": ["parts", 1], "format": "mp4 (h264)",
            "quality": 80, "loop_count": 0, "ping_pong": False, "filename_prefix": "chained", "save": True}},
    }  # fmt: skip
    [path] = server.files(server.run(made)["file"]["images"])
    frames, fps = video.read_video(path)
    assert (len(frames), fps) == (17, 20)
    with av.open(str(path)) as container:
        [stream] = container.streams.audio
        heard = torch.cat([torch.from_numpy(frame.to_ndarray())[0] for frame in container.decode(stream)])
    assert heard.numel() / stream.rate == pytest.approx(17 / 20, abs=0.05)  # to where the pictures end
    spectrum = torch.fft.rfft(heard[2048:18432]).abs()
    assert spectrum.argmax().item() * stream.rate / 16384 == pytest.approx(440, abs=3)


def test_an_archive_holds_the_pack_and_neither_tests_nor_the_pictures_of_the_docs():
    """git archive and the Registry leave out the same, and nothing that a host reads."""
    ignored = (PACK / ".comfyignore").read_text().split()
    assert [line.split()[0] for line in (PACK / ".gitattributes").read_text().splitlines() if line[0] != "#"] == ignored
    if not (PACK / ".git").exists():
        pytest.skip("not a clone")
    packed = subprocess.run(
        ["git", "archive", "--worktree-attributes", "HEAD"], cwd=PACK, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        names = archive.getnames()
    roots = {name.split("/")[0] for name in names}
    assert {"nodes", "microcinema_core", "models", "web", "locales", "workflows", "subgraphs", "pictures"} <= roots
    assert not {"tests", "benchmarks", "tools", ".ci", ".github"} & roots and "docs/clip.webp" not in names
