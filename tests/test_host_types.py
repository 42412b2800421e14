"""The bundled templates on hosts that choose types as GPUs make them, and under the host's options for memory."""

import shutil
from contextlib import contextmanager

import pytest
import torch
from host import HOST, PACK, Server, api_form
from PIL import Image

from microcinema_core import video
from microcinema_core.metrics import psnr

TEMPLATES = ("animate-a-picture", "motion-amplitude")
# What comfy.model_management answers on these cards, put into a host on the CPU: fp16, bf16.
CARDS = {"Ampere": (True, True), "Turing": (True, False), "MPS": (True, False)}
OPTIONS = ("--lowvram", "--novram", "--disable-smart-memory", "--cache-none", "--fp16-unet", "--fp16-vae")
ANSWERS = """
import comfy.model_management as management
management.should_use_fp16 = lambda *args, **kwargs: {}
management.should_use_bf16 = lambda *args, **kwargs: {}
NODE_CLASS_MAPPINGS = {{}}
"""
pytestmark = pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")


@contextmanager
def running(base, *options: str, card: tuple[bool, bool] | None = None):
    files = {"gpu_types.py": ANSWERS.format(*card)} if card else {}
    server = Server(HOST, base, *options, custom_nodes=files)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(base)


def clips(server) -> dict[str, torch.Tensor]:
    """Each template's frames, small."""
    Image.open(PACK / "pictures" / "photo.jpg").save(server.base / "input" / "microcinema-example.jpg")
    found = {}
    for name in TEMPLATES:
        made = api_form(name)
        for node in made.values():
            if node["class_type"] == "MicroCinemaPriorLatent":
                node["inputs"] |= {"width": 96, "height": 64}
        [path] = server.files([file for output in server.run(made).values() for file in output["images"]])
        found[name] = video.read_video(path)[0]
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with running(tmp_path_factory.mktemp("plain") / "base") as server:
        return clips(server)


@pytest.mark.parametrize("card", CARDS)
def test_a_cards_types_give_the_clips_of_fp32(tmp_path, plain, card):
    with running(tmp_path / "base", card=CARDS[card]) as server:
        found = clips(server)
        for name in TEMPLATES:
            assert psnr(found[name], plain[name]) > 40


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_for_memory_gives_the_same_clips(tmp_path, plain, option):
    with running(tmp_path / "base", option) as server:
        found = clips(server)
        for name in TEMPLATES:
            assert psnr(found[name], plain[name]) > 40
