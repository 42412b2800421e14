"""The command as a person types it."""

from __future__ import annotations

from pathlib import Path

from microcinema_core.cli import main

ROOT = Path(__file__).parents[2]
PHOTO = str(ROOT / "pictures" / "photo.jpg")
PROMPT = "the camera zooms in"


def animate(output: Path, *options: str) -> Path:
    command = ["animate", PHOTO, "--prompt", PROMPT, "-o", str(output), "--device", "cpu"]
    assert main([*command, *options]) == 0
    return output


def assert_one_sentence(capsys, command: list[str], words: list[str], folder: Path) -> None:
    """It is refused with exit code 2 and one sentence that holds these words, and leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("microcinema: ") and err.count("\n") == 1 and err.endswith("\n")
    assert [word for word in words if word not in err] == []
    assert sorted(folder.rglob("*")) == before
