"""Loads a model file as the host's own objects: MODEL, CLIP and VAE."""

from .model import load_model
from .text import load_clip
from .vae import load_vae

__all__ = ["load_clip", "load_model", "load_vae"]
