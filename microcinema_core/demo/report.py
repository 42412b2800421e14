"""The report of `microcinema evaluate`: required values, a table, and images of the clips."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .. import files, images

FLOORS = {
    "motions right": 0.95,
    "centre frame below the ceiling, dB (at most)": 1.0,
    "overlap at first and last frame": 0.75,
    "interpolation above blending, dB": 2.0,
    "interpolation of moved photographs above blending, dB": 4.0,
    "photographs, dB": 22.0,
    "motion falls as gamma rises": 1.0,
}


def floors(report: dict) -> list[dict]:
    """The required values, those in the report, and whether they pass. A value that could not be measured fails."""
    measured = {}
    if "motion" in report:
        centre, overlap = report["centre frame"], report["overlap"]
        ends = [value for value in (overlap["first"], overlap["last"]) if value is not None]
        motions = list(report["gamma"]["pixels a frame"].values())
        falls = None not in motions and all(a > b for a, b in zip(motions, motions[1:], strict=False))
        measured = {
            "motions right": report["motion"]["right"],
            "centre frame below the ceiling, dB (at most)": centre["ceiling"] - centre["psnr"],
            "overlap at first and last frame": min(ends) if ends else None,
            "photographs, dB": report["photographs"]["psnr"],
            "motion falls as gamma rises": float(falls),
        }
    for section in ("interpolation", "interpolation of moved photographs"):
        if section in report:
            measured[f"{section} above blending, dB"] = report[section]["gain"]
    return [
        {"name": name, "value": measured[name], "floor": floor, "passed": _passes(name, measured[name], floor)}
        for name, floor in FLOORS.items()
        if name in measured
    ]


def _passes(name: str, value: float | None, floor: float) -> bool:
    if value is None:
        return False
    return value <= floor if "at most" in name else value >= floor


def table(report: dict) -> str:
    """The report as a text for the terminal."""
    lines = []
    for section, content in report.items():
        if section in ("floors", "passed", "seconds"):
            continue
        lines.append(f"\n{section}")
        lines += _lines(content, 1)
    lines.append(f"\nfloors{'':<50}{'measured':>10}{'floor':>8}")
    for floor in report["floors"]:
        mark = "passed" if floor["passed"] else "MISSED"
        lines.append(f"  {floor['name']:<54}{_text(floor['value']):>10}{floor['floor']:>8g}  {mark}")
    lines.append(f"\nmeasured in {report['seconds']:g} s")
    return "\n".join(lines).lstrip("\n")


def _lines(content: dict, depth: int) -> list[str]:
    lines, indent = [], "  " * depth
    for key, value in content.items():
        if isinstance(value, dict) and set(value) == {"right", "of"}:
            value = f"{_text(value['right'])} of {value['of']}"
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_lines(value, depth + 1)]
        elif isinstance(value, list):
            lines += [f"{indent}{key}: {len(value)}", *(f"{indent}  {item}" for item in value)]
        else:
            lines.append(f"{indent}{key + ' ':.<{34 - len(indent)}} {_text(value)}")
    return lines


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def rounded(value: Any) -> Any:
    """The value with all floats in it, also inside of dictionaries and lists, rounded to four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def machine() -> dict:
    """The machine on which the figures are measured, since the last digits may differ on another one."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__, "system": platform.system()}


def write_sheets(rows: list[tuple[str, list[Tensor]]], folder: Path, name: str, per_page: int = 6) -> None:
    """Write PNG pages with `per_page` rows of clips: a title and, for each clip, a strip of its frames."""
    for page, first in enumerate(range(0, len(rows), per_page), 1):
        strips = []
        for title, clips in rows[first : first + per_page]:
            width = clips[0].shape[0] * clips[0].shape[-1]
            label = Image.new("RGB", (width, 16), "white")
            ImageDraw.Draw(label).text((3, 2), title, "black")
            strips.append(np.asarray(label))
            strips += [images.to_bytes(torch.cat(list(clip), -1)) for clip in clips]
        with files.whole_file(folder / f"{name}-{page}.png") as part:
            Image.fromarray(np.concatenate(strips)).save(part, format="PNG")
