"""Each file appears whole or not at all, and one run at a time works in a folder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from microcinema_core.errors import MicroCinemaError
from microcinema_core.files import check_output, locked, part_name, whole_file

ROOT = Path(__file__).parents[2]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, umask):
    """Also of a file that safetensors writes, which gives it to its owner alone, and of one that is replaced."""
    before = os.umask(umask)
    try:
        for path in (tmp_path / "a.txt", tmp_path / "a.safetensors"):
            for _ in range(2):
                with whole_file(path) as part:
                    save_file({"a": torch.zeros(3)}, part) if path.suffix != ".txt" else part.write_text("a")
                assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)


def test_a_folder_appears_whole_too(tmp_path):
    with whole_file(tmp_path / "frames") as part:
        part.mkdir()
        (part / "1.png").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["frames", "1.png"]


# --- what dead processes left half written ---


@pytest.fixture
def parts(tmp_path) -> dict[str, Path]:
    """Files by whose they are: of a process that is dead, of this one, of another machine, and no part at all."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = part_name(tmp_path / "state.safetensors")
    machine = mine.name.split("part-")[1].partition(".")[0]
    names = {
        "dead": f".state.part-{machine}.{dead.pid}.safetensors", "mine": mine.name,
        "of another machine": f".state.part-00000000.{dead.pid}.safetensors", "whole": "state.safetensors",
    }  # fmt: skip
    made = {kind: tmp_path / name for kind, name in names.items()}
    for path in made.values():
        path.touch()
    return made


def hold(folder: Path) -> None:
    with locked(folder):
        pass


@pytest.mark.parametrize("act", [lambda folder: check_output(folder / "a.mp4", (".mp4",)), hold])
def test_only_the_parts_of_dead_processes_are_removed(tmp_path, parts, act):
    act(tmp_path)
    assert {kind for kind, path in parts.items() if path.exists()} == {"mine", "of another machine", "whole"}


def test_a_folder_of_parts_is_removed_too(tmp_path, parts):
    folder = parts["dead"].with_suffix("")
    folder.mkdir()
    (folder / "00001.png").touch()
    check_output(tmp_path / "a.mp4", (".mp4",))
    assert not folder.exists()


# --- one run at a time ---


def test_a_held_folder_is_refused_with_the_process_that_holds_it(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(MicroCinemaError, match=f"another run .process {os.getpid()}. works in .*--out"),
    ):
        hold(tmp_path)
    hold(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from microcinema_core.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_may_be_waited_for(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.3, holder.stdin.close).start()
        with locked(tmp_path, wait=True):
            assert holder.wait(10) == 0
    assert f"another run (process {holder.pid}) works in '{tmp_path}': waiting for it" in capsys.readouterr().out
