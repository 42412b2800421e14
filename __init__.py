"""ComfyUI-MicroCinema: the nodes, inside of ComfyUI; nothing anywhere else."""

from importlib.util import find_spec

if find_spec("comfy_api"):
    from .nodes import comfy_entrypoint  # noqa: F401

    WEB_DIRECTORY = "./web"
