"""A few sizes of about equal area for videos of different aspect ratios."""

from __future__ import annotations

import numpy as np

from ...errors import MicroCinemaError

RATIOS = (9 / 16, 3 / 4, 1.0, 4 / 3, 16 / 9)  # width by height


def bucket_sizes(area: int, multiple: int = 64, ratios: tuple[float, ...] = RATIOS) -> list[tuple[int, int]]:
    """Sizes (width, height) of about `area` pixels, one for each aspect ratio, narrow to wide, without repetitions.

    Both sides are multiples of `multiple`, which the network's and the autoencoder's halvings ask for. Of the sizes
    around an exact one the one is taken that is nearest to it in ratio and area, the ratio first. Raises
    MicroCinemaError for an area below that of one tile.
    """
    if area < multiple**2:
        raise MicroCinemaError(f"clips of {area} pixels are too small: give {multiple**2} or more")
    sizes = set()
    for ratio in ratios:
        width, height = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        around = [
            (w * multiple, h * multiple)
            for w in {max(1, int(width // multiple)), int(width // multiple) + 1}
            for h in {max(1, int(height // multiple)), int(height // multiple) + 1}
        ]
        sizes.add(min(around, key=lambda size: _distance(size, ratio, area)))
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def _distance(size: tuple[int, int], ratio: float, area: int) -> float:
    width, height = size
    return abs(np.log(width / height / ratio)) + 0.9 * abs(np.log(width * height / area))


def assign(shapes: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
    """The bucket (n,) whose aspect ratio is nearest to each of the widths and heights (n, 2), by ratio."""
    wanted = np.log(np.array([width / height for width, height in sizes]))
    ratios = np.log(shapes[:, 0] / shapes[:, 1])
    middles = (wanted[1:] + wanted[:-1]) / 2
    return np.searchsorted(middles, ratios).astype(np.int64)
