"""Files on disk: written completely or not at all, in folders that one run at a time can lock."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import MicroCinemaError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`, and rename that file to `path` at the end.

    The file appears complete or, on any error, not at all, and who may read it is what the umask says. Raises
    MicroCinemaError where it cannot be written, for example on a full disk.
    """
    part = part_name(Path(path))
    try:
        mode = _usual_mode(part)
        yield part
        if part.is_file() and stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)  # safetensors gives its files to their owner alone
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def check_output(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """Raise MicroCinemaError unless a file of that name, with one of `suffixes`, can be written. To be called before
    the content is computed. Also removes incomplete files of processes that were killed from the folder."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise MicroCinemaError(f"'{path}' is no name of a file that can be written: end it in {' or '.join(suffixes)}")
    try:
        if path.is_dir():
            raise MicroCinemaError(f"'{path}' is a folder: give the output another name")
        if not path.parent.is_dir():
            raise MicroCinemaError(f"the output folder '{path.parent}' does not exist: create it or choose another one")
        with suppress(FileNotFoundError):
            path.lstat()  # the name may be too long although the temporary one is not
        part = part_name(path)
        part.touch()  # permissions alone are no proof: read-only disks, full disks, the administrator
        part.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise MicroCinemaError(
            f"'{path}' cannot be written ({_reason(error)}): choose another name or folder"
        ) from error
    remove_stale(path.parent)


def make_folder(folder: Path) -> None:
    """Make the folder and its parents unless it exists. Raises MicroCinemaError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # OSError: a file of that name, no permission. ValueError: a name with a NUL
        raise MicroCinemaError(
            f"the folder {str(folder)!r} cannot be made ({_reason(error)}): choose another one"
        ) from error


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process, and remove incomplete files of processes that were killed from it.

    The lock is the operating system's, which releases it at the end of the process in any case. Where another process
    has the lock, raises MicroCinemaError, or waits for it with `wait`.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    path = folder / "run.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = ""
        with suppress(OSError, ValueError):  # Windows does not allow to read a locked file
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
        remove_stale(folder)
        yield
    finally:
        lock.release()


def cannot_write(path: str | Path, error: Exception) -> MicroCinemaError:
    """The MicroCinemaError for a file that could not be written because of `error`."""
    return MicroCinemaError(
        f"'{path}' could not be written ({_reason(error)}): make room on the disk, or choose another folder"
    )


def part_name(path: Path) -> Path:
    """The temporary name of a file while it is written: it contains the machine, because folders may be shared, and the
    process."""
    stem = os.fsdecode(os.fsencode(path.stem)[:150])
    return path.with_name(f".{stem}.part-{_machine()}.{os.getpid()}{path.suffix}")


def remove_stale(folder: Path) -> None:
    """Remove the incomplete files in a folder whose processes, of this machine, have ended."""
    for path in folder.glob(f".*.part-{_machine()}.*"):
        match = re.fullmatch(r"\..+\.part-[0-9a-f]{8}\.(\d+)(\.\w+)?", path.name)
        if match and not _is_running(int(match[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _usual_mode(path: Path) -> int:
    """The mode of a new file of that name. The umask itself can only be read by changing it, for all threads."""
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return stat.S_IMODE(mode)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user
        return True
    return True


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error
