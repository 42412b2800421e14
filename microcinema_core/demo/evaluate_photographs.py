"""Measures the base model's camera moves on photographs: their motion, their frames, and what a camera uncovers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from .. import images
from ..errors import MicroCinemaError
from ..metrics.motion import camera_motion
from ..metrics.quality import psnr
from .captions import CAMERA_VERBS, SPEEDS, camera_caption
from .measuring import minimum_magnitude, progress, round_trip, run
from .report import write_sheets
from .scenes import camera_move

if TYPE_CHECKING:
    from ..pipeline import Pipeline

SPAN = 1.5  # sides of a photograph, of whose middle a clip is made, relative to the clip's


def measure_photographs(pipeline: Pipeline, folder: Path, maximum: int, sheets: Path | None) -> dict:
    """Measure camera moves over at most `maximum` photographs, where the true frames lie within the photograph.

    Raises MicroCinemaError for a folder without photographs.
    """
    frames, size = pipeline.config.network.frames, pipeline.config.width
    pictures = {path.stem: images.fit(images.load_picture(path), size, size) for path in sorted(folder.glob("*.jpg"))}
    if not pictures:
        raise MicroCinemaError(f"there are no photographs (*.jpg) in {folder}: install the package anew")
    scores, rows, right = {"psnr": [], "ceiling": [], "frozen": []}, [], []
    jobs = islice(_photograph_jobs(list(pictures)), maximum)
    for index, (name, motion, speed) in enumerate(progress(list(jobs), "photographs")):
        picture = pictures[name]
        truth, visible = camera_move(picture, motion, speed, frames=frames)
        caption = camera_caption(motion, speed)
        clip = run(pipeline, picture, caption, seed=index, frames=frames, width=size, height=size)
        scores["psnr"].append(psnr(clip, truth, visible))
        scores["ceiling"].append(psnr(round_trip(pipeline, truth), truth, visible))
        scores["frozen"].append(psnr(picture.expand_as(truth), truth, visible))
        right.append(camera_motion(clip, minimum_magnitude("camera", size)).name == motion)
        rows.append((f"{name}: {caption}   ({scores['psnr'][-1]:.1f} dB)", [truth, clip]))
    if sheets:
        write_sheets(rows[:24], sheets, "photographs")
    means = {key: fmean(values) for key, values in scores.items()}
    return {"pictures": len(pictures), "clips": len(right), **means, "motions right": fmean(right)}


def measure_uncovered(pipeline: Pipeline, folder: Path, maximum: int, sheets: Path | None) -> dict:
    """Measure what the camera uncovers beyond the edges of a picture, the middle of a photograph that knows the truth.

    The figures are the PSNR there, also that of mirroring the picture's own pixels, and the local contrast relative to
    that of the covered part, a geometric mean over clips.
    """
    frames, size = pipeline.config.network.frames, pipeline.config.width
    margin = math.ceil((SPAN - 1) * size / 2)
    photographs = {
        path.stem: images.fit(images.load_picture(path), size + 2 * margin, size + 2 * margin)
        for path in sorted(folder.glob("*.jpg"))
    }
    records, rows = [], []
    jobs = islice(_photograph_jobs(list(photographs)), maximum)
    for index, (name, motion, speed) in enumerate(progress(list(jobs), "uncovered")):
        photograph = photographs[name]
        picture = photograph[:, margin:-margin, margin:-margin]
        truth, inside = camera_move(picture, motion, speed, frames=frames, canvas=photograph)
        mirror = F.pad(picture[None], [margin] * 4, mode="reflect")[0]
        mirrored, _ = camera_move(picture, motion, speed, frames=frames, canvas=mirror)
        clip = run(pipeline, picture, camera_caption(motion, speed), seed=index, frames=frames, width=size, height=size)
        measured, baseline = (uncovered_figures(made, truth, ~inside) for made in (clip, mirrored))
        records.append(measured | {"mirrored": baseline["psnr"], "mirrored contrast": baseline["contrast"]})
        rows.append((f"{name}: {camera_caption(motion, speed)}   (truth, model, mirrored)", [truth, clip, mirrored]))
    if sheets:
        write_sheets(rows[:24], sheets, "uncovered", per_page=4)
    decibels = {key: fmean(record[key] for record in records) for key in ("psnr", "mirrored")}
    contrasts = {
        key: geometric_mean(record[key] for record in records) for key in ("contrast", "mirrored contrast", "truth")
    }
    return {"clips": len(records), **decibels, **contrasts}


def uncovered_figures(frames: Tensor, truth: Tensor, outside: Tensor) -> dict[str, float]:
    """The figures of a clip (t, 3, h, w), with the pixels (t, h, w) that lie outside of the picture: the PSNR there in
    dB, and the contrasts there, the mean squared gradients, relative to those elsewhere, of the clip and of the truth.
    """
    wanted = outside & outside.roll(-1, -1) & outside.roll(-1, -2)
    given = ~(outside | outside.roll(-1, -1) | outside.roll(-1, -2))
    wanted[..., -1, :] = wanted[..., -1] = given[..., -1, :] = given[..., -1] = False
    figures = {"psnr": psnr(frames, truth, outside)}
    for name, clip in (("contrast", frames), ("truth", truth)):
        contrast = ((clip.roll(-1, -1) - clip).square() + (clip.roll(-1, -2) - clip).square()).mean(1)
        figures[name] = (contrast[wanted].mean() / contrast[given].mean()).item()
    return figures


def _photograph_jobs(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Every photograph with every motion once, at alternating speeds. The first items are of different photographs."""
    motions = list(CAMERA_VERBS)
    for turn in range(len(motions)):
        for index, name in enumerate(names):
            yield name, motions[(index + turn) % len(motions)], SPEEDS[(index + 2 * turn) % len(SPEEDS)]
