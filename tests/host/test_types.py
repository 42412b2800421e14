"""The bundled templates on hosts that choose types and memory as GPUs make them, and under the host's own options."""

import shutil
from contextlib import contextmanager

import pytest
import torch
from host import HOST, Server, api_form, graph
from lora import random_lora

from microcinema_core import video
from microcinema_core.checkpoint import resolve
from microcinema_core.metrics.quality import psnr
from microcinema_core.pipeline import Pipeline

TEMPLATES = ("animate-a-picture", "motion-amplitude")
# What a host's memory manager answers about a card, put into a host on the CPU, where all else is real.
TYPES = """
import comfy.model_management as management
management.should_use_fp16 = lambda *args, **kwargs: True
management.should_use_bf16 = lambda *args, **kwargs: {}
NODE_CLASS_MAPPINGS = {{}}
"""
CARDS = {"Ampere": TYPES.format(True), "Turing": TYPES.format(False), "MPS": TYPES.format(False)}
# So many bytes of each model on the card, all else cast as it is used; and each model that loads pushes all others out.
MEMORY = """
import comfy.model_management as management
loaded, load = management.LoadedModel.model_load, management.load_models_gpu

def model_load(self, lowvram_model_memory=0, **kwargs):
    return loaded(self, {}, **kwargs)

def load_models_gpu(models, *args, **kwargs):
    management.unload_all_models()
    return load(models, *args, **kwargs)

management.LoadedModel.model_load, management.load_models_gpu = model_load, load_models_gpu
NODE_CLASS_MAPPINGS = {{}}
"""
PRESSURE = {"--lowvram": MEMORY.format(4_000_000), "--novram": MEMORY.format(0.1)}
OPTIONS = ("--disable-smart-memory", "--cache-none", "--fp16-unet", "--fp16-vae")
pytestmark = pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")


@contextmanager
def running(base, *options: str, node: str | None = None):
    """A server with these options, and with `node` as one more custom node."""
    server = Server(HOST, base, *options, custom_nodes={"card.py": node} if node else {})
    server.add_picture()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(base)


def frames_of(server, made: dict) -> torch.Tensor:
    [path] = server.files([file for output in server.run(made).values() for file in output["images"]])
    return video.read_video(path)[0]


def clips(server) -> dict[str, torch.Tensor]:
    """The frames that each template gives, small; and those between nine frames with a LoRA, in eight windows."""
    found = {}
    for name in TEMPLATES:
        made = api_form(name)
        for node in made.values():
            if node["class_type"] == "MicroCinemaPriorLatent":
                node["inputs"] |= {"width": 96, "height": 64}
        found[name] = frames_of(server, made)
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    random_lora(Pipeline.from_file(resolve("demo-interpolation")), folder / "ends.safetensors")
    made = graph(sampler__steps=1, sampler__cfg=1.0, between__model=["lora", 0])
    inputs = {"model": ["ends", 0], "lora_name": "ends.safetensors", "strength_model": 1.0}
    made["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    return found | {"a LoRA": frames_of(server, made)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with running(tmp_path_factory.mktemp("plain") / "base") as server:
        found = clips(server)
        made = graph(sampler__steps=1, sampler__cfg=1.0)
        assert psnr(frames_of(server, made), found["a LoRA"]) < 50  # it shows
    return found


def worst(found: dict, plain: dict) -> float:
    """PSNR in dB of the clip that differs most."""
    return min(psnr(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("card", CARDS)
def test_a_cards_types_give_the_clips_of_fp32(tmp_path, plain, card):
    with running(tmp_path / "base", node=CARDS[card]) as server:
        assert worst(clips(server), plain) > 40  # the host merges a LoRA in half precision there


@pytest.mark.parametrize("memory", PRESSURE)
def test_little_memory_gives_the_same_clips(tmp_path, plain, memory):
    with running(tmp_path / "base", node=PRESSURE[memory]) as server:
        assert worst(clips(server), plain) > 60


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_the_host_gives_the_same_clips(tmp_path, plain, option):
    with running(tmp_path / "base", option) as server:
        assert worst(clips(server), plain) > (40 if "fp16" in option else 60)
