"""A command imports what it needs: no library before its use, for importing is most of the time a person waits."""

import pytest
from host import HOST, PACK, python_of
from imported import LIBRARIES, imported, imported_at_the_first_step, imported_by_info

from microcinema_core.checkpoint import save_model


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_model)
    return str(path)


@pytest.mark.parametrize("options", [["--help"], ["animate", "--help"], ["nonsense"], ["animate", "--steps", "0"]])
def test_help_and_mistyped_options_need_no_library(options):
    program = "from microcinema_core.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not imported(program, *options) & LIBRARIES


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_of_a_file_reads_its_header_alone(model, options):
    assert imported_by_info(model, *options) & LIBRARIES <= {"numpy", "safetensors"}
    assert imported_by_info("nobody") & LIBRARIES <= {"numpy", "safetensors"}


def test_a_clip_begins_without_what_writes_it(tmp_path, model):
    """All that is there at the first step; what comes with torch._dynamo takes as long as torch itself."""
    found = imported_at_the_first_step(tmp_path, "--model", model)
    assert {"torch", "tokenizers", "microcinema_core.samplers"} <= found
    unwanted = {"transformers", "diffusers", "kornia", "av", "sympy", "torch._dynamo", "torch._inductor"}
    unwanted |= {"microcinema_core.training", "microcinema_core.convert", "microcinema_core.metrics"}
    unwanted |= {"PIL.WebPImagePlugin", "PIL.GifImagePlugin"}
    assert not found & unwanted
    of_demo = {name for name in found if name.startswith("microcinema_core.demo")}
    assert of_demo <= {"microcinema_core.demo", "microcinema_core.demo.config"}  # the command lists their names


def test_no_module_of_the_paper_imports_the_bundled_models():
    program = """
from importlib import import_module
from pathlib import Path
import microcinema_core
for path in sorted(Path(microcinema_core.__path__[0]).rglob("*.py")):
    *folders, name = path.relative_to(microcinema_core.__path__[0]).with_suffix("").parts
    if "demo" not in folders and name != "__main__":
        import_module(".".join(["microcinema_core", *folders, *([] if name == "__init__" else [name])]))
"""
    found = imported(program)
    assert {"microcinema_core.cli", "microcinema_core.training.recipe", "microcinema_core.convert.initialise"} <= found
    assert not {name for name in found if name.startswith(("microcinema_core.demo", "comfy"))}


@pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")
def test_the_nodes_bring_little_to_the_host():
    """Beyond what the host has imported by itself, before it loads packs."""
    program = """
import importlib.util
pack, sys.argv = sys.argv[1], ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd, comfy_api.latest, execution, server, latent_preview, nodes
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
for name in before: del sys.modules[name]
import json, sys
"""
    found = imported(program, str(PACK), python=python_of(HOST), folder=HOST)
    assert "pack.nodes" in found and "pack.microcinema_core.training" not in found
    assert {name.partition(".")[0] for name in found} & (LIBRARIES | {"sympy"}) <= {"tokenizers"}
