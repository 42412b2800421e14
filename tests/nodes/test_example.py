"""The first template finds its picture on every host, also where the input folder is new, read-only or in use."""

import json
import os
import subprocess

import pytest
from host import HOST, PACK, Server, api_form, python_of

NAME = "microcinema-example.jpg"


@pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")
def test_the_first_template_runs_on_a_new_host_with_an_empty_input_folder(tmp_path):
    server = Server(HOST, tmp_path / "base")
    try:
        assert [path.name for path in (server.base / "input").glob("*.*")] == [NAME]
        made = api_form("animate-a-picture")
        assert made["1"]["inputs"]["image"] == NAME
        outputs = server.run(made)
        assert all(path.is_file() for output in outputs.values() for path in server.files(output.get("images", [])))
    finally:
        server.stop()


def provide(folder) -> tuple[list[str], bytes, str]:
    """Call it with this input folder: the files there, the picture's bytes, what was logged."""
    code = """
import sys; sys.argv = ["main.py", "--cpu"]; sys.path.insert(0, "")
import comfy.options; comfy.options.enable_args_parsing()
import importlib.util, folder_paths
folder_paths.set_input_directory(FOLDER)
spec = importlib.util.spec_from_file_location("example", PACK + "/nodes/example.py")
example = importlib.util.module_from_spec(spec); spec.loader.exec_module(example)
example.provide_example()
"""
    code = f"PACK, FOLDER = {str(PACK)!r}, {str(folder)!r}\n{code}"
    options = {"cwd": HOST, "env": os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, "capture_output": True, "text": True}
    done = subprocess.run([python_of(HOST), "-c", code], **options)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return names, (folder / NAME).read_bytes() if NAME in names else b"", done.stderr


@pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")
def test_the_picture_is_brought_once_and_what_is_there_is_kept(tmp_path):
    names, found, _ = provide(tmp_path / "made" / "input")
    assert (names, found) == ([NAME], (PACK / "pictures" / "photo.jpg").read_bytes())
    (tmp_path / NAME).write_bytes(b"a person's own")
    assert provide(tmp_path)[1] == b"a person's own"
    (tmp_path / "file").write_text("no folder")
    names, _, logged = provide(tmp_path / "file")
    assert names == [] and "example picture could not be put into the input folder" in logged


def test_every_template_that_loads_a_picture_names_the_one_the_pack_brings():
    for path in (PACK / "workflows" / "api").glob("*.json"):
        for node in json.loads(path.read_text()).values():
            if node["class_type"] == "LoadImage":
                assert node["inputs"]["image"] == NAME, path.name
