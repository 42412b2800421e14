"""A model of `microcinema train` opens in the Loader of a running ComfyUI, whole files alone."""

import shutil

import pytest
import torch
from host import graph, latents, sampled_by_core
from tiny_runs import footage_folder, tiny_run

from microcinema_core import files, images
from microcinema_core.pipeline import Pipeline
from microcinema_core.training import recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return recipe.main(tiny_run(folder, footage_folder(folder / "clips")), folder / "out", {"train.steps": "1"})


@pytest.fixture
def folder(server):
    """models/microcinema, which is as before at the end."""
    folder = server.base / "models" / "microcinema"
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()


def listed(server) -> list[str]:
    """What the Loader offers when the page is refreshed."""
    inputs = server.get("/object_info/MicroCinemaLoader")["MicroCinemaLoader"]["input"]["required"]
    return inputs["model_name"][1]["options"]


def test_a_trained_model_is_listed_after_a_refresh_and_its_model_clip_and_vae_sample(server, folder, trained):
    before = listed(server)
    shutil.copy(trained, folder)
    assert set(listed(server)) - set(before) == {"tiny.safetensors"}
    changed = {"loader__model_name": "tiny.safetensors", "prior__frames": 5, "sampler__steps": 2}
    expected = sampled_by_core(server, Pipeline.from_file(trained), 5, steps=2)
    torch.testing.assert_close(latents(server, graph(**changed), ["sampler", 0]), expected, rtol=0, atol=1e-3)
    made = graph(**changed)
    for name in ("between", "ends", "video"):
        made.pop(name)
    made["save"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "trained"}}
    frames = torch.stack([images.load_picture(path) for path in server.files(server.run(made)["save"]["images"])])
    pipeline = Pipeline.from_file(trained)
    decoded = pipeline.decode(expected * pipeline.config.autoencoder.scale)
    torch.testing.assert_close(frames, decoded, rtol=0, atol=0.01)


def test_a_half_written_model_is_not_listed_until_it_is_whole(server, folder, trained):
    """Neither the trainer's part, though the header may be whole, nor a copy under its final name."""
    before, content = listed(server), trained.read_bytes()
    files.part_name(folder / "tiny.safetensors").write_bytes(content)
    assert listed(server) == before
    for length in (0, 5, len(content) // 2, len(content) - 1):
        (folder / "tiny.safetensors").write_bytes(content[:length])
        assert listed(server) == before
        message = server.error(graph(loader__model_name="tiny.safetensors"))
        assert "tiny.safetensors" in message and "not in" in message.lower()
    (folder / "tiny.safetensors").write_bytes(content)
    assert set(listed(server)) - set(before) == {"tiny.safetensors"}
