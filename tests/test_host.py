"""The pack inside a real ComfyUI: it imports cleanly, and a picture becomes a clip."""

import shutil
import warnings

import pytest
from host import PACK, Server, find_host

from microcinema_core import video

NODES = (
    "MicroCinemaLoader", "MicroCinemaPriorLatent", "MicroCinemaEulerSampler", "MicroCinemaInterpolate",
    "MicroCinemaVideoCombine",
)  # fmt: skip
HOST = find_host()
if HOST is None:
    warnings.warn("NO ComfyUI FOUND: the host tests are SKIPPED. Set COMFYUI_PATH to a ComfyUI checkout.", stacklevel=1)
pytestmark = pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(HOST, tmp_path_factory.mktemp("host") / "base")
    shutil.copy(PACK / "examples" / "photo.jpg", running.base / "input" / "photo.jpg")
    yield running
    running.stop()


def graph():
    """Picture to clip with the bundled models, by node name."""
    nodes = {
        "loader": ("MicroCinemaLoader", {"model_name": "demo-base (bundled)", "weight_dtype": "default"}),
        "positive": ("CLIPTextEncode", {"clip": ["loader", 1], "text": "the camera zooms in"}),
        "negative": ("CLIPTextEncode", {"clip": ["loader", 1], "text": ""}),
        "picture": ("LoadImage", {"image": "photo.jpg"}),
        "prior": ("MicroCinemaPriorLatent", {
            "model": ["loader", 0], "positive": ["positive", 0], "negative": ["negative", 0], "vae": ["loader", 2],
            "image": ["picture", 0], "width": 96, "height": 96, "frames": 9, "lambda_": 0.03, "gamma": 0.02,
            "noise_seed": 5,
        }),
        "sampler": ("MicroCinemaEulerSampler", {
            "model": ["loader", 0], "positive": ["prior", 0], "negative": ["prior", 1], "latent": ["prior", 2],
            "seed": 5, "steps": 3, "cfg": 2.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 1000.0, "denoise": 1.0,
        }),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["loader", 2]}),
        "ends": ("MicroCinemaLoader", {"model_name": "demo-interpolation (bundled)", "weight_dtype": "default"}),
        "between": ("MicroCinemaInterpolate", {
            "model": ["ends", 0], "vae": ["loader", 2], "images": ["decode", 0], "passes": 1, "steps": 1, "seed": 0,
            "loop": False, "fps": 2.0,
        }),
        "video": ("MicroCinemaVideoCombine", {
            "images": ["between", 0], "fps": ["between", 1], "format": "mp4 (h264)", "quality": 80, "loop_count": 0,
            "ping_pong": False, "filename_prefix": "clip", "save": True,
        }),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_the_pack_imports_without_a_warning(server):
    assert all(server.get(f"/object_info/{node}").get(node) for node in NODES)
    assert not [line for line in server.log.splitlines() if "any-name" in line and "seconds" not in line]


def test_every_input_has_a_tooltip_and_every_node_a_help_page(server):
    for node in NODES:
        told = server.get(f"/object_info/{node}")[node]
        assert told["description"] and (PACK / "web" / "docs" / f"{node}.md").is_file()
        inputs = told["input"]["required"] | told["input"].get("optional", {})
        assert [name for name, (_, options) in inputs.items() if not options.get("tooltip")] == []


def test_a_picture_becomes_a_clip(server):
    entry = server.run(graph())
    assert entry["status"]["status_str"] == "success", entry["status"]
    shown = entry["outputs"]["video"]["images"]
    path = server.base / "output" / shown[0]["filename"]
    frames, fps = video.read_video(path)
    assert frames.shape == (33, 3, 96, 96) and fps == 8 and len(shown) == 1
    assert video.read_metadata(path)["prompt"]["sampler"]["class_type"] == "MicroCinemaEulerSampler"
