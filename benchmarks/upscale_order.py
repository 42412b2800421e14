"""Smoother and larger: the frames between made before enlarging or after it, against the true large ones.

`python benchmarks/upscale_order.py [FOLDER …] [--model FILE] [--scenes 60] [--side 256]` draws scenes of moved
photographs (demo/moved_photographs.py; of FOLDER, or of the packages named there) that no training has seen. The two
end frames of each are reduced to half the side. The three frames between are made of the small end frames and then
enlarged, or of the enlarged ones, always by Lanczos, and compared with the drawn ones: PSNR in dB, SSIM, and seconds a
made frame with the enlarging. A scene in which either way sees a cut is left out, and counted. The last lines are of
the slower and of the faster half of the scenes, by their mean speed between the end frames.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from interpolation import MODEL, TIMES, Ours
from PIL import Image
from torch import Tensor

from microcinema_core.demo.moved_photographs import FOLDERS, Photographs, draw_scene
from microcinema_core.images import to_bytes
from microcinema_core.metrics.quality import psnr, ssim


def resized(frames: Tensor, side: int) -> Tensor:
    """Square frames (n, 3, h, h) of 8 bits, resized by Lanczos to (n, 3, side, side)."""
    pictures = [Image.fromarray(to_bytes(frame)).resize((side, side), Image.Resampling.LANCZOS) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1) / 255


def made_both_ways(model: Ours, ends: Tensor, side: int) -> dict[str, tuple[Tensor, float]]:
    """The large frames between small end frames (2, 3, h, h), and the seconds that each took, by the order."""
    results = {}
    for name in ("interpolated, then enlarged", "enlarged, then interpolated"):
        started = time.perf_counter()
        if name.startswith("interpolated"):
            frames = resized(model(ends)[0], side)
        else:
            frames = model(resized(ends, side))[0].clamp(0, 1)
        results[name] = frames, (time.perf_counter() - started) / len(frames)
        if model.cuts:
            return {}
    return results


def report(name: str, rows: list[tuple[float, float, float]]) -> None:
    """Print the means of PSNR, SSIM and seconds."""
    quality, similarity, seconds = (fmean(values) for values in zip(*rows, strict=True))
    print(f"  {name:27} PSNR {quality:6.2f}  SSIM {similarity:.4f}  {seconds:.3f} s a frame")


def main() -> None:
    """Draw the scenes, make the frames in both orders, print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--side", type=int, default=256, help="of the large frames")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    photographs, model = Photographs(arguments.folders, held_out=True), Ours(arguments.model)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    speeds, cuts = [], 0
    for seed in range(arguments.scenes):
        generator = torch.Generator().manual_seed(seed)
        frames, velocities = draw_scene(photographs, generator, [0, *TIMES, 1], arguments.side)
        truth, ends = frames[1:-1], frames[[0, -1]]
        results = made_both_ways(model, resized(ends, arguments.side // 2), arguments.side)
        if not results:
            cuts += 1
            continue
        enlarged = resized(resized(truth, arguments.side // 2), arguments.side)
        results["the true ones, enlarged"] = enlarged, 0.0  # no order can be better at the same enlarging
        speeds.append(float(velocities.norm(dim=1).mean()))
        for name, (found, seconds) in results.items():
            rows.setdefault(name, []).append((psnr(found, truth), ssim(found, truth), seconds))
    print(f"{len(speeds)} scenes of {arguments.side}x{arguments.side}, without {cuts} seen as cuts")
    for name, values in rows.items():
        report(name, values)
    middle = median(speeds)
    for half, fast in (("slower", False), ("faster", True)):
        print(f"the {half} half: {'above' if fast else 'up to'} {middle:.1f} pixels between the end frames")
        for name, values in rows.items():
            report(name, [row for row, speed in zip(values, speeds, strict=True) if (speed > middle) == fast])
    before, after = (rows[name] for name in list(rows)[:2])
    better = sum(a[0] > b[0] for a, b in zip(before, after, strict=True))
    print(f"interpolated first is better (PSNR) in {better} of {len(speeds)} scenes")


if __name__ == "__main__":
    main()
