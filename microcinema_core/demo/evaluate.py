"""`microcinema evaluate`: measures models on drawn scenes and photographs that are not in their training data.

Every figure is reported with figures for comparison: those of the true clip after encoding and decoding by the
autoencoder (the ceiling, which a perfect network would reach), of the repeated centre frame, or of a linear blend.
Decibels are means over clips of the PSNR over all pixels of a clip. The figures are the same for the same model,
machine and arguments.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MicroCinemaError
from ..metrics.motion import Motion, camera_motion, thing_masks, thing_motion
from ..metrics.quality import background_consistency, camera_consistency, colour_drift, iou, psnr, ssim
from .captions import SPEEDS, all_words
from .evaluate_photographs import measure_photographs, measure_uncovered
from .film import draw_film
from .measuring import minimum_magnitude, progress, round_trip, run, true_magnitude
from .moved_photographs import Photographs
from .report import floors, machine, rounded, table, write_sheets
from .scenes import Clip, draw_clip

if TYPE_CHECKING:
    from ..pipeline import Pipeline

EVALUATION_SEEDS = range(1_000_000_000, 1_001_000_000)  # of scenes; those of the training are smaller
PHOTOGRAPHS = Path(__file__).parent / "photographs"  # licences: pictures/README.md; never used in training
INTERPOLATION_MODEL = "demo-interpolation"
GAMMAS = (-0.03, -0.01, 0.0, 0.02, 0.04)
GAMMA_SCENES = 16
INTERPOLATION_RATE = 1 / 4  # of one pass: the first and the last of five frames are neighbours of the base model's clip
INTERPOLATION_FRAMES = 5
MOVED_SIDE = 160  # of scenes of moved photographs, in pixels


def main(
    model: str = "demo-base",
    *,
    scenes: int = 200,
    as_json: bool = False,
    sheets: Path | None = None,
    seed_base: int = EVALUATION_SEEDS.start,
    device: str = "cpu",
    interpolation_model: str | None = None,
) -> dict:
    """Measure `model`, a bundled name or a file, and print the report as a table, or as JSON. Returns the report.

    `interpolation_model` is measured as well, by default the bundled one if there is one; an interpolation model as
    `model` is measured alone. `sheets` is a folder for images of the clips, the true one above the model's.
    """
    from .. import checkpoint
    from ..pipeline import Pipeline

    pipeline: Pipeline | None = Pipeline.from_file(checkpoint.resolve(model), device)
    interpolation: Pipeline | None = None
    if pipeline.config.network.condition == "ends":
        pipeline, interpolation = None, pipeline
    else:
        if unknown := pipeline.unknown_words(" ".join(all_words())):
            raise MicroCinemaError(
                f"the model '{pipeline.config.name}' does not know '{unknown[0]}' and other words of the drawn scenes: "
                "measure it on videos, with --clips FOLDER"
            )
        if interpolation_model is None and INTERPOLATION_MODEL in checkpoint.bundled_models():
            interpolation_model = INTERPOLATION_MODEL
        if interpolation_model:
            interpolation = Pipeline.from_file(checkpoint.resolve(interpolation_model), device)
    if sheets is not None:
        try:
            sheets.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MicroCinemaError(f"cannot make the folder {sheets} ({error.strerror}): choose another one") from error
    report = evaluate(pipeline, interpolation, scenes=scenes, sheets=sheets, seed_base=seed_base)
    print(json.dumps(report, indent=2, allow_nan=False) if as_json else table(report))
    return report


def evaluate(
    pipeline: Pipeline | None,
    interpolation: Pipeline | None = None,
    *,
    scenes: int = 200,
    photographs: Path = PHOTOGRAPHS,
    sheets: Path | None = None,
    seed_base: int = EVALUATION_SEEDS.start,
) -> dict:
    """Measure one or both pipelines and return the report; it has no sections of a pipeline that is None.

    `scenes` is the number of drawn scenes, with seeds from `seed_base` on, `photographs` a folder of JPEG files.
    """
    started = time.monotonic()
    report: dict[str, Any] = {"machine": machine()}
    if pipeline:
        report["model"] = _settings(pipeline)
        clips, left_out = measurable_scenes(seed_base, scenes, pipeline.config.network.frames, pipeline.config.width)
        report["scenes"] = {"count": len(clips), "not measurable, left out": left_out, "first seed": seed_base}
        report |= measure_scenes(pipeline, clips, sheets)
        report["photographs"] = measure_photographs(pipeline, photographs, scenes, sheets)
        report["uncovered part of photographs"] = measure_uncovered(pipeline, photographs, scenes, sheets)
        report["gamma"] = measure_gamma(pipeline, [scene for scene in clips if scene.clip.motion != "still"])
    if interpolation:
        report["interpolation model"] = _settings(interpolation)
        count = max(1, scenes // 2)
        drawn = drawn_clips(seed_base, interpolation)
        report["interpolation"] = measure_interpolation(interpolation, drawn, count, sheets)
        moved = moved_clips(photographs, seed_base)
        report["interpolation of moved photographs"] = measure_interpolation(interpolation, moved, count, sheets)
    report["floors"] = floors(report)
    report["passed"] = all(floor["passed"] for floor in report["floors"])
    report["seconds"] = round(time.monotonic() - started, 1)
    return rounded(report)


# --- drawn scenes ---


@dataclass(frozen=True)
class Scene:
    """A drawn clip and its seed."""

    seed: int
    clip: Clip


def measurable_scenes(seed_base: int, count: int, frames: int, size: int) -> tuple[list[Scene], int]:
    """The first `count` scenes from `seed_base` on in which the true motion can be measured, and the number of scenes
    that were left out.

    The motion cannot be measured where the camera pans along stripes, for example, or over a smooth gradient.
    """
    scenes, seed = [], seed_base
    while len(scenes) < count:
        clip = draw_clip(seed, frames=frames, size=size)
        measured, _ = measure_motion(clip.frames, clip, clip.background)
        if measured is not None and measured.name == clip.motion:
            scenes.append(Scene(seed, clip))
        seed += 1
    return scenes, seed - seed_base - count


def measure_motion(frames: Tensor, clip: Clip, background: Tensor | None) -> tuple[Motion | None, Tensor | None]:
    """Measure in `frames` the motion of the camera, or of the first thing that the caption of `clip` names.

    Returns the motion, None where the thing is not found, and the masks of the thing, None for the camera.
    `background` is the scene without things, with the same colours as in `frames`.
    """
    minimum = minimum_magnitude(clip.kind, frames.shape[-1])
    if clip.kind == "camera":
        return camera_motion(frames, minimum), None
    assert background is not None and clip.masks is not None  # as in every clip of things
    centre = len(clip.frames) // 2
    masks = thing_masks(frames, background, clip.frames[centre], clip.masks[centre], clip.other_masks)
    return thing_motion(masks, minimum), masks


def measure_scenes(pipeline: Pipeline, scenes: list[Scene], sheets: Path | None) -> dict:
    """Animate all scenes. Returns the sections of the report about them, and writes images into the folder `sheets`."""
    records, rows = [], []
    for scene in progress(scenes, "scenes"):
        frames = animate(pipeline, scene)
        records.append(measure_scene(pipeline, scene, frames))
        if len(rows) < 24:
            title = f"{scene.seed}: {scene.clip.caption}" + ("" if records[-1]["right"] else "   (wrong)")
            rows.append((title, [scene.clip.frames, frames]))
    if sheets:
        write_sheets(rows, sheets, "scenes")
    return summarise_scenes(records)


def animate(pipeline: Pipeline, scene: Scene, **settings) -> Tensor:
    """Animate the centre frame of a scene with its caption: (t, 3, h, w). `settings` as in `run`."""
    clip = scene.clip
    count, _, height, width = clip.frames.shape
    picture = clip.frames[count // 2]
    return run(pipeline, picture, clip.caption, seed=scene.seed, frames=count, width=width, height=height, **settings)


def measure_scene(pipeline: Pipeline, scene: Scene, frames: Tensor) -> dict:
    """All figures of one clip; those of "ceiling …" are of the true clip after encoding and decoding."""
    clip, truth = scene.clip, scene.clip.frames
    centre = len(truth) // 2
    decoded = round_trip(pipeline, truth)
    background = None if clip.background is None else round_trip(pipeline, clip.background[None])[0]
    size = truth.shape[-1]
    motion, masks = measure_motion(frames, clip, background)
    _, ceiling_masks = measure_motion(decoded, clip, background)
    magnitudes = {speed: true_magnitude(clip.motion, speed, size) for speed in SPEEDS}
    right = speed_right = False
    if motion is not None and motion.name == clip.motion:
        right, magnitude = True, motion.magnitude
        speed_right = min(SPEEDS, key=lambda speed: abs(magnitudes[speed] - magnitude)) == clip.speed
    record = {
        "seed": scene.seed, "kind": clip.kind, "motion": clip.motion, "caption": clip.caption,
        "measured": motion.name if motion else "not found", "right": right,
        "speed right": speed_right,
        "magnitude": motion.magnitude if motion else None, "true magnitude": magnitudes[clip.speed],
        "centre": psnr(frames[centre], truth[centre]), "ceiling centre": psnr(decoded[centre], truth[centre]),
        "centre ssim": ssim(frames[centre], truth[centre]), "ceiling centre ssim": ssim(decoded[centre], truth[centre]),
        "frames": psnr(frames, truth), "ceiling frames": psnr(decoded, truth),
        "frozen frames": psnr(truth[centre].expand_as(truth), truth),
        "consistency": consistency(frames, clip), "ceiling consistency": consistency(decoded, clip),
        "drift": colour_drift(frames, truth), "ceiling drift": colour_drift(decoded, truth),
    }  # fmt: skip
    if masks is not None and ceiling_masks is not None and clip.masks is not None:
        for name, measured in (("", masks), ("ceiling ", ceiling_masks)):
            record[name + "first"] = iou(measured[0], clip.masks[0])
            record[name + "last"] = iou(measured[-1], clip.masks[-1])
    return record


def consistency(frames: Tensor, clip: Clip) -> float:
    """The PSNR in dB between neighbouring frames: of whole frames after the camera's motion, or of the background of a
    scene with things."""
    if clip.masks is None:
        return camera_consistency(frames)
    return background_consistency(frames, clip.masks if clip.other_masks is None else clip.masks | clip.other_masks)


@torch.no_grad()
def summarise_scenes(records: list[dict]) -> dict:
    """The sections of the report about the scenes, from the figures of every clip."""

    def mean(key: str, chosen: list[dict] = records) -> float | None:
        values = [record[key] for record in chosen if record.get(key) is not None]
        return fmean(values) if values else None

    def share(where) -> dict:
        chosen = [record for record in records if where(record)]
        return {"right": mean("right", chosen), "of": len(chosen)}

    moving = [record for record in records if record["motion"] != "still"]
    motions = sorted({(record["kind"] == "camera", record["motion"]) for record in records})
    failures = [f"{r['seed']}: {r['caption']} ({r['measured']})" for r in records if not r["right"]]
    return {
        "motion": {
            "right": mean("right"),
            "things": share(lambda r: r["kind"] != "camera"),
            "camera": share(lambda r: r["kind"] == "camera"),
            "by motion": {
                f"{'camera' if camera else 'thing'} {motion}": share(
                    lambda r, camera=camera, motion=motion: (r["kind"] == "camera", r["motion"]) == (camera, motion)
                )
                for camera, motion in motions
            },
            "speed right": mean("speed right", moving),
            "pixels a frame": mean("magnitude", moving),
            "true pixels a frame": mean("true magnitude", moving),
            "wrong": failures,
        },
        "centre frame": {
            "psnr": mean("centre"), "ceiling": mean("ceiling centre"),
            "ssim": mean("centre ssim"), "ceiling ssim": mean("ceiling centre ssim"),
        },
        "all frames": {"psnr": mean("frames"), "ceiling": mean("ceiling frames"), "frozen": mean("frozen frames")},
        "overlap": {
            "first": mean("first"), "last": mean("last"),
            "ceiling first": mean("ceiling first"), "ceiling last": mean("ceiling last"),
        },
        "consistency": {
            "psnr": mean("consistency"), "ceiling": mean("ceiling consistency"),
            "pixels a frame": mean("magnitude"), "true pixels a frame": mean("true magnitude"),
            "colour drift": mean("drift"), "ceiling colour drift": mean("ceiling drift"),
        },
    }  # fmt: skip


# --- the amplitude of the motion by γ ---


def measure_gamma(pipeline: Pipeline, moving: list[Scene]) -> dict:
    """The mean magnitude of the motion for every γ, in pixels per frame, of the same scenes with the same noise."""
    moving = moving[:GAMMA_SCENES]
    motion = {}
    for gamma in progress(GAMMAS, "gamma"):
        magnitudes = []
        for scene in moving:
            background = scene.clip.background
            background = None if background is None else round_trip(pipeline, background[None])[0]
            measured, _ = measure_motion(animate(pipeline, scene, gamma=gamma), scene.clip, background)
            magnitudes.append(measured.magnitude if measured else 0.0)
        motion[f"{gamma:g}"] = fmean(magnitudes) if magnitudes else None
    return {"scenes": len(moving), "pixels a frame": motion}


# --- interpolation ---


def measure_interpolation(
    pipeline: Pipeline, clips: Iterator[tuple[str, Tensor]], count: int, sheets: Path | None
) -> dict:
    """The PSNR of the frames that are made between the ends of `count` of these titled clips, and that of a blend of
    both ends."""
    scores, rows = {"psnr": [], "blend": [], "worst gain": []}, []
    for seed, (title, truth) in enumerate(progress(list(islice(clips, count)), "interpolation")):
        made = pipeline.interpolate(truth[[0, -1]], passes=1, steps=pipeline.config.steps, seed=seed).float().cpu()
        blend = torch.lerp(truth[:1], truth[-1:], torch.linspace(0, 1, len(truth))[:, None, None, None])
        scores["psnr"].append(psnr(made[1:-1], truth[1:-1]))
        scores["blend"].append(psnr(blend[1:-1], truth[1:-1]))
        scores["worst gain"].append(scores["psnr"][-1] - scores["blend"][-1])
        rows.append((f"{title}   (truth, model, blend)", [truth, made, blend]))
    if sheets:
        write_sheets(rows[:18], sheets, f"interpolation-{rows[0][0].split()[0]}")
    return {
        "clips": len(rows), "psnr": fmean(scores["psnr"]), "blend": fmean(scores["blend"]),
        "gain": fmean(scores["worst gain"]), "worst gain": min(scores["worst gain"]),
    }  # fmt: skip


def drawn_clips(seed: int, pipeline: Pipeline) -> Iterator[tuple[str, Tensor]]:
    """Drawn scenes that move, from `seed` on, as one pass of interpolation has them."""
    for number in itertools.count(seed):
        clip = draw_clip(number, frames=INTERPOLATION_FRAMES, size=pipeline.config.width, rate=INTERPOLATION_RATE)
        if clip.motion != "still":
            yield f"drawn {number}: {clip.caption}", clip.frames


def moved_clips(folder: Path, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Scenes of moved photographs from `seed` on, whose photographs are not those of the training."""
    photographs = Photographs([folder], held_out=None, min_side=1)
    for number in itertools.count(seed):
        yield f"moved {number}", draw_film(photographs, number, MOVED_SIDE)


# --- helpers ---


def _settings(pipeline: Pipeline) -> dict:
    config = pipeline.config
    return {
        "name": config.name, "frames": config.network.frames, "size": f"{config.width}x{config.height}",
        "steps": config.steps, "cfg": config.cfg, "lambda": config.lambda_, "gamma": config.gamma,
    }  # fmt: skip
