"""The pack inside a real ComfyUI: it imports cleanly, its models are native, and bad input ends in a sentence."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from host import HOST, PACK, api_form, graph, latents, python_of, sampled_by_core
from PIL import Image
from safetensors.torch import save_file

from microcinema_core import video
from microcinema_core.checkpoint import resolve
from microcinema_core.pipeline import Pipeline

SNAPSHOT = Path(__file__).parents[1] / "data" / "object_info.json"
pytestmark = pytest.mark.usefixtures("server")


def nodes_of(server) -> dict[str, dict]:
    """The pack's nodes by name, as the host describes them."""
    found = server.get("/object_info")
    return {name: node for name, node in found.items() if node["python_module"] == "custom_nodes.any-name"}


def leftovers(server) -> list[Path]:
    """Files that are not whole, or not meant to be there."""
    return [path for folder in ("output", "temp") for path in (server.base / folder).rglob(".*")]


# What a person sees before the first run


def test_the_pack_imports_without_a_warning(server):
    assert len(nodes_of(server)) >= 5
    startup = server.log.partition("Starting server")[0]  # what follows belongs to other tests
    assert not [line for line in startup.splitlines() if "any-name" in line and "seconds" not in line]


def test_object_info_is_the_committed_one(server):
    """To renew the snapshot on purpose: delete tests/data/object_info.json and run this test, which fails once."""
    keys = ("input", "input_order", "output", "output_name", "output_tooltips", "display_name", "description",
            "category", "output_node")  # fmt: skip
    schemas = {node: {key: values[key] for key in keys} for node, values in nodes_of(server).items()}
    for name in ("sampler_name", "scheduler"):  # every host has its own
        schemas["MicroCinemaSweepGrid"]["input"]["required"][name][1].pop("options")
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(json.dumps(schemas, indent=1, ensure_ascii=False) + "\n")
        pytest.fail("a new snapshot was written: look at it and commit it")
    assert schemas == json.loads(SNAPSHOT.read_text())


def test_every_input_is_explained_in_both_languages_and_every_node_has_a_help_page():
    schemas = json.loads(SNAPSHOT.read_text())
    locales = {lang: json.loads((PACK / "locales" / lang / "nodeDefs.json").read_text()) for lang in ("en", "zh")}
    for node, values in schemas.items():
        assert values["description"] and (PACK / "web" / "docs" / f"{node}.md").is_file()
        inputs = values["input"]["required"] | values["input"].get("optional", {})
        tooltips = {name: options["tooltip"] for name, (_, options) in inputs.items()}
        english = locales["en"][node]
        assert {name: entry["tooltip"] for name, entry in english["inputs"].items()} == tooltips
        assert (english["display_name"], english["description"]) == (values["display_name"], values["description"])
        for locale in locales.values():
            assert list(locale[node]["inputs"]) == list(inputs)
            assert all(entry["name"] and entry["tooltip"] for entry in locale[node]["inputs"].values())
            assert len(locale[node]["outputs"]) == len(values["output"])


def test_templates_are_listed_each_with_its_picture(server):
    names = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates")["any-name"]) == names
    for name in names:  # the host serves one folder a pack: beside an "examples", workflows/ would not be found
        assert server.get(f"/api/workflow_templates/any-name/{name}.json")["nodes"]
    assert sorted(path.stem for path in (PACK / "workflows" / "api").glob("*.json")) == names
    for name in names:
        with Image.open(PACK / "workflows" / f"{name}.jpg") as thumbnail:
            assert min(thumbnail.size) >= 200


# Runs


@pytest.mark.parametrize(("name", "size"), [("animate-a-picture", (256, 384)), ("motion-amplitude", (128, 780))])
def test_a_template_runs_to_a_file_that_holds_it(server, name, size):
    made = api_form(name)
    outputs = server.run(made, extra_data={"extra_pnginfo": {"workflow": {"name": name}}})
    [path] = server.files([file for output in outputs.values() for file in output["images"]])
    frames, fps = video.read_video(path)
    assert frames.shape == (33, 3, *size)
    assert fps == 8
    held = video.read_metadata(path)
    for node in held["prompt"].values():
        node.pop("is_changed", None)  # the host's own note
    assert held["prompt"] == made
    assert held["workflow"] == {"name": name}
    assert not leftovers(server)


def test_the_nodes_give_what_the_core_gives(server):
    expected = sampled_by_core(server, Pipeline.from_file(resolve("demo-base")), frames=9, steps=3)
    found = latents(server, graph(), ["sampler", 0])
    assert (found - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # other versions of torch, which guidance enlarges


def test_the_size_of_the_motion_and_overscan_are_the_cores(server):
    core = Pipeline.from_file(resolve("demo-base"))
    expected = sampled_by_core(server, core, frames=9, steps=3, motion=0.5, overscan=9)
    found = latents(server, graph(prior__motion=0.5, prior__overscan=True), ["sampler", 0])
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert (found - sampled_by_core(server, core, frames=9, steps=3)).norm() > 0.05 * expected.norm()


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def wirings() -> dict[str, tuple[dict, list]]:
    """Every way in which the host's nodes bring noise to a sampler: name → (the graph, what comes out)."""
    sampler = {"sampler": ["euler", 0], "sigmas": ["sampler", 1]}
    conds = {"model": ["loader", 0], "positive": ["prior", 0], "negative": ["prior", 1], "cfg": 2.0}
    base = graph(prior__gamma=0.97) | {
        "guider": node("CFGGuider", **conds), "euler": node("KSamplerSelect", sampler_name="euler"),
        "random": node("RandomNoise", noise_seed=5), "none": node("DisableNoise"),
        "split": node("SplitSigmas", sigmas=["sampler", 1], step=1),
    }  # fmt: skip

    def advanced(noise, latent, sigmas=("sampler", 1)):
        return node("SamplerCustomAdvanced", noise=[*noise], guider=["guider", 0], sampler=["euler", 0],
                    sigmas=[*sigmas], latent_image=[*latent])  # fmt: skip

    def custom(add_noise, latent):
        return node("SamplerCustom", **conds, **sampler, add_noise=add_noise, noise_seed=5, latent_image=latent)

    def noised(noise):
        return node("AddNoise", model=["loader", 0], noise=noise, sigmas=["sampler", 1], latent_image=["prior", 2])

    own, random, none, empty = ("prior", 3), ("random", 0), ("none", 0), ("prior", 2)
    made = {
        "RandomNoise": {"end": advanced(random, empty)},
        "the NOISE of Appearance Noise Prior Latent": {"end": advanced(own, empty)},
        "SamplerCustom": {"end": custom(True, [*empty])},
        "AddNoise of RandomNoise": {"noised": noised([*random]), "end": advanced(none, ("noised", 0))},
        "AddNoise of our NOISE": {"noised": noised([*own]), "end": advanced(none, ("noised", 0))},
        "AddNoise, then SamplerCustom without": {"noised": noised([*random]), "end": custom(False, ["noised", 0])},
        "two stages": {
            "first": advanced(random, empty, ("split", 0)), "end": advanced(none, ("first", 0), ("split", 1))
        },
    }  # fmt: skip
    return {name: (base | nodes, ["end", 0]) for name, nodes in made.items()}


@pytest.mark.parametrize("name", wirings())
def test_the_prior_enters_once_whatever_is_wired(server, name):
    """The host's Euler then gives what our sampler gives, here with a prior of 1, which cannot be overlooked."""
    made, out = wirings()[name]
    found, expected = latents(server, made, out), latents(server, graph(prior__gamma=0.97), ["sampler", 0])
    if "AddNoise" in name:  # σ·ε instead of √(1+σ²)·ε: 0.23 % less noise
        without = latents(server, graph(prior__gamma=-0.03), ["sampler", 0])
        assert (found - expected).norm() < 0.01 * (without - expected).norm()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_two_stages_of_the_stock_sampler_are_one_run(server):
    common = {"model": ["loader", 0], "positive": ["prior", 0], "negative": ["prior", 1], "cfg": 2.0, "steps": 3,
              "sampler_name": "euler", "scheduler": "sgm_uniform"}  # fmt: skip
    stage = common | {"noise_seed": 5}
    made = graph() | {
        "whole": node("KSampler", **common, seed=5, denoise=1.0, latent_image=["prior", 2]),
        "first": node("KSamplerAdvanced", **stage, add_noise="enable", start_at_step=0, end_at_step=1,
                      return_with_leftover_noise="enable", latent_image=["prior", 2]),
        "second": node("KSamplerAdvanced", **stage, add_noise="disable", start_at_step=1, end_at_step=3,
                       return_with_leftover_noise="disable", latent_image=["first", 0]),
    }  # fmt: skip
    expected, found = latents(server, dict(made), ["whole", 0]), latents(server, dict(made), ["second", 0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_models_own_steps_and_guidance_are_the_default(server):
    """One step without guidance for the bundled model, whatever stands in the paper."""
    unset = latents(server, graph(sampler__steps=0, sampler__cfg=0.0), ["sampler", 0])
    own = latents(server, graph(sampler__steps=1, sampler__cfg=1.0), ["sampler", 0])
    assert torch.equal(unset, own)
    assert "1 step, cfg 1" in server.log


@pytest.mark.parametrize(("width", "height", "size"), [(0, 0, (32, 48)), (96, 0, (8, 12)), (0, 128, (16, 24))])
def test_the_size_comes_from_the_picture(server, width, height, size):
    made = graph(prior__width=width, prior__height=height, prior__frames=2, sampler__steps=1, sampler__cfg=1.0)
    assert latents(server, made, ["sampler", 0]).shape[2:] == size


def test_the_stock_sampler_is_close(server):
    made = graph()
    made["stock"] = {"class_type": "KSampler", "inputs": {
        "model": ["loader", 0], "positive": ["prior", 0], "negative": ["prior", 1], "latent_image": ["prior", 2],
        "seed": 5, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "sgm_uniform", "denoise": 1.0,
    }}  # fmt: skip
    found, expected = latents(server, made, ["stock", 0]), latents(server, graph(), ["sampler", 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("weights", "limit"), [("bf16", 0.01), ("fp8_e4m3fn", 0.01)])
def test_weights_of_less_precision_give_nearly_the_same(server, weights, limit):
    found = latents(server, graph(loader__weight_dtype=weights), ["sampler", 0])
    expected = latents(server, graph(), ["sampler", 0])
    assert found.isfinite().all()
    assert (found - expected).square().mean() < limit * expected.square().mean()


@pytest.mark.parametrize("kind", ["mp4 (h264)", "webm (vp9)", "webp (animated)", "gif", "png sequence"])
def test_video_combine_writes_every_format_of_odd_size(server, kind):
    made = {
        colour: {"class_type": "EmptyImage", "inputs": {"width": 97, "height": 95, "batch_size": 1, "color": number}}
        for colour, number in (("blue", 255), ("black", 0), ("green", 65280))
    }
    made |= {
        "two": {"class_type": "ImageBatch", "inputs": {"image1": ["blue", 0], "image2": ["black", 0]}},
        "frames": {"class_type": "ImageBatch", "inputs": {"image1": ["two", 0], "image2": ["green", 0]}},
        "video": {"class_type": "MicroCinemaVideoCombine", "inputs": {
            "images": ["frames", 0], "fps": 10.0, "format": kind, "quality": 80, "loop_count": 0, "ping_pong": True,
            "filename_prefix": f"formats/{kind[:4].strip()}", "save": True}},
    }  # fmt: skip
    paths = server.files(server.run(made)["video"]["images"])
    if kind == "png sequence":
        assert len(paths) == 4
        with Image.open(paths[0]) as picture:
            assert picture.size == (97, 95)
            assert json.loads(picture.info["prompt"]) == made
        return
    [path] = paths
    assert list(path.parent.glob(f"{path.stem}*")) == [path]  # nothing beside it
    if kind in ("gif", "webp (animated)"):
        with Image.open(path) as picture:
            assert (picture.n_frames, picture.size) == (4, (97, 95))
    else:
        frames, fps = video.read_video(path)
        assert (frames.shape, fps) == ((4, 3, 96, 98), 10)
    if kind != "gif":
        assert video.read_metadata(path)["prompt"] == made


# What goes wrong


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prior__width": 100}, ["100×96", "multiples of 8"]),
        ({"prior__frames": 1}, ["frames", "2"]),
        ({"sampler__cfg": -1.0}, ["cfg", "0"]),
        ({"positive__text": "xylophones explode"}, ["'xylophones'", "it knows"]),
        ({"loader__model_name": "demo-interpolation (bundled)"}, ["reads no text", "leave CLIP unconnected"]),
        ({"between__model": ["loader", 0]}, ["'demo-base' animates pictures", "interpolates"]),
        ({"sampler__model": ["ends", 0]}, ["'demo-interpolation' interpolates", "animates"]),
        ({"sampler__positive": ["positive", 0]}, ["carries no picture", "Appearance Noise Prior Latent"]),
        ({"video__format": "gif", "video__fps": 80.0}, ["gif", "50 frames per second", "80"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_ends_in_a_sentence(server, changed, words):
    message = server.error(graph(**changed))
    assert all(word in message for word in words), message
    assert not leftovers(server)


def test_a_picture_smaller_than_a_cell_and_a_foreign_latent_are_refused(server):
    made = graph(prior__image=["tiny", 0])
    made["tiny"] = {"class_type": "EmptyImage", "inputs": {"width": 5, "height": 40, "batch_size": 1, "color": 0}}
    message = server.error(made)
    assert "5×40" in message and "one latent cell of 8" in message
    made = graph(sampler__latent=["foreign", 0])
    made["foreign"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 9}}
    message = server.error(made)
    assert "(9, 4, 12, 12)" in message and "Appearance Noise Prior Latent" in message


def test_only_whole_files_of_ours_are_listed_and_a_truncated_one_is_refused(server):
    folder = server.base / "models" / "microcinema"
    folder.mkdir(parents=True, exist_ok=True)
    whole = resolve("demo-base").read_bytes()
    save_file({"x": torch.zeros(2)}, folder / "foreign.safetensors")
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "mine.safetensors").write_bytes(whole)
    names = server.get("/object_info/MicroCinemaLoader")["MicroCinemaLoader"]["input"]["required"]["model_name"][1]
    assert names["options"] == ["demo-base (bundled)", "demo-interpolation (bundled)", "mine.safetensors"]
    (folder / "mine.safetensors").write_bytes(whole[: len(whole) // 2])  # while the page is open
    message = server.error(graph(loader__model_name="mine.safetensors"))
    assert "mine.safetensors" in message
    for file in folder.iterdir():
        file.unlink()


# A long life


def repeated(width: int, height: int, count: int) -> dict:
    """A batch of one colour that no other run has cached."""
    size = {"width": width, "height": height, "batch_size": count}
    return {"class_type": "EmptyImage", "inputs": {**size, "color": time.time_ns() % 2**24}}


@pytest.mark.parametrize("phase", ["EulerSampler", "Interpolate", "VideoCombine"])
def test_an_interrupt_leaves_nothing_behind_and_the_next_run_works(server, phase):
    made = graph()
    if phase == "EulerSampler":
        made["sampler"]["inputs"] |= {"steps": 1000, "seed": time.time_ns() % 10**9}
    elif phase == "Interpolate":
        made["frames"] = repeated(128, 128, 100)
        made["between"]["inputs"] |= {"images": ["frames", 0], "passes": 2}
    else:
        made["frames"] = repeated(512, 512, 500)
        made["video"]["inputs"] |= {"images": ["frames", 0], "format": "webm (vp9)", "fps": 8.0}
    before = sorted((server.base / "output").rglob("*"))
    prompt_id = server.queue(made)[1]["prompt_id"]
    reached = {
        "EulerSampler": lambda: "/1000 [" in server.log,
        "Interpolate": lambda: time.monotonic() > started + 10,
        "VideoCombine": lambda: leftovers(server),
    }[phase]
    started = time.monotonic()
    while not reached():
        assert time.monotonic() < started + 120, server.log[-2000:]
        time.sleep(0.1)
    server.post("/interrupt", {})
    messages = dict(server.wait(prompt_id, 60)["status"]["messages"])
    assert messages["execution_interrupted"]["node_type"] == f"MicroCinema{phase}", messages
    assert sorted((server.base / "output").rglob("*")) == before
    assert not leftovers(server)
    server.run(graph(sampler__seed=time.time_ns() % 10**9))


def test_prompts_do_not_make_the_server_grow(server):
    sizes = []
    for seed in range(100, 112):
        server.run(graph(sampler__seed=seed, sampler__steps=1))
        sizes.append(server.memory())
    grown = (sizes[-1] - sizes[4]) / 2**20
    assert grown < 50, f"{grown:.0f} MiB in seven prompts"


def test_nothing_global_is_touched():
    """Importing and running the nodes leaves sys.path and the global random states as they were."""
    code = """
import sys; sys.argv = ["main.py", "--cpu"]; sys.path.insert(0, "")
import comfy.options; comfy.options.enable_args_parsing()
import random, importlib.util, numpy, torch, nodes
import comfy.samplers, latent_preview, comfy_api.latest
def state():
    return list(sys.path), random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
before = state()
spec = importlib.util.spec_from_file_location("pack", PACK + "/__init__.py", submodule_search_locations=[PACK])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
from pack.nodes import Interpolate, Loader, PriorLatent, EulerSampler
with torch.inference_mode():
    model, clip, vae = Loader.execute("demo-base (bundled)", "default").result
    text = clip.encode_from_tokens_scheduled(clip.tokenize("pan left"))
    picture = torch.rand(1, 96, 96, 3, generator=torch.Generator().manual_seed(0))
    latent = PriorLatent.execute(model, text, text, vae, picture, 96, 96, 3, 0.03, 0.02, 1).result
    made = EulerSampler.execute(model, *latent[:3], 1, 2, 1.0, 0.5, 0.0, 1000.0, 1.0).result[0]
    ends, absent, _ = Loader.execute("demo-interpolation (bundled)", "default").result
    assert not hasattr(absent, "patcher")  # the host looks for one in all outputs
    Interpolate.execute(ends, vae, vae.decode(made["samples"]), 1, 1, 0, False, 2.0)
assert state() == before
"""
    options = {"cwd": HOST, "env": os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, "capture_output": True, "text": True}
    done = subprocess.run([python_of(HOST), "-c", f"PACK = {str(PACK)!r}\n{code}"], **options)
    assert done.returncode == 0, done.stderr[-2000:]
