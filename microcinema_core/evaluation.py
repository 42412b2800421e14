"""`microcinema evaluate --clips`: measures any model on a person's videos, one clip of each.

A base model animates the clip's own centre frame with its caption, an interpolation model is given the clip's ends.
Each figure stands beside one that tells what it is worth: that of the true clip after encoding and decoding by the
autoencoder (the ceiling, "round trip"), of the centre frame repeated ("still"), of a linear blend of the ends
("blend"), or of the true clip itself ("true"). Decibels are means over clips of the PSNR over all pixels of a clip.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from . import images
from .config import ModelConfig
from .errors import MicroCinemaError
from .metrics.clip_report import clip_report
from .metrics.intervals import LEVEL, RESAMPLES, mean_interval
from .metrics.quality import SSIM_WINDOW, psnr, ssim
from .pipeline import Pipeline
from .training.data.clips import Unusable
from .training.data.order import generator
from .training.data.videos import VideoSet

CLIPS = 100
SHEET = 6  # clips on one
Figures = dict[str, dict[str, float | None]]  # by section and name; None where a clip is too small to be measured


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on clips of videos: `means` by section and name, `rows` those of each clip."""

    model: dict[str, Any]
    clips: dict[str, Any]
    means: dict[str, dict[str, dict[str, float | None]]]  # "mean", and "low" and "high" of its interval
    rows: list[dict[str, Any]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        figures = {"figures": self.means, "level": LEVEL, "resamples": RESAMPLES}
        return {"model": self.model, "clips": self.clips, **figures, "notes": self.notes, "each clip": self.rows}

    def words(self) -> str:
        """The report as a text for the terminal."""
        lines = [f"{name}: {', '.join(f'{key} {value}' for key, value in about.items())}"
                 for name, about in (("model", self.model), ("clips", self.clips))]  # fmt: skip
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"\n{'':<34}{'mean':>9}{f'{LEVEL:.0%} interval':>21}")
        for section, figures in self.means.items():
            lines.append(section)
            for name, found in figures.items():
                mean, low, high = ("-" if value is None else f"{value:.3f}" for value in found.values())
                lines.append(f"  {name + ' ':.<32}{mean:>9}{low:>10} to {high:>7}")
        return "\n".join(lines)


def open_videos(pipeline: Pipeline, folder: Path, table: Path | None, progress: Callable[[int, int], None]) -> VideoSet:
    """The videos of a folder, with captions where the model reads text.

    Raises MicroCinemaError as VideoSet.from_folder does, and where the model knows no word of any caption.
    """
    videos = VideoSet.from_folder(folder, table, captions=pipeline.text is not None, progress=progress)
    words = (_words(pipeline, video.caption) for video in videos)
    if pipeline.text and all(count == unknown for count, unknown in words):
        raise MicroCinemaError(
            f"the model '{pipeline.config.name}' knows no word of the captions in '{folder}': it was trained with "
            "others, so name videos of its kind"
        )
    return videos


def evaluate(
    pipeline: Pipeline, videos: VideoSet, *, count: int = CLIPS, seed: int = 0, sheets: Path | None = None,
    trained_on: str | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:  # fmt: skip
    """Measure a model on a clip of each of `count` videos, or of all if there are fewer, drawn by the seed.

    Models of the same fps, length and size are measured on the same clips. `sheets` is a folder for images of the
    clips, the true one above the model's; `trained_on` the identity of the set that the model learned from. Raises
    MicroCinemaError where no video has a clip of the model's length.
    """
    c, total = pipeline.config, min(count, len(videos))
    measure = animation if c.network.condition == "centre" else interpolation
    rows, strips, skipped = [], [], Counter(videos.reasons())
    for place, truth in islice(_clips(videos, c, seed, skipped), count):
        video = videos[place]
        clip, figures = measure(pipeline, truth, video.caption, seed + place)
        rows.append({"video": video.id, "caption": video.caption, **figures})
        if sheets:
            strips = [*(strips if len(rows) % SHEET != 1 else []), truth, clip]
            images.contact_sheet(torch.cat(strips, -2), sheets / f"clips-{-(-len(rows) // SHEET)}.png")
        progress(len(rows), total)
    if not rows:
        reasons = ", ".join(f"{reason} ({number})" for reason, number in skipped.most_common())
        raise MicroCinemaError(
            f"no video has a clip of {c.network.frames} frames at {c.fps:g} fps for '{c.name}' ({reasons}): name others"
        )
    model = {
        "name": c.name, "frames": c.network.frames, "size": f"{c.width}x{c.height}", "fps": c.fps, "steps": c.steps,
        "cfg": c.cfg, "lambda": c.lambda_, "gamma": c.gamma,
    }  # fmt: skip
    about = {"measured": len(rows), "videos": len(videos), "seed": seed, "set": videos.identity}
    about |= {"skipped": dict(skipped)} if skipped else {}
    notes = _strange_words(pipeline, [row["caption"] for row in rows])
    if trained_on == videos.identity:
        notes.append("the model learned from this set of videos: figures of other videos may be worse")
    return Evaluation(model, about, summarise(rows), rows, notes)


def _clips(videos: VideoSet, config: ModelConfig, seed: int, skipped: Counter[str]) -> Iterator[tuple[int, Tensor]]:
    """A clip (t, 3, h, w) in [0, 1] of each video that has one, in an order drawn by the seed; others are counted."""
    size = (config.width, config.height)
    for place in torch.randperm(len(videos), generator=generator(seed, 0, 0)).tolist():
        try:
            clip = videos.random_clip(place, generator(seed, 1, place), config.network.frames, config.fps, size)
        except Unusable as reason:
            skipped[str(reason).partition(":")[0]] += 1
            continue
        yield place, clip / 255


def animation(pipeline: Pipeline, truth: Tensor, caption: str, seed: int) -> tuple[Tensor, Figures]:
    """What a base model makes of the centre frame of a clip (t, 3, h, w) in [0, 1], and its figures."""
    centre, (height, width) = len(truth) // 2, truth.shape[-2:]
    frames = pipeline.animate(truth[centre], caption, frames=len(truth), seed=seed, width=width, height=height)
    frames = frames.float().cpu()
    decoded, still = round_trip(pipeline, truth), truth[centre].expand_as(truth)
    made, true = (clip_report(clip, truth[centre], centre) for clip in (frames, truth))
    score, of_still = psnr(frames, truth), psnr(still, truth)
    return frames, {
        "centre frame": {
            "PSNR, dB": psnr(frames[centre], truth[centre]),
            "round trip PSNR, dB": psnr(decoded[centre], truth[centre]),
            "SSIM": _ssim(frames[centre], truth[centre]), "round trip SSIM": _ssim(decoded[centre], truth[centre]),
        },
        "all frames": {
            "PSNR, dB": score, "still PSNR, dB": of_still, "round trip PSNR, dB": psnr(decoded, truth),
            "PSNR above still, dB": score - of_still,
            "SSIM": _ssim(frames, truth), "still SSIM": _ssim(still, truth), "round trip SSIM": _ssim(decoded, truth),
        },
        "motion": {
            "pixels a frame": made.motion, "true pixels a frame": true.motion,
            "moving share": made.moving, "true moving share": true.moving,
        },
        "each frame and the next, warped": {"PSNR, dB": made.consistency, "true PSNR, dB": true.consistency},
        "colour drift": {"from the centre frame": made.colour_drift, "true": true.colour_drift},
    }  # fmt: skip


def interpolation(pipeline: Pipeline, truth: Tensor, caption: str, seed: int) -> tuple[Tensor, Figures]:
    """What an interpolation model puts between the ends of a clip (t, 3, h, w) in [0, 1], and its figures, which are
    those of the new frames alone. It reads no caption."""
    frames = pipeline.interpolate(truth[[0, -1]], seed=seed).float().cpu()
    blend = torch.lerp(truth[:1], truth[-1:], torch.linspace(0, 1, len(truth))[:, None, None, None])
    made, blended, decoded, true = (clip[1:-1] for clip in (frames, blend, round_trip(pipeline, truth), truth))
    return frames, {
        "new frames": {
            "PSNR, dB": psnr(made, true), "blend PSNR, dB": psnr(blended, true),
            "round trip PSNR, dB": psnr(decoded, true), "PSNR above blend, dB": psnr(made, true) - psnr(blended, true),
            "SSIM": _ssim(made, true), "blend SSIM": _ssim(blended, true), "round trip SSIM": _ssim(decoded, true),
        },
        "motion": {"true pixels a frame": clip_report(truth).motion},
    }  # fmt: skip


@torch.no_grad()
def round_trip(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) after encoding and decoding: the best that the model's autoencoder can show."""
    return torch.cat([pipeline.decode(pipeline.encode(part)) for part in pictures.split(8)])


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The mean of each figure over clips, and the bootstrap interval of the mean; None where there is none."""
    means: dict[str, dict[str, dict[str, float | None]]] = {}
    for section, figures in rows[0].items():
        for name in figures if isinstance(figures, dict) else ():
            values = [row[section][name] for row in rows if row[section][name] is not None]
            low, high = mean_interval(values) or (None, None)
            found = {"mean": fmean(values) if values else None, "low": low, "high": high}
            means.setdefault(section, {})[name] = found
    return means


def _ssim(a: Tensor, b: Tensor) -> float | None:
    return ssim(a, b) if min(a.shape[-2:]) >= SSIM_WINDOW else None


def _strange_words(pipeline: Pipeline, captions: list[str]) -> list[str]:
    """A note of the words that the model does not know, if there are any."""
    words = [_words(pipeline, caption) for caption in captions] if pipeline.text else []
    strange = sum(unknown > 0 for _, unknown in words)
    if not strange:
        return []
    share = sum(unknown for _, unknown in words) / sum(count for count, _ in words)
    note = f"{strange} of {len(captions)} captions have words that the model does not know and leaves out"
    return [f"{note}, {share:.0%} of all words"]


def _words(pipeline: Pipeline, caption: str) -> tuple[int, int]:
    """How many words a caption has, and how many of them the model does not know."""
    unknown = [word for word in pipeline.unknown_words(caption) if re.search(r"\w", word)]
    return max(len(re.findall(r"\w+", caption)), len(unknown)), len(unknown)
