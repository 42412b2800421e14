"""Pictures in and out: any file Pillow opens becomes a tensor; a clip becomes a sheet of its frames.

A picture is (3, H, W), a clip (t, 3, h, w): float32 RGB in [0, 1].
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from .errors import MicroCinemaError

LONG_SIDE = 384  # of a clip whose size nobody names
MOST_PIXELS = 2**23  # a larger picture is reduced while it is read: no model looks at more, and floats take 12 bytes


def load_picture(path: str | Path) -> torch.Tensor:
    """The picture as (3, H, W), turned upright by its EXIF tag, laid on white where it is transparent.

    Grey, palette, CMYK, 16-bit and float pictures become RGB; of an animation the first frame is read. More than
    `MOST_PIXELS` pixels are reduced to about that many. Raises MicroCinemaError for a missing or broken file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise MicroCinemaError(f"'{path}' is a folder: name a picture in it")
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise MicroCinemaError(f"'{path}' is a pipe or a device: save the picture as a file first")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large is welcome, see MOST_PIXELS; of broken tags the pixels are whole
            with Image.open(path) as image:
                return _to_tensor(_upright(image))
    except MicroCinemaError:
        raise
    except FileNotFoundError as error:
        raise MicroCinemaError(f"the picture '{path}' does not exist: check its name and folder") from error
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise MicroCinemaError(f"'{path}' has more than {most} million pixels: save a smaller copy of it") from error
    except Exception as error:  # a broken file raises whatever its format's decoder stumbles over
        message = f"'{path}' is broken or no picture that Pillow can read: save it anew as PNG or JPEG"
        raise MicroCinemaError(message) from error


def _upright(image: Image.Image) -> Image.Image:
    """Mode "RGB", or "F" in [0, 1] for deep grey; turned upright and of at most about MOST_PIXELS pixels."""
    share = (MOST_PIXELS / (image.width * image.height)) ** 0.5
    if share < 1:
        image.draft(None, (round(image.width * share), round(image.height * share)))  # JPEG decodes 1/2, 1/4, 1/8
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep_grey(image)
    elif image.mode != (mode := "RGBA" if image.has_transparency_data else "RGB"):
        image = image.convert(mode)  # a copy, and here that may be half a gigabyte
    share = (MOST_PIXELS / (image.width * image.height)) ** 0.5
    if share < 1:
        size = max(1, round(image.width * share)), max(1, round(image.height * share))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats (modes "I;16", "I", "F") as mode "F" in [0, 1]; to "RGB" Pillow would clip it.

    White is 65535 for whole numbers and 1, else 255, for floats; beyond that the brightest pixel is white.
    """
    values = np.nan_to_num(np.asarray(image.convert("F")), posinf=0.0)
    brightest = values.max()
    white = 65535.0 if image.mode != "F" else 1.0 if brightest <= 1 else 255.0
    return Image.fromarray(values / max(white, brightest))


def _to_tensor(image: Image.Image) -> torch.Tensor:
    values = np.asarray(image, dtype=np.float32)
    values = np.repeat(values[..., None], 3, axis=2) if image.mode == "F" else values / 255
    return torch.from_numpy(values).clamp(0, 1).permute(2, 0, 1).contiguous()


def size_from(picture: torch.Tensor, factor: int, least: int = 64) -> tuple[int, int]:
    """Width and height for a clip of a picture (3, H, W): its shape, the long side LONG_SIDE, both sides multiples of
    `factor` (the autoencoder's), none below `least`."""
    _, rows, columns = picture.shape
    scale = LONG_SIDE / max(rows, columns) / factor
    least = -(-least // factor)
    width, height = (max(least, round(side * scale)) * factor for side in (columns, rows))
    return width, height


def fit(picture: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The centre of a picture (3, H, W) at the shape of width x height, resized to (3, height, width), antialiased."""
    _, rows, columns = picture.shape
    cut_rows = min(rows, max(1, round(columns * height / width)))
    cut_columns = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - cut_rows) // 2, (columns - cut_columns) // 2
    picture = picture[:, top : top + cut_rows, left : left + cut_columns]
    if picture.shape[1:] == (height, width):
        return picture
    picture = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
    return picture.clamp(0, 1)  # bicubic overshoots at edges


def sheet(frames: Iterable[torch.Tensor], path: str | Path) -> None:
    """Write all frames (t, 3, h, w) side by side as one PNG of t·w x h pixels, as the paper's figures show them."""
    pixels = np.concatenate([to_bytes(frame) for frame in frames], axis=1)
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")


def to_bytes(picture: torch.Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] to (h, w, 3) uint8, rounded."""
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def to_words(picture: torch.Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] to (h, w, 3) uint16, rounded."""
    values = (picture.detach().double().clamp(0, 1) * 65535).round().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(values.astype(np.uint16))


def check_output(path: str | Path, suffixes: tuple[str, ...] = (".png",)) -> None:
    """Raise MicroCinemaError unless a file of that name can be written, before any time is spent on its content. What
    a killed process left half written beside it is removed."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise MicroCinemaError(f"'{path}' is no name of a file that can be written: end it in {' or '.join(suffixes)}")
    try:
        if path.is_dir():
            raise MicroCinemaError(f"'{path}' is a folder: give the output another name")
        if not path.parent.is_dir():
            raise MicroCinemaError(f"the output folder '{path.parent}' does not exist: create it or choose another one")
        with suppress(FileNotFoundError):
            path.lstat()  # a name may be too long although its part's is not
        part = _part(path)
        part.touch()  # permissions alone do not tell: read-only disks, full disks, the administrator
        part.unlink()
    except (OSError, ValueError) as error:  # a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise MicroCinemaError(f"'{path}' cannot be written ({reason}): choose another name or folder") from error
    _remove_stale(path.parent)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end: the file appears whole or, on any error, not at all."""
    part = _part(Path(path))
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise MicroCinemaError(f"'{path}' could not be written ({reason}): choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Names the process that writes it, and its machine, for folders are shared."""
    stem = os.fsdecode(os.fsencode(path.stem)[:150])
    return path.with_name(f".{stem}.part-{_machine()}.{os.getpid()}{path.suffix}")


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _remove_stale(folder: Path) -> None:
    """Remove what processes of this machine that are dead now left half written in a folder."""
    for left in folder.glob(f".*.part-{_machine()}.*"):
        match = re.fullmatch(r"\..+\.part-[0-9a-f]{8}\.(\d+)(\.\w+)?", left.name)
        if match and not _runs(int(match[1])):
            with suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _runs(process: int) -> bool:
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
