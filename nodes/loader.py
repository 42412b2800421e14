"""MicroCinema Loader: loads a model file as the host's MODEL, CLIP and VAE."""

from __future__ import annotations

import os
from functools import lru_cache

import folder_paths
import torch
from comfy_api.latest import io

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.header import bundled_models, read_config
from .native import load_clip, load_model, load_vae
from .schema import schema

FOLDERS = ("microcinema", "diffusion_models", "checkpoints")  # the host's nodes save models to the last two
BUNDLED = " (bundled)"
DTYPES = {
    "default": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip

folder_paths.add_model_folder_path("microcinema", os.path.join(folder_paths.models_dir, "microcinema"))


def model_files() -> dict[str, str]:
    """The model files that have MicroCinema's header, by the name in the menu; the bundled ones come first."""
    files = {name + BUNDLED: str(path) for name, path in bundled_models().items()}
    for folder in FOLDERS:
        for name in folder_paths.get_filename_list(folder):
            path = folder_paths.get_full_path(folder, name)
            hidden = os.path.basename(name).startswith(".")  # as files are while they are written
            if path is None or hidden or not name.endswith(".safetensors") or name in files:
                continue
            if _is_ours(path, os.stat(path).st_mtime_ns):
                files[name] = path
    return files


@lru_cache(maxsize=10_000)
def _is_ours(path: str, changed: int) -> bool:
    """Whether a file has MicroCinema's header. `changed`, its time of modification, is a part of the cache's key."""
    try:
        read_config(path)
    except MicroCinemaError:
        return False
    return True


class Loader(io.ComfyNode):
    """The node MicroCinema Loader."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaLoader",
            display_name="MicroCinema Loader",
            description="Loads a MicroCinema model. The bundled demo models are small and need no download.",
            search_aliases=["load microcinema", "image to video loader", "animate picture", "i2v"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list(model_files()),
                    tooltip="The bundled models, then files in models/microcinema, models/diffusion_models and "
                    "models/checkpoints whose header says they are MicroCinema's.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    tooltip="How the network's weights are kept in memory. Default lets ComfyUI choose among the types "
                    "that the model supports (the bundled ones: fp32); fp8 halves the memory of fp16 at some loss.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip", tooltip="Only from all-in-one files."),
                io.Vae.Output(display_name="vae", tooltip="Only from all-in-one files."),
            ],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype):
        """Load the model. An output whose part the file does not contain raises an error where it is used."""
        path = model_files().get(model_name)
        if path is None:
            raise MicroCinemaError(f"The model '{model_name}' is gone: reload the page and choose another.")
        if weight_dtype not in DTYPES:
            raise MicroCinemaError(f"The weight_dtype {weight_dtype!r} is none: give one of {', '.join(DTYPES)}.")
        options = {"dtype": DTYPES[weight_dtype]} if DTYPES[weight_dtype] else {}
        return io.NodeOutput(load_model(path, options), load_clip(path), load_vae(path))
