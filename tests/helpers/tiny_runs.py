"""Small trainings of the paper's network on real video files."""

from __future__ import annotations

from pathlib import Path

from footage import coded, pan, write_footage
from tiny import random_model, tiny_base

from microcinema_core.checkpoint import save_model

TOML = """
[model]
config = "base"
autoencoder = "{autoencoder}"
vocabulary = 50
[model.override]
name = "tiny"
width = 32
height = 32
fps = 5.0
steps = 2
cfg = 1.5
[model.override.network]
model_channels = 16
channel_multipliers = [1, 2]
res_blocks = 1
attention_levels = [1]
head_channels = 8
norm_groups = 4
context_dim = 32
frames = 5
[model.override.autoencoder]
channels = 8
channel_multipliers = [1, 2, 2]
res_blocks = 1
norm_groups = 4
[model.override.text]
width = 32
layers = 1
heads = 2
max_tokens = 16
skip_last = 0
projection = false
[data]
folder = "{folder}"
[train]
steps = 4
batch_size = 4
learning_rate = 1e-3
warmup = 2
log_every = 1
sample_every = 4
save_every = 2
workers = 0
device = "cpu"
"""


def footage_folder(folder: Path, count: int = 6) -> Path:
    """A folder of short videos with captions beside them."""
    folder.mkdir(parents=True)
    for number in range(count):
        write_footage(folder / f"clip{number}", coded(pan(40, (64, 64), number)), fps=10 + 5 * (number % 3))
        (folder / f"clip{number}.txt").write_text(f"the camera pans over picture {'abcdef'[number % 6]}")
    return folder


def tiny_run(folder: Path, clips: Path) -> Path:
    """The TOML file of a run, with a model file for its autoencoder beside it."""
    save_model(folder / "autoencoder.safetensors", random_model(tiny_base()))
    path = folder / "tiny.toml"
    path.write_text(TOML.format(autoencoder=folder / "autoencoder.safetensors", folder=clips))
    return path
