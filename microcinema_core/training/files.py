"""A run's files: one run at a time in a folder, each file whole or not at all, nothing left by a run that died."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import MicroCinemaError

_HALF_WRITTEN = re.compile(r".+\.part|\..+\.\d+\.(png|safetensors)")  # ours, and those of images.whole_file


def make_folder(folder: Path) -> None:
    """Raises MicroCinemaError where there cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a file of that name, no permission; a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise MicroCinemaError(f"the folder {str(folder)!r} cannot be made ({reason}): choose another one") from error


@contextmanager
def locked(folder: Path, *, wait: bool = False, keep: str | None = None) -> Iterator[None]:
    """Hold a folder for this process, and clear it of what dead ones left half written, except `keep`.

    The lock is the operating system's: it ends with the process, however that ends. Where another one holds it, raise
    MicroCinemaError, or `wait`.
    """
    make_folder(folder)
    path = folder / "run.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = ""
        with suppress(OSError, ValueError):  # Windows lets nobody read it
            holder = f" (process {int(path.read_text())})"
        if not wait:
            raise MicroCinemaError(
                f"another run{holder} works in '{folder}': wait for it, stop it, or choose another folder with --out"
            ) from error
        print(f"another run{holder} works in '{folder}': waiting for it", flush=True)
        lock.acquire()
    except OSError as error:
        raise MicroCinemaError(f"'{path}' cannot be written ({error.strerror}): choose another folder") from error
    try:
        with suppress(OSError):
            path.write_text(str(os.getpid()))
        for left in folder.iterdir():
            if _HALF_WRITTEN.fullmatch(left.name) and left.name != keep:
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` with this process's number in it, renamed to it at the end: whole or not at all. Raises
    MicroCinemaError where the disk is full, say."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with whole(path) as part:
        save_file(tensors, part, metadata)


def cannot_write(path: Path, error: Exception) -> MicroCinemaError:
    reason = getattr(error, "strerror", None) or error
    return MicroCinemaError(
        f"'{path}' could not be written ({reason}): make room on the disk, then run the same command to go on"
    )
