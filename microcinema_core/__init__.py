"""MicroCinema (arXiv 2311.18829) in plain PyTorch: a picture and a sentence become a clip. Never imports ComfyUI."""

__version__ = "0.1.0"
