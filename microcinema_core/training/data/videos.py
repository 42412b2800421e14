"""The videos of a run: from a folder with a table or captions beside the files, or from WebDataset's shards.

Videos are sorted by their ids, so that a folder with a table and shards of the same videos give the same order. The
list of a set is a file: of ten million videos a process keeps a few numbers each in memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ...errors import MicroCinemaError
from .clips import Probe, Unusable, read_clip
from .found import Found, in_folder, in_table
from .probes import opened, probe_all
from .shards import expand, in_shard

Progress = Callable[[int, int], None]  # videos that were probed, and all


@dataclass(frozen=True)
class Video:
    """A video for training: what is known of it, and where it is."""

    id: str
    caption: str
    path: Path  # of its file, or of the shard that holds it
    offset: int | None  # in the shard, in bytes
    size: int  # in bytes
    known: Probe

    @property
    def width(self) -> int:
        """In pixels, as shown."""
        return self.known.width

    @property
    def height(self) -> int:
        """In pixels, as shown."""
        return self.known.height

    @property
    def duration(self) -> float:
        """In seconds."""
        return self.known.duration

    def opened(self) -> AbstractContextManager[Path | BinaryIO]:
        """The source that clips.read_clip reads, until the end of the block."""
        return opened(self.path.parent, self.path.name, self.offset, self.size)


class VideoSet:
    """Videos, sorted by id, and those that cannot be used, with the reasons.

    `identity` is a hash of the ids, captions and file sizes; `shapes` (n, 2) holds the widths and heights. A set can be
    sent to other processes, which read the list that this one wrote.
    """

    def __init__(self, found: Iterable[Found], folder: Path, *, cache: Path | None, captions: bool, threads: int | None,
                 progress: Progress | None):  # fmt: skip
        self.folder, self._map = folder, None
        self.skipped: dict[str, str] = {}
        handle, self._path = tempfile.mkstemp(prefix="microcinema-videos-", suffix=".jsonl")
        weakref.finalize(self, _remove, self._path, os.getpid())
        with os.fdopen(handle, "wb") as file:
            ids, places, numbers = self._collect(
                file, found, cache, captions, threads or 2 * (os.cpu_count() or 1), progress
            )
        order = self._without_repeated(ids, sorted(range(len(ids)), key=ids.__getitem__))
        ends = np.array([*places, 0], np.int64)
        self._starts, self._ends = ends[:-1][order], ends[1:][order] if len(ends) > 1 else ends[:0]
        self.shapes = np.array(numbers, np.int32).reshape(-1, 2)[order]
        self.identity = self._identity()

    @classmethod
    def from_folder(
        cls, folder: str | Path, table: str | Path | None = None, *, cache: Path | None = None, captions: bool = True,
        threads: int | None = None, progress: Progress | None = None,
    ) -> VideoSet:  # fmt: skip
        """The videos below a folder, with the captions of files beside them, or those that a CSV file names (found.py).

        In the folder `cache` it is kept what the probes of the files found out; with `captions` videos without one are
        skipped; `progress` is called while they are probed. Raises MicroCinemaError where no video is left, or the
        folder or table cannot be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MicroCinemaError(f"'{folder}' is no folder: name the folder of the videos")
        found = in_table(folder, Path(table)) if table else in_folder(folder)
        videos = cls(found, folder, cache=cache, captions=captions, threads=threads, progress=progress)
        return videos._checked(f"'{folder}'" + (f" by '{table}'" if table else ""))

    @classmethod
    def from_shards(
        cls, shards: str | Path | Iterable[str | Path], *, cache: Path | None = None, captions: bool = True,
        threads: int | None = None, progress: Progress | None = None,
    ) -> VideoSet:  # fmt: skip
        """The videos in tar files, given as a list or a pattern such as clips-{0000..0099}.tar (shards.py).

        The other arguments and errors are those of from_folder.
        """
        paths = [path.absolute() for path in expand(shards)]
        found = chain.from_iterable(map(in_shard, paths))
        videos = cls(found, Path("/"), cache=cache, captions=captions, threads=threads, progress=progress)
        return videos._checked(f"{len(paths)} shards")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Video:
        row = self._row(index)
        path = self.folder / row["path"]
        return Video(row["id"], row["caption"], path, row["offset"], row["size"], Probe(*row["probe"]))

    def __iter__(self) -> Iterator[Video]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None, "skipped": {}}  # every worker of the loader gets a copy

    def reasons(self) -> dict[str, int]:
        """How many videos were skipped for each reason, the most frequent first."""
        return dict(Counter(reason.partition(":")[0] for reason in self.skipped.values()).most_common())

    def clip(
        self, index: int, start: float, frames: int, fps: float, size: tuple[int, int],
        crop: tuple[float, float] = (0.5, 0.5),
    ) -> Tensor:  # fmt: skip
        """A clip of a video, as clips.read_clip returns it. Raises Unusable."""
        video = self[index]
        with video.opened() as source:
            return read_clip(source, start, frames, fps, size, crop=crop, known=video.known)

    def random_clip(
        self, index: int, generator: torch.Generator, frames: int, fps: float, size: tuple[int, int],
        crop: tuple[float, float] = (0.5, 0.5), tries: int = 4,
    ) -> Tensor:  # fmt: skip
        """A clip from a random place of a video, from another place where it is cut or damaged there, `tries` times.

        The places are drawn before, so that the generator always goes on by the same numbers. Raises Unusable.
        """
        starts, reason = torch.rand(tries, generator=generator, dtype=torch.float64).tolist(), ""
        for start in starts:
            try:
                return self.clip(index, start, frames, fps, size, crop)
            except Unusable as error:
                if not error.elsewhere:
                    raise
                reason = str(error)
        raise Unusable(f"{reason.partition(':')[0]} in each of {tries} tries")

    # --- the list ---

    def _collect(self, file, found, cache, captions, threads, progress) -> tuple[list[str], list[int], list[int]]:
        """Probe what was found and write those of use into the list. Returns their ids, places in it, and sizes."""
        ids, places, numbers = [], [], []
        with tempfile.TemporaryFile() as spool:
            total = 0
            for video in found:
                if video.reason is None and captions and not video.caption:
                    video.reason = "no caption"
                if video.reason is not None:
                    self._skip(video.id, video.path, video.reason)
                    continue
                spool.write(json.dumps(asdict(video)).encode() + b"\n")
                total += 1
            spool.seek(0)
            waiting = (Found(**json.loads(line)) for line in spool)
            done = (lambda count: progress(count, total)) if progress else (lambda count: None)
            place = 0
            for video, outcome in probe_all(waiting, self.folder, cache, threads, done):
                if isinstance(outcome, str):
                    self._skip(video.id, video.path, outcome)
                    continue
                row = {"id": video.id, "caption": video.caption, "path": video.path, "offset": video.offset}
                line = json.dumps({**row, "size": video.size, "probe": astuple(outcome)}).encode() + b"\n"
                file.write(line)
                ids.append(video.id)
                places.append(place)
                numbers += [outcome.width, outcome.height]
                place += len(line)
        return ids, places, numbers

    def _skip(self, id: str, path: str, reason: str) -> None:
        self.skipped[f"{id} ({path})" if id in self.skipped else id] = reason

    def _without_repeated(self, ids: list[str], order: list[int]) -> np.ndarray:
        kept = []
        for index in order:
            if kept and ids[kept[-1]] == ids[index]:
                self._skip(f"{ids[index]} (again)", str(index), "another video has the same id")
            else:
                kept.append(index)
        return np.array(kept, np.int64)

    def _identity(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            row = self._row(index)
            text = json.dumps([row["id"], row["caption"], row["size"]])
            digest.update(text.encode() + b"\n")
        return digest.hexdigest()[:32]

    def _row(self, index: int) -> dict[str, Any]:
        if self._map is None:
            with open(self._path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, end = int(self._starts[index]), int(self._ends[index])
        return json.loads(self._map[start : end or len(self._map)])

    def _checked(self, where: str) -> VideoSet:
        if len(self):
            return self
        reasons = ", ".join(f"{reason} ({count})" for reason, count in self.reasons().items())
        raise MicroCinemaError(
            f"there is no usable video in {where}"
            + (f", skipped: {reasons}: mend these files or name others" if reasons else ": name a folder with videos")
        )


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:
        Path(path).unlink(missing_ok=True)
