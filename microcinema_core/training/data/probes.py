"""Probes many videos in threads. What was found out is kept in a file, so that a video is probed once.

A line of the file is a JSON object: the key of a video (a hash of its path, size and date), and what clips.probe
returned, or the reason why it is of no use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...files import cannot_write, make_folder
from .clips import Probe, Unusable, probe
from .found import Found
from .shards import Part

Outcome = Probe | str  # a reason
_CHUNK = 2048  # videos between two writings


@contextmanager
def opened(folder: Path, path: str, offset: int | None, size: int) -> Iterator[Path | BinaryIO]:
    """A video's file, or its part of a shard."""
    if offset is None:
        yield folder / path
    else:
        with Part(folder / path, offset, size) as part:
            yield part  # pyright: ignore[reportReturnType]


def probe_all(
    found: Iterable[Found], folder: Path, cache: Path | None, threads: int, done: Callable[[int], None]
) -> Iterator[tuple[Found, Outcome]]:
    """Each video with what its probe tells, in the given order. `done` is called with the number of videos so far."""
    records = _Records(cache / "probes.jsonl" if cache else None)
    found, count = iter(found), 0
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(found, _CHUNK)):
            keys = [_key(video) for video in chunk]
            known = records.find(keys)
            new = [index for index, outcome in enumerate(known) if outcome is None]
            outcomes = pool.map(lambda index: _outcome(chunk[index], folder), new)
            for index, outcome in zip(new, outcomes, strict=True):
                known[index] = outcome
                if chunk[index].reason is None:
                    records.add(keys[index], outcome)
                done(count + index + 1)
            records.flush()
            count += len(chunk)
            done(count)
            yield from ((video, outcome) for video, outcome in zip(chunk, known, strict=True) if outcome is not None)
    records.close()


def _outcome(video: Found, folder: Path) -> Outcome:
    if video.reason is not None:
        return video.reason
    try:
        with opened(folder, video.path, video.offset, video.size) as source:
            return probe(source)
    except Unusable as error:
        return str(error)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _key(video: Found) -> int:
    text = f"{Path(video.path).name if video.offset is not None else video.path}\0{video.size}\0{video.modified}"
    digest = hashlib.blake2b(f"{text}\0{video.offset}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") if video.reason is None else 0


class _Records:
    """The file of outcomes: of the old ones only the keys and places are in memory."""

    def __init__(self, path: Path | None):
        self._path, self._file, self._keys, self._places = path, None, np.empty(0, np.uint64), np.empty(0, np.int64)
        if path is None:
            return
        make_folder(path.parent)
        try:
            self._file = path.open("a+b")
            self._load(self._file)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _load(self, file: BinaryIO) -> None:
        file.seek(0)
        keys, places, place, line = [], [], 0, b"\n"
        for line in file:
            key = line[8:24]  # of {"key":"…
            if line.endswith(b"}\n") and line.startswith(b'{"key":"'):
                keys.append(int(key, 16))
                places.append(place)
            place += len(line)
        if not line.endswith(b"\n"):  # the process was killed while it wrote this line
            file.write(b"\n")
        keys, places = np.array(keys, np.uint64), np.array(places, np.int64)
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]

    def find(self, keys: list[int]) -> list[Outcome | None]:
        wanted = np.array(keys, np.uint64)
        at = np.searchsorted(self._keys, wanted)
        outcomes: list[Outcome | None] = []
        for key, index in zip(wanted, at, strict=True):
            hit = index < len(self._keys) and self._keys[index] == key
            outcomes.append(self._read(int(self._places[index])) if hit else None)
        return outcomes

    def _read(self, place: int) -> Outcome | None:
        assert self._file
        self._file.seek(place)
        try:
            row = json.loads(self._file.readline())
            return row["reason"] if "reason" in row else Probe(*row["probe"])
        except (ValueError, TypeError, KeyError):
            return None

    def add(self, key: int, outcome: Outcome) -> None:
        if self._file:
            value = {"reason": outcome} if isinstance(outcome, str) else {"probe": astuple(outcome)}
            row = json.dumps({"key": f"{key:016x}", **value}, separators=(",", ":"))
            self._write(row.encode() + b"\n")

    def _write(self, data: bytes) -> None:
        assert self._file and self._path
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(data)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def flush(self) -> None:
        if self._file and self._path:
            try:
                self._file.flush()
            except OSError as error:
                raise cannot_write(self._path, error) from error

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()
