"""The model file of a run and the card beside it, which tell how the model was trained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..checkpoint import LoadedModel, write_model
from ..files import whole_file
from ..header import AUTOENCODER, NETWORK, TEXT
from .distributed import Processes
from .parameters import merged, whole


def export(path: Path, model: LoadedModel, notes: dict[str, Any], world: Processes) -> None:
    """Write the weights of a model in float16, and its card, once for all processes, which call this together.

    Both appear complete or not at all, so that ComfyUI never lists a half-written model.
    """
    assert model.network is not None and model.autoencoder is not None

    def keep(tensor: Tensor) -> Tensor:
        if not hasattr(tensor, "full_tensor"):
            return tensor
        collected = whole(tensor)  # on the GPU of each process: one tensor at a time, of which the first keeps a copy
        return collected.to("cpu", torch.float16) if world.first else torch.empty(0)

    tensors = {NETWORK + key: value for key, value in merged(model.network, keep).items()}
    for prefix, module in ((AUTOENCODER, model.autoencoder), (TEXT, model.text)):
        if module is not None:
            tensors |= {prefix + key: keep(value) for key, value in module.state_dict().items()}
    if world.first:
        write_model(path, model.config, tensors, torch.float16, json.dumps(notes))
        with whole_file(path.with_suffix(".md")) as part:
            part.write_text(card(path, model, notes), encoding="utf-8")


def version() -> str:
    """This program's version, with the commit where it runs from a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return f"{__version__} ({commit})" if commit else __version__


def card(path: Path, model: LoadedModel, notes: dict[str, Any]) -> str:
    """The model's card in Markdown."""
    config, figures = model.config, notes.get("figures", {})
    frames, size = config.network.frames, f"{config.width}×{config.height}"
    use = (
        f'microcinema animate photo.jpg --model {path.name} --prompt "…" -o clip.mp4'
        if config.network.condition == "centre"
        else f"microcinema interpolate clip.mp4 --model {path.name} -o smooth.mp4"
    )
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(figures.items()))
    settings = json.dumps(notes["settings"], indent=2, ensure_ascii=False)
    return f"""# {config.name}

A MicroCinema model of {frames} frames of {size} at {config.fps:g} fps, {config.parameterization}-prediction, trained
for {notes["step"]:,} steps by ComfyUI-MicroCinema {notes["version"]}. The weights are moving averages. The data are
those with the hash `{notes["data"]}`; whether the model may be passed on depends on their licence, and on that of the
model it started from.

In ComfyUI: put `{path.name}` into `models/microcinema/` and choose it in *MicroCinema Loader*. On the command
line:

    {use}

| at the last samples | |
|---|---|
{rows}

Settings:

```json
{settings}
```
"""
