"""Shards in the form of WebDataset: tar files in which neighbouring files of one name make a sample.

A shard is indexed once, so that every sample can be read alone: a run that is resumed goes on with the sample it would
have taken. The index is written beside the shard where the folder allows it.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from glob import glob
from itertools import groupby
from pathlib import Path

from ...errors import MicroCinemaError
from ...files import whole_file
from .found import SUFFIXES, Found, one_line

_VERSION = 1  # of the index
_MAX_TEXT = 2**20  # bytes of a caption's file


class Part(io.RawIOBase):
    """The bytes of a file from `offset` on, `size` of them, as a file of its own."""

    def __init__(self, path: Path, offset: int, size: int):
        super().__init__()
        self._file, self._offset, self._size, self._position = path.open("rb", buffering=0), offset, size, 0

    def readable(self) -> bool:
        """Yes: FFmpeg reads it."""
        return True

    def seekable(self) -> bool:
        """Yes: FFmpeg goes to the index of an mp4, which may be at its end."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, as in any file."""
        base = (0, self._position, self._size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The place, in bytes."""
        return self._position

    def readinto(self, buffer) -> int:
        """Read as much as fits and is there."""
        count = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(memoryview(buffer)[:count]) or 0
        self._position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def expand(shards: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that a pattern such as clips-{0000..0099}.tar or clips-*.tar means, or a list of such.

    Raises MicroCinemaError for one that does not exist.
    """
    patterns = [shards] if isinstance(shards, str | Path) else list(shards)
    paths = []
    for pattern in patterns:
        names = list(_braces(str(pattern)))
        for name in names:
            found = sorted(glob(name)) if not os.path.exists(name) and re.search(r"[*?\[]", name) else [name]
            if not found:
                raise MicroCinemaError(f"there is no shard '{name}': check the pattern")
            paths += [Path(path) for path in found]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise MicroCinemaError(f"the shard '{missing[0]}'{more} does not exist: check the names of the shards")
    return paths


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match[1], match[2]
    for number in range(int(first), int(last) + 1):
        middle = f"{number:0{len(first)}}" if len(first) == len(last) or first.startswith("0") else str(number)
        for rest in _braces(pattern[match.end() :]):
            yield pattern[: match.start()] + middle + rest


def in_shard(path: Path) -> Iterator[Found]:
    """The videos in a shard. Each is known by the videoid in its json, else by its name up to the first dot; its
    caption is in its txt, else in its json. Raises MicroCinemaError for a compressed file."""
    status = path.stat()
    index = path.with_name(f"{path.name}.index.jsonl")
    head = {"version": _VERSION, "size": status.st_size, "modified": status.st_mtime_ns}
    rows = _indexed(index, head)
    if rows is None:
        rows = list(_read(path))
        lines = (json.dumps(row) + "\n" for row in [head, *map(asdict, rows)])
        with suppress(MicroCinemaError), whole_file(index) as part, part.open("w") as file:
            file.writelines(lines)  # suppressed for a folder that may not be written to
    for row in rows:
        row.path, row.modified = str(path), status.st_mtime_ns
        yield row


def _indexed(index: Path, head: dict[str, int]) -> list[Found] | None:
    """What the index of a shard says, if there is one of this very shard."""
    with suppress(OSError, ValueError, TypeError), index.open() as file:
        if json.loads(file.readline()) == head:
            return [Found(**json.loads(line)) for line in file]
    return None


def _read(path: Path) -> Iterator[Found]:
    """The samples of a shard, as far as it can be read, with a last one for what cannot."""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby(_members(tar), lambda member: member[0]):
                yield _sample(tar, key, {suffix: member for _, suffix, member in members})
    except (tarfile.TarError, OSError, EOFError) as error:
        with path.open("rb") as file:
            if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
                raise MicroCinemaError(
                    f"the shard '{path}' is compressed: unpack it, a sample in it cannot be read alone"
                ) from error
        yield Found(str(path), reason=f"a broken shard: {error}")


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, suffix and member of each file, by WebDataset's rule."""
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # of many files the library would keep all
        match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)
        if match and member.isfile():
            yield match[1], match[2].lower(), member


def _sample(tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> Found:
    texts = {suffix: _text(tar, member) for suffix, member in members.items() if suffix in ("txt", "json")}
    try:
        details = json.loads(texts.get("json", "{}"))
    except (ValueError, RecursionError):
        details = {}
    details = details if isinstance(details, dict) else {}
    caption = one_line(texts.get("txt", "")) or one_line(str(details.get("caption") or details.get("name") or ""))
    id = str(details.get("videoid") or key)
    for suffix, member in members.items():
        if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
            reason = None if member.size else "an empty file"
            return Found(id, caption, "", member.size, 0, member.offset_data, reason)
    return Found(id, caption, reason="no video in the sample")


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    return file.read(_MAX_TEXT).decode("utf-8-sig", errors="replace") if file else ""
