"""The example picture of the templates, in the host's input folder."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import folder_paths

NAME = "microcinema-example.jpg"
PICTURE = Path(__file__).parents[1] / "pictures" / "photo.jpg"


def provide_example() -> None:
    """Copy the picture, unless it exists. It appears complete or not at all. Errors of writing are only logged."""
    target = Path(folder_paths.get_input_directory()) / NAME
    part = target.with_name(f".{NAME}.{os.getpid()}.part")
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PICTURE, part)
            os.replace(part, target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        logging.warning("MicroCinema: the templates' example picture could not be put into the input folder: %s", error)
