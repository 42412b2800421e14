"""Where a film is cut: changes of the picture far above those before and after them, which no movement explains.

The measure is that of PySceneDetect's detectors, the mean absolute difference of neighbouring frames in lightness and
colour, on small pictures. A change is a cut where it is large, several times the changes around it (as in the
AdaptiveDetector), neither a move of the whole picture nor a change of its light, and not undone within a few frames,
as that of a flash is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ...streams import PYAV

SIZE = (48, 32)  # width and height of the small pictures
THRESHOLD = 15.0  # least change at a cut, of 255, summed over lightness and two colours
RESIDUAL = 10.0  # least change that is left when moves and light are taken away
RATIO = 3.0  # least ratio of a cut's change to the mean of those around it
AROUND = 2  # changes before and after
FLASH = 4  # frames within which the picture is as before
BLANK = 6.0  # contrast of a picture without a scene, of 255
SHIFT = 8  # pixels of a small picture that a fast pan moves it within a frame
_ONE_THREAD: Any = {"threads": 1} if PYAV >= 17 else {}


def thumbnail(frame: Any, reformatter: VideoReformatter) -> np.ndarray:
    """A frame as a small picture (3, h, w) in YUV, uint8. One reformatter for many frames saves a third of the time."""
    width, height = SIZE
    area = Interpolation.AREA
    return reformatter.reformat(frame, width, height, "yuv444p", interpolation=area, **_ONE_THREAD).to_ndarray()


def find_cuts(thumbnails: np.ndarray) -> list[int]:
    """The numbers of the frames that begin a new shot, of small pictures (t, 3, h, w)."""
    pictures = thumbnails.astype(np.int16)
    changes = np.abs(np.diff(pictures, axis=0)).mean((-2, -1)).sum(-1)
    large = np.flatnonzero(changes > THRESHOLD).tolist()
    return [index + 1 for index in large if _is_cut(pictures, changes, index)]


def _is_cut(pictures: np.ndarray, changes: np.ndarray, index: int) -> bool:
    """Whether the change from frame `index` to the next is a cut."""
    around = np.concatenate([changes[max(0, index - AROUND) : index], changes[index + 1 : index + 1 + AROUND]])
    if len(around) and changes[index] < RATIO * around.mean():
        return False
    before, after = pictures[index], pictures[index + 1]
    earlier, later = pictures[max(0, index - FLASH) : index], pictures[index + 2 : index + 2 + FLASH]
    returns = [_change(before, picture) for picture in later] + [_change(picture, after) for picture in earlier]
    if returns and min(returns) < changes[index] / 2:
        return False
    return _least_change(before, _relit(after, before)) > RESIDUAL


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(before - after).mean((-2, -1)).sum())


def _relit(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A picture with the mean and contrast of another in each channel: what a switched light changes. Not if the other
    is blank: then nothing would be left to compare."""
    if other[0].std() < BLANK:
        return picture
    mean, spread = picture.mean((1, 2), keepdims=True), picture.std((1, 2), keepdims=True)
    return (picture - mean) / np.maximum(spread, 1) * other.std((1, 2), keepdims=True) + other.mean(
        (1, 2), keepdims=True
    )


def _least_change(before: np.ndarray, after: np.ndarray) -> float:
    """The least change between the parts that two small pictures share, over moves of one of them."""
    _, height, width = before.shape
    least = np.inf
    for down in range(-SHIFT, SHIFT + 1, 2):
        for right in range(-SHIFT, SHIFT + 1):
            a = before[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
            b = after[:, max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)]
            least = min(least, _change(a, b))
    return least
