"""A command imports what it needs: no library before its use, for importing is most of the time a person waits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from host import HOST, PACK, python_of

ROOT = Path(__file__).parents[1]
LIBRARIES = {"PIL", "av", "diffusers", "numpy", "safetensors", "tokenizers", "torch", "tqdm", "transformers"}


def imported(program: str, *arguments: str, python: Path | str = sys.executable, folder: Path = ROOT) -> set[str]:
    """The names of all modules that a program has when it prints them as its last line."""
    command = [str(python), "-c", f"import json, sys\n{program}\nprint(json.dumps(list(sys.modules)))", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("options", [["--help"], ["animate", "--help"], ["nonsense"], ["animate", "--steps", "0"]])
def test_help_and_mistyped_options_need_no_library(options):
    program = "from microcinema_core.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not imported(program, *options) & LIBRARIES


@pytest.mark.parametrize("options", [["info"], ["info", "demo-interpolation", "--json"], ["info", "nobody"]])
def test_info_of_a_file_reads_its_header_alone(options):
    found = imported("from microcinema_core.cli import main\nmain()", *options)
    assert found & LIBRARIES <= {"numpy", "safetensors"}


def test_a_clip_begins_without_what_writes_it(tmp_path):
    """All that is there at the first step; what comes with torch._dynamo takes as long as torch itself."""
    program = """
from contextlib import contextmanager
from microcinema_core import cli

@contextmanager
def first_step(*_):
    def stop(done, total):
        raise KeyboardInterrupt
    yield stop

cli._progress = first_step
assert cli.main() == 130
"""
    photo = str(ROOT / "pictures" / "photo.jpg")
    options = ["--prompt", "the camera zooms in", "--size", "32x32", "-o", str(tmp_path / "a.mp4")]
    found = imported(program, "animate", photo, *options)
    assert {"torch", "tokenizers", "microcinema_core.samplers"} <= found
    unwanted = {"transformers", "diffusers", "av", "sympy", "torch._dynamo", "torch._inductor"}
    unwanted |= {"microcinema_core.training", "microcinema_core.sources", "PIL.WebPImagePlugin", "PIL.GifImagePlugin"}
    assert not found & unwanted


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
