"""How much memory of the computer a clip takes in the template smoother-and-larger, with ComfyUI on the CPU.

`python benchmarks/clip_memory.py` prints, for both orders of interpolating and enlarging and for upscale models of 2
and 4 times, the bytes for each pixel of the given clip: the difference of the largest resident sizes of two processes
with clips of 8 and 24 frames of 320x180, over the difference of their pixels. tests/helpers/clip_memory_script.py is
what runs in them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PACK), str(PACK / "tests" / "helpers")]

from host import script_result  # noqa: E402
from upscaler import save_upscaler  # noqa: E402

WIDTH, HEIGHT, FEWER, MORE = 320, 180, 8, 24


def bytes_a_pixel(folder: Path, order: str, scale: int) -> float:
    """The growth of the largest resident size with the clip, in bytes for each of its pixels; `order` is what is done
    first, "interpolate" or "upscale"."""
    upscaler = save_upscaler(folder / f"{scale}.safetensors", scale)
    few, many = (
        script_result("clip_memory_script.py", str(upscaler), str(frames), str(WIDTH), str(HEIGHT), order)
        for frames in (FEWER, MORE)
    )
    return (many - few) / ((MORE - FEWER) * WIDTH * HEIGHT)


def main() -> None:
    """Print the four figures."""
    with tempfile.TemporaryDirectory() as folder:
        for order in ("interpolate", "upscale"):
            for scale in (2, 4):
                print(
                    f"{order} first, x{scale}: {bytes_a_pixel(Path(folder), order, scale):.0f} bytes a pixel",
                    flush=True,
                )


if __name__ == "__main__":
    main()
