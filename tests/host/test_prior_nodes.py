"""Sweep Grid, Motion Report, Motion Amplitude and Video Noise in a real ComfyUI, with the bundled model."""

import csv
import io
import json
import shutil

import pytest
from host import graph, latents
from PIL import Image

pytestmark = pytest.mark.usefixtures("server")


def swept(**changed) -> dict:
    """graph() with a Sweep Grid in the place of the sampler; its table as text."""
    made = graph(prior__width=64, prior__height=64, prior__frames=5)
    for name in ("sampler", "decode", "between", "video", "ends"):
        made.pop(name)
    inputs = {
        "model": ["loader", 0], "positive": ["prior", 0], "negative": ["prior", 1], "vae": ["loader", 2],
        "latent": ["prior", 2], "seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
        "columns": "strength", "column_values": "0, 0.3", "rows": "seed", "row_values": "1, 2", "width": 256,
        "given": "middle", "picture": ["picture", 0],
    }  # fmt: skip
    made["grid"] = {"class_type": "MicroCinemaSweepGrid", "inputs": inputs | changed}
    made["table"] = {"class_type": "PreviewAny", "inputs": {"source": ["grid", 1]}}
    made["images"] = {"class_type": "PreviewImage", "inputs": {"images": ["grid", 0]}}
    return made


def cells(server) -> list:
    return sorted((server.base / "output" / "MicroCinema").rglob("sweep-*/*.npz"))


@pytest.fixture
def no_cells(server):
    shutil.rmtree(server.base / "output" / "MicroCinema", ignore_errors=True)


def table(outputs: dict) -> list[dict]:
    return list(csv.DictReader(io.StringIO(outputs["table"]["text"][0])))


def test_a_sweep_is_a_grid_of_clips_and_a_table(server, no_cells):
    outputs = server.run(swept())
    rows = table(outputs)
    assert [(row["strength"], row["seed"]) for row in rows] == [("0.0", "1"), ("0.3", "1"), ("0.0", "2"), ("0.3", "2")]
    assert len({row["motion"] for row in rows}) == 4 and float(rows[0]["fidelity"]) > 15
    assert len(outputs["images"]["images"]) == 5 and len(cells(server)) == 4


def test_a_sweep_samples_only_the_cells_that_are_missing(server, no_cells):
    server.run(swept(seed=5))
    before = {path: path.stat().st_mtime_ns for path in cells(server)}
    next(iter(before)).unlink()  # as after an interrupt
    rows = table(server.run(swept(seed=5, column_values="0, 0.3, 0.6", width=384)))
    after = {path: path.stat().st_mtime_ns for path in cells(server)}
    assert len(rows) == len(after) == 6
    assert sum(after[path] == time for path, time in before.items() if path in after) == 3


def test_another_seed_of_the_graph_is_another_sweep(server, no_cells):
    server.run(swept(rows="none", row_values=""))
    server.run(swept(rows="none", row_values="", seed=9))
    assert len({path.parent for path in cells(server)}) == 2


def test_another_picture_of_the_same_name_is_another_sweep(server, no_cells):
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(server.base / "input" / "changing.png")
        made = swept(rows="none", row_values="")
        made["picture"]["inputs"]["image"] = "changing.png"
        server.run(made)
    assert len({path.parent for path in cells(server)}) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"column_values": "0, x"}, "give different numbers from -1 to 1"),
        ({"column_values": "0.1, 0.1"}, "give different numbers"),
        ({"rows": "strength"}, "Rows and columns are both strength"),
        ({"row_values": "1.5"}, "give different whole numbers"),
        ({"column_values": ", ".join(str(i / 20) for i in range(20)), "width": 64}, "do not fit into 64 pixels"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(server, changed, words):
    assert words in server.error(swept(**changed))


def test_a_strength_needs_a_prior(server):
    made = swept()
    made["grid"]["inputs"] |= {"positive": ["positive", 0], "negative": ["negative", 0]}
    assert "wire the MODEL through Appearance Noise Prior (any model)" in server.error(made)


def test_a_clip_is_reported_on(server):
    made = graph(sampler__steps=1)
    inputs = {"images": ["decode", 0], "given": "middle", "picture": ["picture", 0]}
    made["report"] = {"class_type": "MicroCinemaMotionReport", "inputs": inputs}
    made["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["report", 1]}}
    made["plot"] = {"class_type": "PreviewImage", "inputs": {"images": ["report", 2]}}
    for name in ("between", "video", "ends"):
        made.pop(name)
    outputs = server.run(made)
    report = json.loads(outputs["text"]["text"][0])
    assert report["motion"] > 0.5 and len(report["steps"]) == 8 and report["fidelity"] > 15
    assert len(outputs["plot"]["images"]) == 1


@pytest.mark.parametrize(("motion", "gamma"), [(-1, 0.06), (0, 0.02), (1, -0.02)])
def test_the_slider_is_gamma(server, motion, gamma):
    made = {
        "slider": {"class_type": "MicroCinemaMotionAmplitude", "inputs": {"motion": motion, "lambda_": 0.03}},
        "gamma": {"class_type": "PreviewAny", "inputs": {"source": ["slider", 0]}},
        "strength": {"class_type": "PreviewAny", "inputs": {"source": ["slider", 1]}},
    }
    outputs = server.run(made)
    assert float(outputs["gamma"]["text"][0]) == pytest.approx(gamma)
    assert float(outputs["strength"]["text"][0]) == pytest.approx(0.03 + gamma)


def test_noise_of_every_kind_is_sampled(server):
    made = graph()
    made["encode"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["scaled", 0], "vae": ["loader", 2]}}
    scaled = {"image": ["picture", 0], "upscale_method": "area", "width": 96, "height": 96, "crop": "center"}
    made["scaled"] = {"class_type": "ImageScale", "inputs": scaled}
    made["guider"] = {"class_type": "BasicGuider", "inputs": {"model": ["loader", 0], "conditioning": ["prior", 0]}}
    made["method"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    sigmas = {"model": ["loader", 0], "scheduler": "simple", "steps": 1, "denoise": 1.0}
    made["sigmas"] = {"class_type": "BasicScheduler", "inputs": sigmas}
    found = []
    for kind in ("independent", "mixed", "progressive", "FrameInit"):
        noise = {"noise_seed": 3, "kind": kind, "alpha": 1.0, "model": ["loader", 0], "still": ["encode", 0]}
        made["noise"] = {"class_type": "MicroCinemaVideoNoise", "inputs": noise}
        inputs = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["method", 0], "sigmas": ["sigmas", 0],
                  "latent_image": ["prior", 2]}  # fmt: skip
        made["sampler"] = {"class_type": "SamplerCustomAdvanced", "inputs": inputs}
        found.append(latents(server, {key: dict(node) for key, node in made.items()}, ["sampler", 0]))
    assert all(latent.isfinite().all() for latent in found)
    assert len({latent.sum().item() for latent in found}) == 4


def test_a_still_clip_of_another_size_is_refused(server):
    made = graph()
    made["encode"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["picture", 0], "vae": ["loader", 2]}}
    noise = {"noise_seed": 3, "kind": "FrameInit", "alpha": 1.0, "model": ["loader", 0], "still": ["encode", 0]}
    made["noise"] = {"class_type": "MicroCinemaVideoNoise", "inputs": noise}
    made["guider"] = {"class_type": "BasicGuider", "inputs": {"model": ["loader", 0], "conditioning": ["prior", 0]}}
    made["method"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    sigmas = {"model": ["loader", 0], "scheduler": "simple", "steps": 1, "denoise": 1.0}
    made["sigmas"] = {"class_type": "BasicScheduler", "inputs": sigmas}
    inputs = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["method", 0], "sigmas": ["sigmas", 0],
              "latent_image": ["prior", 2]}  # fmt: skip
    made["sampler"] = {"class_type": "SamplerCustomAdvanced", "inputs": inputs}
    assert "encode the picture at the size of the clip" in server.error(made)


def test_frame_init_needs_the_picture(server):
    made = graph()
    noise = {"noise_seed": 3, "kind": "FrameInit", "alpha": 1.0}
    made["noise"] = {"class_type": "MicroCinemaVideoNoise", "inputs": noise}
    made["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["noise", 0]}}
    assert "wire model and still" in server.error({key: made[key] for key in ("noise", "shown")})
