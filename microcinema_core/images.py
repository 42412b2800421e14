"""Pictures in and out: any file Pillow opens becomes a tensor; a clip becomes a contact sheet of its frames.

A picture is (3, H, W), a clip (t, 3, h, w): float32 RGB in [0, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from .errors import MicroCinemaError
from .files import whole_file

LONG_SIDE = 384  # pixels, of a clip whose size is not given
MAX_PIXELS = 2**23  # larger pictures are reduced when they are read: no model needs more, and a pixel takes 12 bytes


def load_picture(path: str | Path) -> torch.Tensor:
    """Read a picture as (3, H, W), rotated as its EXIF tag says, on a white background where it is transparent.

    Grey, palette, CMYK, 16-bit and float pictures become RGB; of an animation only the first frame is read. A picture
    of more than `MAX_PIXELS` pixels is reduced to about that many. Raises MicroCinemaError for a missing or broken
    file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise MicroCinemaError(f"'{path}' is a folder: name a picture in it")
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise MicroCinemaError(f"'{path}' is a pipe or a device: save the picture as a file first")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, see MAX_PIXELS, and of broken tags, which do no harm
            with Image.open(path) as image:
                return _to_tensor(_upright(image))
    except MicroCinemaError:
        raise
    except FileNotFoundError as error:
        raise MicroCinemaError(f"the picture '{path}' does not exist: check its name and folder") from error
    except Image.DecompressionBombError as error:
        assert Image.MAX_IMAGE_PIXELS is not None  # without a limit Pillow does not raise this error
        maximum = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise MicroCinemaError(f"'{path}' has more than {maximum} million pixels: save a smaller copy of it") from error
    except Exception as error:  # Pillow's decoders raise errors of any type for a broken file
        message = f"'{path}' is broken or no picture that Pillow can read: save it anew as PNG or JPEG"
        raise MicroCinemaError(message) from error


def _upright(image: Image.Image) -> Image.Image:
    """The picture in mode "RGB", or "F" in [0, 1] for grey of more than 8 bits, rotated as its EXIF tag says and
    reduced to about MAX_PIXELS pixels."""
    share = (MAX_PIXELS / (image.width * image.height)) ** 0.5
    if share < 1:
        image.draft(None, (round(image.width * share), round(image.height * share)))  # JPEG decodes 1/2, 1/4, 1/8
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep_grey(image)
    elif image.mode != (mode := "RGBA" if image.has_transparency_data else "RGB"):
        image = image.convert(mode)  # only if needed: the copy may take half a gigabyte
    share = (MAX_PIXELS / (image.width * image.height)) ** 0.5
    if share < 1:
        size = max(1, round(image.width * share)), max(1, round(image.height * share))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _deep_grey(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or float grey (modes "I;16", "I", "F") to mode "F" in [0, 1]; Pillow would clip it.

    White is 65535 for whole numbers. For floats it is 1, or 255 if a pixel is above 1. If a pixel is brighter than
    white, the brightest pixel is white.
    """
    values = np.nan_to_num(np.asarray(image.convert("F")), posinf=0.0)
    brightest = values.max()
    white = 65535.0 if image.mode != "F" else 1.0 if brightest <= 1 else 255.0
    return Image.fromarray(values / max(white, brightest))


def _to_tensor(image: Image.Image) -> torch.Tensor:
    values = np.asarray(image, dtype=np.float32)
    values = np.repeat(values[..., None], 3, axis=2) if image.mode == "F" else values / 255
    return torch.from_numpy(values).clamp(0, 1).permute(2, 0, 1).contiguous()


def size_from(picture: torch.Tensor, factor: int, minimum: int = 64) -> tuple[int, int]:
    """The width and height of a clip for a picture (3, H, W), in pixels.

    The aspect ratio is the picture's and the long side LONG_SIDE, both rounded: the sides are multiples of `factor`,
    the autoencoder's, and at least `minimum`.
    """
    _, rows, columns = picture.shape
    scale = LONG_SIDE / max(rows, columns) / factor
    minimum = -(-minimum // factor)
    width, height = (max(minimum, round(side * scale)) * factor for side in (columns, rows))
    return width, height


def fit(picture: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Crop the centre of a picture (3, H, W) to the aspect ratio of width x height and resize it, with antialiasing, to
    (3, height, width)."""
    _, rows, columns = picture.shape
    cut_rows = min(rows, max(1, round(columns * height / width)))
    cut_columns = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - cut_rows) // 2, (columns - cut_columns) // 2
    picture = picture[:, top : top + cut_rows, left : left + cut_columns]
    if picture.shape[1:] == (height, width):
        return picture
    picture = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
    return picture.clamp(0, 1)  # bicubic overshoots at edges


def contact_sheet(frames: Iterable[torch.Tensor], path: str | Path) -> None:
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
