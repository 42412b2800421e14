"""Sweep Grid: samples a clip for every value of one or two parameters, and shows all of them side by side.

Every cell is sampled, decoded, measured, reduced and written before the next one begins, so the memory of sampling does
not grow with the number of cells, and a run that was interrupted continues with the first cell that is missing. (The
host's lists would keep the results of all cells in memory, and forget them on an interrupt.)
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import comfy.samplers
import comfy.utils
import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from PIL import Image, ImageDraw

import nodes as host_nodes

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.files import make_folder, remove_stale, whole_file
from ..microcinema_core.images import to_bytes
from ..microcinema_core.metrics.clip_report import clip_report
from .display import show_text
from .prior_any import KEY, Wrappers
from .prior_patch import APPEARANCE, Appearance
from .schema import PLACES, check_images, check_samples, frame_at, in_range, schema

PARAMETERS = {"strength": float, "cfg": float, "steps": int, "seed": int}
LIMITS = {"strength": (-1, 1), "cfg": (0, 100), "steps": (1, 10_000), "seed": (0, 2**64 - 1)}
LABEL = 16  # pixels: the height of a label
FIELDS = ("motion", "motion_95", "moving", "consistency", "colour_drift", "fidelity", "similarity")


class SweepGrid(io.ComfyNode):
    """The node Sweep Grid."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        columns, rows = list(PARAMETERS), ["none", *PARAMETERS]
        return schema(
            node_id="MicroCinemaSweepGrid",
            display_name="Sweep Grid",
            description="Samples a clip for every value of one or two parameters: one labelled grid of clips, and a "
            "table of what each does. Continues where it was interrupted.",
            search_aliases=["xy plot", "grid", "compare", "parameter sweep"],
            inputs=[
                io.Model.Input("model", tooltip="With a prior of this pack, if strength is swept."),
                io.Conditioning.Input("positive", tooltip="What moves, and how."),
                io.Conditioning.Input("negative", tooltip="The empty sentence, or what is not wanted."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Latent.Input("latent", tooltip="An empty latent, of the clip's size and length."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate="fixed",
                             tooltip="Of the noise, unless it is swept."),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Of the sampler, unless they are swept."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="Unless it is swept."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler",
                               tooltip="One of ComfyUI's samplers."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal",
                               tooltip="One of ComfyUI's schedulers."),
                io.Combo.Input("columns", options=columns, default="strength", tooltip="The parameter that changes "
                               "from column to column. Strength is λ+γ of the prior."),
                io.String.Input("column_values", default="0, 0.03, 0.05, 0.07", tooltip="Numbers with commas."),
                io.Combo.Input("rows", options=rows, default="none", tooltip="The one that changes from row to row."),
                io.String.Input("row_values", default="", tooltip="Numbers with commas; not used with none."),
                io.Int.Input("width", default=1024, min=64, max=8192, step=8, tooltip="Of the whole grid, in pixels: "
                             "more columns are smaller ones."),
                io.Combo.Input("given", options=list(PLACES), default="first", tooltip="The frame that shows the "
                               "picture, for the report."),
                io.Image.Input("picture", optional=True, tooltip="For the report: what the given frame is to show."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The grid as a clip."),
                io.String.Output(display_name="csv", tooltip="The table: a line for each cell."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, model, positive, negative, vae, latent, seed, steps, cfg, sampler_name, scheduler, columns,
                column_values, rows, row_values, width, given, picture=None):  # fmt: skip
        """Sample all cells that are missing; returns the grid and the table. Raises MicroCinemaError for values that
        are none, and for a strength where nothing in the graph has one."""
        check_samples(latent)
        if columns == rows:
            raise MicroCinemaError(f"Rows and columns are both {rows}: sweep two different ones, or none in the rows.")
        across = parse(columns, column_values)
        down = parse(rows, row_values) if rows != "none" else [None]
        cells = [{columns: x} | ({} if y is None else {rows: y}) for y in down for x in across]
        side = width // len(across)
        if side < 32:
            raise MicroCinemaError(f"{len(across)} columns do not fit into {width} pixels: give a larger width.")
        if picture is not None:
            picture = check_images(picture)[0].movedim(-1, 0)
        settings = {"seed": seed, "steps": steps, "cfg": cfg}
        fixed = {key: value for key, value in settings.items() if key not in (columns, rows)}
        folder = cls._folder(
            "strength" in (columns, rows), model, [columns, rows, fixed, sampler_name, scheduler, given, positive,
                                                   negative, latent, picture],
        )  # fmt: skip
        make_folder(folder)
        remove_stale(folder)
        bar, paths = comfy.utils.ProgressBar(len(cells)), []
        for index, cell in enumerate(cells):
            paths.append(folder / f"{_name(cell)}-{side}px.npz")
            if not _is_whole(paths[-1]):
                show_text(f"cell {index + 1} of {len(cells)}: {_label(cell)}")
                swept, conds = _with_strength(model, positive, negative, cell.get("strength"))
                chosen = settings | {key: value for key, value in cell.items() if key in settings}
                [sampled] = host_nodes.common_ksampler(
                    swept, chosen["seed"], chosen["steps"], chosen["cfg"], sampler_name, scheduler, *conds, latent
                )
                frames = _decoded(vae, sampled)
                report = clip_report(frames, picture, frame_at(given, len(frames)))
                _save(paths[-1], frames, side, report.to_json())
            bar.update_absolute(index + 1)
        return io.NodeOutput(_grid(paths, cells, len(across)), _table(paths, cells))

    @classmethod
    def _folder(cls, sweeps_strength: bool, model, values: list) -> Path:
        """The folder of the cells: named by the nodes before this one, by all that reaches it, and by samples of the
        model's weights and patches."""
        prompt, node = dict(cls.hidden.prompt or {}), str(cls.hidden.unique_id)
        free = {"strength", "gamma", "lambda_"} if sweeps_strength else set()
        before, pending = {}, [node]
        while pending:
            name = pending.pop()
            if name in before or name not in prompt:
                continue
            inputs, kind = prompt[name]["inputs"], prompt[name]["class_type"]
            links = [value for value in inputs.values() if isinstance(value, list) and len(value) == 2]
            pending += [str(link[0]) for link in links]
            free_here = free if kind.startswith("MicroCinema") else set()
            inputs = {} if name == node else {key: value for key, value in inputs.items() if key not in free_here}
            before[name] = [kind, sorted(map(str, inputs.items()))]
        priors = [start.__self__ for start in model.wrappers.get(Wrappers.OUTER_SAMPLE, {}).get(KEY, [])]
        digest = hashlib.sha256()
        _feed(digest, [before, type(model.model).__name__, [prior.identity(sweeps_strength) for prior in priors]])
        _feed(digest, values, sweeps_strength=sweeps_strength)
        weights = list(model.model.parameters())
        _feed(digest, weights[:: max(1, len(weights) // 16)], sampled=True)
        patches = sorted(model.patches.items())
        _feed(digest, [len(patches), patches[:: max(1, len(patches) // 16)]], sampled=True)
        return Path(folder_paths.get_output_directory()) / "MicroCinema" / f"sweep-{digest.hexdigest()[:12]}"


def _feed(digest, value, *, sampled: bool = False, sweeps_strength: bool = False) -> None:
    """Add a value to a hash: numbers, texts, tensors (`sampled`: their first values), and what contains these."""
    options = {"sampled": sampled, "sweeps_strength": sweeps_strength}
    if isinstance(value, torch.Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        data = value.detach().flatten()
        with suppress(RuntimeError, TypeError, NotImplementedError):  # weights in a type that is packed
            digest.update((data[:1024] if sampled else data).float().cpu().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _feed(digest, value[key], **options)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}".encode())
        for part in value:
            _feed(digest, part, **options)
    elif isinstance(value, Appearance):
        strength = [] if sweeps_strength else [value.lambda_, value.gamma]
        moves = [] if (value.motion, value.overscan) == (1, 0) else [value.motion, value.overscan]
        _feed(digest, [value.latents, *strength, *moves], **options)
    elif getattr(value, "is_nested", False):  # latents of picture and sound
        _feed(digest, list(value.unbind()), **options)
    elif isinstance(value, str | int | float | None):
        digest.update(repr(value).encode())
    else:  # a LoRA's weights, a ControlNet, …
        digest.update(type(value).__name__.encode())
        _feed(digest, [getattr(value, name, None) for name in ("weights", "strength", "cond_hint_original")], **options)


def parse(parameter: str, text: str) -> list[float]:
    """The values of a parameter, "0, 0.03". Raises MicroCinemaError for anything else."""
    low, high = LIMITS[parameter]
    try:
        values = [PARAMETERS[parameter](part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values) or len(set(values)) < len(values):
        kind = "whole numbers" if PARAMETERS[parameter] is int else "numbers"
        raise MicroCinemaError(
            f"The values '{text[:40]}' of {parameter} do not do: give different {kind} from {low} to {high}, with "
            "commas."
        )
    return values


def _with_strength(model, positive, negative, strength: float | None):
    """The model and the conditionings with another strength of the prior: of any model's, or of MicroCinema's own."""
    if strength is None:
        return model, (positive, negative)
    if wrappers := model.wrappers.get(Wrappers.OUTER_SAMPLE, {}).get(KEY):
        model = model.clone()
        model.remove_wrappers_with_key(Wrappers.OUTER_SAMPLE, KEY)
        model.add_wrapper_with_key(Wrappers.OUTER_SAMPLE, KEY, wrappers[-1].__self__.with_strength(strength).start)
        return model, (positive, negative)
    if not any(APPEARANCE in values for _, values in positive):
        raise MicroCinemaError(
            "There is no prior whose strength could be swept: wire the MODEL through Appearance Noise Prior (any "
            "model)."
        )
    swept = []
    for conditioning in (positive, negative):
        swept.append([])
        for text, values in conditioning:
            if found := values.get(APPEARANCE):
                values = values | {APPEARANCE: replace(found, gamma=strength - found.lambda_)}
            swept[-1].append([text, values])
    return model, swept


def _decoded(vae, latent: dict) -> torch.Tensor:
    """The frames (t, 3, h, w) of a LATENT."""
    samples = latent["samples"]
    samples = samples.unbind()[0] if samples.is_nested else samples
    if samples.ndim == 5 and len(samples) > 1:
        raise MicroCinemaError(f"The latent holds {len(samples)} clips: Sweep Grid takes one, give a batch of 1.")
    if not torch.isfinite(samples).all():
        raise MicroCinemaError("The model gave NaN or infinite numbers: take another weight type, or lower the cfg.")
    images = vae.decode(samples)
    images = images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images
    return images.float().movedim(-1, 1).clamp(0, 1)


def _is_whole(path: Path) -> bool:
    """Whether a cell is there and can be read; after a loss of power a file may be empty."""
    try:
        with np.load(path) as cell:
            return {"frames", "report"} <= set(cell.files)
    except (OSError, ValueError, EOFError, BadZipFile):
        return False


def _save(path: Path, frames: torch.Tensor, width: int, report: dict) -> None:
    """Write a cell: its frames, at most as wide as `width`, and its report."""
    width = min(width, frames.shape[-1])
    height = max(1, round(frames.shape[-2] * width / frames.shape[-1]))
    small = F.interpolate(frames, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    with whole_file(path) as part:
        np.savez_compressed(part, frames=np.stack([to_bytes(frame) for frame in small]), report=json.dumps(report))


def _grid(paths: list[Path], cells: list[dict], columns: int) -> torch.Tensor:
    """All cells side by side with their labels, (t, h, w, 3); a shorter clip stands still at its end."""
    shapes = []
    for path in paths:
        with np.load(path) as cell:
            shapes.append(cell["frames"].shape)
    count, height, width = (max(shape[i] for shape in shapes) for i in range(3))
    rows = -(-len(paths) // columns)
    grid = np.zeros((count, rows * (height + LABEL), columns * width, 3), np.uint8)
    for index, (path, cell) in enumerate(zip(paths, cells, strict=True)):
        top, left = index // columns * (height + LABEL), index % columns * width
        with np.load(path) as file:
            frames = file["frames"]
        label = Image.new("RGB", (width, LABEL))
        ImageDraw.Draw(label).text((4, 2), _label(cell), fill="white")
        grid[:, top : top + LABEL, left : left + width] = np.asarray(label)
        for frame in range(count):
            shown = frames[min(frame, len(frames) - 1)]
            grid[frame, top + LABEL : top + LABEL + shown.shape[0], left : left + shown.shape[1]] = shown
    return torch.from_numpy(grid).float().div_(255)


def _table(paths: list[Path], cells: list[dict]) -> str:
    """A line of figures for each cell, as CSV, also written beside the cells."""
    path = paths[0].parent / "table.csv"
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*cells[0], *FIELDS])
        for cell, stored in zip(cells, paths, strict=True):
            with np.load(stored) as content:
                report = json.loads(str(content["report"]))
            figures = ["" if report[field] is None else f"{report[field]:.5g}" for field in FIELDS]
            writer.writerow([*cell.values(), *figures])
    return path.read_text()


def _label(cell: dict) -> str:
    return ", ".join(f"{key} {value:.12g}" for key, value in cell.items())


def _name(cell: dict) -> str:
    return "-".join(f"{key}_{value!r}" for key, value in sorted(cell.items())).replace(os.sep, "_")
