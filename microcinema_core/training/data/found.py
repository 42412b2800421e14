"""Videos that were found and not yet probed: in a folder, by a table or with captions beside them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath

from ...errors import MicroCinemaError

SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".ogv",
    ".3gp", ".gif",
)  # fmt: skip
COLUMNS = ("videoid", "name")  # of WebVid's tables; page_dir and contentUrl may be missing
_LAYOUTS = ("{page_dir}/{videoid}", "{videoid}", "videos/{page_dir}/{videoid}", "videos/{videoid}")


@dataclass
class Found:
    """A video that was found. `reason` tells why it cannot be used, if that is known without opening it."""

    id: str
    caption: str = ""
    path: str = ""  # below the folder, or of the shard
    size: int = 0  # bytes
    modified: int = 0  # of the file or shard, in nanoseconds
    offset: int | None = None  # in a shard
    reason: str | None = None


def one_line(text: str) -> str:
    """A caption without line breaks and repeated blanks."""
    return " ".join(text.split())


def in_folder(folder: Path) -> Iterator[Found]:
    """The videos below a folder, hidden ones left out, in the order of their names. Each is known by its path without
    the suffix; its caption is in the file of that name that ends in .txt."""
    for path, name in _walk(str(folder), "", set()):
        if name.endswith("/"):
            yield Found(name, reason="a folder that cannot be read")
            continue
        stem, _ = os.path.splitext(path)
        id = os.path.splitext(name)[0]
        try:
            with open(f"{stem}.txt", encoding="utf-8-sig", errors="replace") as file:
                caption = one_line(file.read(100_000))
        except OSError:
            caption = ""
        yield _stat(folder, name, id, caption)


def in_table(folder: Path, table: Path) -> Iterator[Found]:
    """The videos in a folder that a table in CSV with WebVid's columns names, in its order.

    A video is looked for as page_dir/videoid.mp4 and videoid.mp4, in the folder and in its folder `videos`, and by the
    last part of contentUrl. Raises MicroCinemaError for a table that cannot be read.
    """
    layouts: list[tuple[str, str]] = list(product(SUFFIXES, _LAYOUTS))
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(line.replace("\0", "") for line in file)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise MicroCinemaError(
                    f"the table '{table}' has no column {' and no '.join(missing)}: its first line must name "
                    f"{', '.join(COLUMNS)} and may name page_dir, contentUrl"
                )
            for number, row in enumerate(rows, 1):
                id = (row["videoid"] or "").strip()
                if not id:
                    yield Found(f"row {number} of {table.name}", reason="no videoid")
                    continue
                name = _locate(folder, {key: (value or "") for key, value in row.items() if key}, layouts)
                if name is None:
                    yield Found(id, reason="no such file")
                else:
                    yield _stat(folder, name, id, one_line(row["name"] or ""))
    except OSError as error:
        raise MicroCinemaError(f"the table '{table}' cannot be read ({error.strerror}): name a CSV file") from error
    except csv.Error as error:
        raise MicroCinemaError(f"the table '{table}' is no CSV ({error}): check its quotes") from error


def _locate(folder: Path, row: dict[str, str], layouts: list[tuple[str, str]]) -> str | None:
    """The name of a row's video below the folder. The layout by which it is found is tried first for the next row."""
    row = {key: value.strip() for key, value in row.items()} | {"page_dir": row.get("page_dir", "").strip()}
    for index, (suffix, layout) in enumerate(layouts):
        name = (layout.format_map(row) + suffix).lstrip("/").replace("//", "/")
        if os.path.isfile(folder / name):
            layouts.insert(0, layouts.pop(index))
            return name
    url = PurePosixPath(row.get("contentUrl", "").partition("?")[0]).name
    for name in (url, f"videos/{url}") if url else ():
        if os.path.isfile(folder / name):
            return name
    return None


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Path and name below the folder of each video, and of each folder that cannot be read, with a "/" at its end. A
    folder that links lead to twice is entered once."""
    try:
        here = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir()) for entry in scan if not entry.name.startswith("."))
    except OSError:
        yield folder, prefix or "./"
        return
    if (here.st_dev, here.st_ino) in seen:
        return
    seen.add((here.st_dev, here.st_ino))
    for name, is_folder in entries:
        path = os.path.join(folder, name)
        if is_folder:
            yield from _walk(path, f"{prefix}{name}/", seen)
        elif os.path.splitext(name)[1].lower() in SUFFIXES:
            yield path, prefix + name


def _stat(folder: Path, name: str, id: str, caption: str) -> Found:
    try:
        status = os.stat(folder / name)
    except OSError as error:
        return Found(id, caption, name, reason=f"unreadable: {error.strerror}")
    if not os.path.isfile(folder / name):  # reading a pipe would block
        return Found(id, caption, name, reason="a pipe or device")
    if status.st_size == 0:
        return Found(id, caption, name, reason="an empty file")
    return Found(id, caption, name, status.st_size, status.st_mtime_ns)
