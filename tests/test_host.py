"""The pack inside a real ComfyUI: it imports cleanly, its models are native ones, and bad input is told in a sentence."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

from microcinema_core import images, video
from microcinema_core.checkpoint import resolve
from microcinema_core.pipeline import Pipeline

from host import PACK, Server, find_host

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


def graph(**changed):
    """Picture to clip with the bundled models, by node name; `changed` maps node__input to a value."""
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
    made = {name: {"class_type": kind, "inputs": dict(inputs)} for name, (kind, inputs) in nodes.items()}
    for key, value in changed.items():
        node, _, name = key.partition("__")
        made[node]["inputs"][name] = value
    return made


def latents(server, made, samples):
    """The latents that `samples` gives, saved by the host."""
    made["save"] = {"class_type": "SaveLatent", "inputs": {"samples": samples, "filename_prefix": "saved"}}
    made.pop("video")
    entry = server.run(made)
    assert entry["status"]["status_str"] == "success", entry["status"]
    saved = entry["outputs"]["save"]["latents"][0]
    return load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


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


def test_the_nodes_give_what_the_core_gives(server):
    picture = images.load_picture(PACK / "examples" / "photo.jpg")
    pipeline = Pipeline.from_file(resolve("demo-base"))
    context = pipeline.text.encode(["", "the camera zooms in"])
    condition = pipeline.encode(images.fit(picture, 96, 96)[None])[None]
    expected = pipeline.sample(condition, context, frames=9, steps=3, cfg=2.0, lambda_=0.03, gamma=0.02, seeds=[5])[0]
    found = latents(server, graph(), ["sampler", 0]) * pipeline.config.autoencoder.scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("noise", ["prior", "random"])
def test_the_hosts_euler_gives_what_our_sampler_gives_and_the_prior_enters_once(server, noise):
    made = graph()
    made |= {
        "guider": {"class_type": "CFGGuider", "inputs": {
            "model": ["loader", 0], "positive": ["prior", 0], "negative": ["prior", 1], "cfg": 2.0}},
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "random": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "custom": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["prior", 3] if noise == "prior" else ["random", 0], "guider": ["guider", 0],
            "sampler": ["euler", 0], "sigmas": ["sampler", 1], "latent_image": ["prior", 2]}},
    }  # fmt: skip
    found, expected = latents(server, dict(made), ["custom", 0]), latents(server, graph(), ["sampler", 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prior__width": 100}, ["100×96", "multiples of 8"]),
        ({"prior__frames": 1}, ["frames", "2"]),
        ({"positive__text": "a xylophone"}, ["'xylophone'", "it knows"]),
        ({"loader__model_name": "demo-interpolation (bundled)"}, ["reads no text", "leave CLIP unconnected"]),
        ({"between__model": ["loader", 0]}, ["'demo-base' animates pictures", "interpolates"]),
        ({"sampler__model": ["ends", 0]}, ["'demo-interpolation' interpolates", "animates"]),
        ({"sampler__positive": ["positive", 0]}, ["carries no picture", "Appearance Noise Prior Latent"]),
        ({"video__format": "gif", "video__fps": 80.0}, ["gif", "50 frames per second", "80"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_told_in_a_sentence(server, changed, words):
    message = server.error(graph(**changed))
    assert all(word in message for word in words), message
    assert not list((server.base / "output").glob(".*"))
