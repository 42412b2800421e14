"""Nodes of the host that change a UNet from inside: each acts on our network, or is refused in a sentence."""

from dataclasses import replace

import pytest
import torch
from host import PACK, graph, latents
from tiny import random_model

from microcinema_core.checkpoint import save_model
from microcinema_core.config import NetworkConfig

SAMPLED = ["sampler", 0]
FREEU = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
# By the host's name of the node: its settings, and the models that it acts on. It is refused by the others.
NODES = {
    "FreeU": (FREEU, ("wide",)),
    "FreeU_V2": (FREEU, ("wide",)),
    "TomePatchModel": ({"ratio": 0.5}, ("wide",)),
    "HyperTile": ({"tile_size": 32, "swap_size": 1, "max_depth": 1, "scale_depth": False}, ("wide", "bundled")),
    "SelfAttentionGuidance": ({"scale": 1.0, "blur_sigma": 2.0}, ("wide", "bundled")),
    "PerturbedAttentionGuidance": ({"scale": 3.0}, ("wide", "bundled")),
    "NAGuidance": ({"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}, ("wide", "bundled")),
    "EasyCache": (
        {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}, ("wide", "bundled"),
    ),
    "LazyCache": (
        {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}, ("wide", "bundled"),
    ),
    "PatchModelAddDownscale": (
        {"block_number": 2, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
         "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"}, (),
    ),
    "SkipLayerGuidanceDiT": (
        {"double_layers": "1", "single_layers": "1", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0,
         "rescaling_scale": 0.0}, (),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(server, tiny_config):
    """A model of SD2.1's shape in small: three widths, attention at each, random weights."""
    network = NetworkConfig(
        model_channels=32, channel_multipliers=(1, 2, 4), res_blocks=1, attention_levels=(0, 1, 2), head_channels=16,
        norm_groups=8, context_dim=64, frames=5,
    )  # fmt: skip
    folder = server.base / "models" / "microcinema"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wide.safetensors"
    save_model(path, random_model(replace(tiny_config, name="wide", network=network)))
    yield path.name
    path.unlink()


def made_with(model: str, wide: str, kind: str | None, steps: int) -> dict:
    size = {"wide": 64, "bundled": 192}[model]
    made = graph(prior__width=size, prior__height=size, prior__frames=3, sampler__steps=steps)
    made["loader"]["inputs"]["model_name"] = {"wide": wide, "bundled": "demo-base (bundled)"}[model]
    if kind:
        made["patch"] = {"class_type": kind, "inputs": {"model": ["loader", 0], **NODES[kind][0]}}
        made["sampler"]["inputs"]["model"] = ["patch", 0]
    return made


@pytest.mark.parametrize("model", ["wide", "bundled"])
@pytest.mark.parametrize("kind", NODES)
def test_a_node_that_changes_a_unet_acts_or_is_refused(server, wide, kind, model):
    if not server.get(f"/object_info/{kind}"):
        pytest.skip(f"this host has no {kind}")
    if kind == "EasyCache" and server.get("/system_stats")["system"]["comfyui_version"] == "0.3.64":
        pytest.skip("EasyCache of this host compares batches of two sizes with guidance")
    steps = 6 if "Cache" in kind else 2
    if model in NODES[kind][1]:
        plain = latents(server, made_with(model, wide, None, steps), SAMPLED)
        found = latents(server, made_with(model, wide, kind, steps), SAMPLED)
        assert torch.isfinite(found).all()
        assert (found - plain).abs().max() > 1e-5  # the same graph twice is the same to the bit
    else:
        message = server.error(made_with(model, wide, kind, steps))
        assert "take the node that makes it out of the MODEL's way" in message


def test_the_table_in_the_docs_names_them_all():
    text = (PACK / "docs" / "comfyui.md").read_text()
    assert [kind for kind in NODES if f"`{kind}`" not in text] == []
