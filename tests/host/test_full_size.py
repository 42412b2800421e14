"""The templates of the full-size model in a real ComfyUI: random weights of the exact shapes, 64×64 pixels, two steps.

Slow: 17 minutes, 19 GB of disk and of memory. MICROCINEMA_FULL_SIZE names a folder that keeps the files.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from host import HOST, PACK, Server, api_form, python_of

from microcinema_core import video

pytestmark = [pytest.mark.slow, pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")]
SD21, SDXL = "v2-1_512-ema-pruned.safetensors", "sd_xl_base_1.0.safetensors"
TEMPLATES = ("text-to-video-sd21", "midjourney-or-dalle-picture", "five-steps", "512x512", "text-to-video-sdxl")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What the templates' notes tell a person to download, and what `microcinema init` makes of it."""
    kept = os.environ.get("MICROCINEMA_FULL_SIZE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("full")
    folder.mkdir(exist_ok=True)
    for kind, name in (("sd21", SD21), ("sdxl", SDXL)):
        if not (folder / name).exists():
            command = [python_of(HOST), PACK / "tests" / "helpers" / "random_checkpoint.py", kind, folder / name]
            subprocess.run(command, cwd=HOST, env=os.environ | {"PYTHONPATH": "."}, check=True)
    for kind in ("base", "interpolation"):
        made = folder / f"microcinema-{kind}.safetensors"
        if not made.exists():
            command = [sys.executable, "-m", "microcinema_core", "init", "--from", folder / SD21, "--kind", kind]
            subprocess.run([*command, "-o", made], cwd=PACK, check=True)
    return folder


@pytest.fixture(scope="module")
def full_server(files, tmp_path_factory):
    base = tmp_path_factory.mktemp("host") / "base"
    for kind, names in (("checkpoints", (SD21, SDXL)), ("microcinema", ("microcinema-*.safetensors",))):
        folder = base / "models" / kind
        folder.mkdir(parents=True)
        for path in (path for name in names for path in files.glob(name)):
            (folder / path.name).symlink_to(path)
    running = Server(HOST, base, "--bf16-unet", "--cache-none")
    yield running
    running.stop()


def small(name: str) -> dict:
    """A template at 64×64 pixels and two steps, otherwise as it is."""
    made = api_form(name)
    for node in made.values():
        inputs = node["inputs"]
        if node["class_type"] in ("EmptyLatentImage", "MicroCinemaPriorLatent"):
            inputs |= {"width": 64, "height": 64}
        if "steps" in inputs:
            inputs["steps"] = 2
    return made


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_full_size_template_runs_to_a_probed_file(full_server, name, capsys):
    made, started = small(name), time.monotonic()
    status, answer = full_server.queue(made)
    assert status == 200 and not answer["node_errors"], answer
    entry = full_server.wait(answer["prompt_id"], seconds=1800)
    assert entry["status"]["status_str"] == "success", entry["status"]
    seconds = time.monotonic() - started
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{full_server.process.pid}/status").read_text())[1]) / 1e6
    with capsys.disabled():
        print(f"\n{name}: {seconds:.0f} s, peak so far {peak:.1f} GB")
    shown = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    [path] = [path for path in full_server.files(shown) if path.suffix == ".mp4"]
    frames, fps = video.read_video(path)
    assert (frames.shape, fps) == ((33, 3, 64, 64), 8)
    assert video.read_metadata(path)["prompt"] == made
    with av.open(path) as file:
        assert file.streams.video[0].codec_context.name == "h264"
