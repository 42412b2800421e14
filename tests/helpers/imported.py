"""The modules that a program imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = {
    "PIL", "av", "diffusers", "filelock", "numpy", "safetensors", "tokenizers", "torch", "kornia", "tqdm",
    "transformers",
}  # fmt: skip


def imported(program: str, *arguments: str, python: Path | str = sys.executable, folder: Path = ROOT) -> set[str]:
    """The names of all modules that a program has when it prints them as its last line."""
    command = [str(python), "-c", f"import json, sys\n{program}\nprint(json.dumps(list(sys.modules)))", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def imported_by_info(*options: str) -> set[str]:
    return imported("from microcinema_core.cli import main\nmain()", "info", *options)


def imported_at_the_first_step(folder: Path, *options: str) -> set[str]:
    """What `microcinema animate` has imported when the first step of sampling begins."""
    program = """
from contextlib import contextmanager
from microcinema_core import cli

@contextmanager
def first_step(*_):
    def stop(done, total):
        raise KeyboardInterrupt
    yield stop

cli.progress_bar = first_step
assert cli.main() == 130
"""
    photo = str(ROOT / "pictures" / "photo.jpg")
    command = ["animate", photo, "--prompt", "the camera zooms in", "--size", "32x32", "-o", str(folder / "a.mp4")]
    return imported(program, *command, *options)
