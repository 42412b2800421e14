"""How much memory the template smoother-and-larger needs for each pixel of the clip, in a real ComfyUI on the CPU.

`python benchmarks/clip_memory.py [--frames 9 25] [--size 480 270]` runs it on clips of two lengths, each in a server of
its own, with tiny models, whose own memory does not grow with the clip, and prints the difference of the servers'
largest resident sizes over the difference of the clips' pixels, in bytes. `--first upscale` wires the upscale model
before Temporal Interpolate instead of after it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

PACK = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PACK), str(PACK / "tests" / "helpers")]

from host import HOST, Server, api_form  # noqa: E402
from tiny import random_model, tiny_between  # noqa: E402
from upscaler import save_upscaler  # noqa: E402

from microcinema_core import video  # noqa: E402
from microcinema_core.checkpoint import save_model  # noqa: E402


def template(upscale_first: bool) -> dict:
    """The template with tiny models and for the whole clip."""
    made = api_form("smoother-and-larger")
    inputs = {node["class_type"]: node["inputs"] for node in made.values()}
    numbers = {node["class_type"]: number for number, node in made.items()}
    inputs["LoadVideo"]["file"] = "clip.mp4"
    inputs["Video Slice"]["duration"] = 0.0
    inputs["MicroCinemaLoader"]["model_name"] = inputs["UpscaleModelLoader"]["model_name"] = "tiny.safetensors"
    if upscale_first:
        inputs["ImageUpscaleWithModel"]["image"] = inputs["MicroCinemaInterpolate"]["images"]
        inputs["MicroCinemaInterpolate"]["images"] = [numbers["ImageUpscaleWithModel"], 0]
        inputs["MicroCinemaVideoCombine"]["images"] = [numbers["MicroCinemaInterpolate"], 0]
    return made


def peak(folder: Path, count: int, width: int, height: int, made: dict) -> int:
    """The largest resident size in bytes of a server that runs the graph on a clip of grey frames."""
    assert HOST is not None, "no ComfyUI: set COMFYUI_PATH"
    for kind in ("microcinema", "upscale_models"):
        (folder / "models" / kind).mkdir(parents=True)
    save_model(folder / "models" / "microcinema" / "tiny.safetensors", random_model(tiny_between()))
    save_upscaler(folder / "models" / "upscale_models" / "tiny.safetensors")
    server = Server(HOST, folder)
    try:
        frames = torch.linspace(0, 1, count).view(-1, 1, 1, 1).expand(-1, 3, height, width)
        video.write_video(folder / "input" / "clip.mp4", frames, 24, audio=(torch.zeros(2, 2000 * count), 48_000))
        server.run(made)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    finally:
        server.stop()


def main() -> None:
    """Print the peaks and their slope."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs=2, default=(9, 25))
    parser.add_argument("--size", type=int, nargs=2, default=(480, 270))
    parser.add_argument("--first", choices=("interpolate", "upscale"), default="interpolate")
    arguments = parser.parse_args()
    made, peaks = template(arguments.first == "upscale"), []
    for count in arguments.frames:
        with tempfile.TemporaryDirectory() as folder:
            peaks.append(peak(Path(folder) / "base", count, *arguments.size, made))
    (fewer, more), (width, height) = arguments.frames, arguments.size
    slope = (peaks[1] - peaks[0]) / ((more - fewer) * width * height)
    print(f"{arguments.first} first, {width}x{height}: {fewer} frames {peaks[0] / 1e9:.2f} GB, {more} frames "
          f"{peaks[1] / 1e9:.2f} GB: {slope:.0f} bytes for each pixel of the clip")  # fmt: skip


if __name__ == "__main__":
    main()
