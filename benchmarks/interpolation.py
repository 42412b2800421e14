"""Interpolation on clips of any kind: ours beside linear blending, optical flow (OpenCV's DIS) and ffmpeg's minterpolate.

`python benchmarks/interpolation.py CLIP … [--model FILE] [--frames 33] [--width 320] [--only NAME …]` gives every method each fourth
frame and compares the three that it makes between two of them with the true ones: PSNR in dB and SSIM, as mean and median
over the frames; the PSNR of each made clip's frames with the next one, warped back by the flow (the true clip's is in the
last line); and the time of a made frame. Pairs between which the program sees a cut are counted apart.

It needs `pip install opencv-python-headless`; minterpolate comes with PyAV.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor

from microcinema_core.demo.cuts import is_cut
from microcinema_core.images import to_bytes
from microcinema_core.metrics.flow import warp
from microcinema_core.metrics.clip_report import clip_report
from microcinema_core.metrics.quality import psnr, ssim
from microcinema_core.pipeline import Pipeline
from microcinema_core.video import open_video

STEP = 4  # one frame in so many is given
TIMES = [index / STEP for index in range(1, STEP)]
MODEL = Path(__file__).resolve().parents[1] / "models" / "demo-interpolation.safetensors"
# Given frames (n, 3, h, w) → the made ones (n − 1, STEP − 1, 3, h, w).
Method = Callable[[Tensor], Tensor]


def blending(given: Tensor) -> Tensor:
    """Linear blends."""
    return torch.stack([torch.lerp(given[:-1], given[1:], t) for t in TIMES], dim=1)


def dis_flow(given: Tensor) -> Tensor:
    """DIS flow (Kroeger et al., ECCV 2016) in both directions, combined to the flow at t and blended as in Super SloMo
    (Jiang et al., CVPR 2018), without its visibility maps."""
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(to_bytes(frame), cv2.COLOR_RGB2GRAY) for frame in given]
    made = []
    for index in range(len(given) - 1):
        pair = grey[index], grey[index + 1]
        forward, backward = (torch.from_numpy(dis.calc(*order, None)).movedim(-1, 0)[None] for order in (pair, pair[::-1]))
        first, last = given[index : index + 1], given[index + 1 : index + 2]
        for t in TIMES:
            to_first = -(1 - t) * t * forward + t * t * backward
            to_last = (1 - t) ** 2 * forward - t * (1 - t) * backward
            made.append(torch.lerp(warp(first, to_first), warp(last, to_last), t)[0])
    return torch.stack(made).unflatten(0, (-1, len(TIMES)))


def minterpolate(given: Tensor) -> Tensor:
    """ffmpeg's motion-compensated interpolation: motion searched in both directions, blocks that overlap."""
    import av

    height, width = given.shape[-2:]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base="1/1")
    filters = [source, graph.add("minterpolate", f"fps={STEP}:mi_mode=mci:mc_mode=aobmc:me_mode=bidir")]
    filters += [graph.add("format", "rgb24"), graph.add("buffersink")]
    for before, after in zip(filters, filters[1:], strict=False):
        before.link_to(after)
    graph.configure()
    padded = [*given, *[given[-1]] * 3]  # the filter looks ahead
    for index, frame in enumerate(padded):
        picture = av.VideoFrame.from_ndarray(to_bytes(frame), format="rgb24")
        picture.pts, picture.time_base = index, source.outputs[0].time_base if hasattr(source, "outputs") else None
        graph.push(picture)
    graph.push(None)
    frames = {}
    while True:
        try:
            picture = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            break
        frames[round(picture.time * STEP)] = torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
    places = [index for index in range(STEP * (len(given) - 1)) if index % STEP]
    nearest = sorted(frames)
    made = [frames[min(nearest, key=lambda place: abs(place - index))] for index in places]
    return torch.stack(made).unflatten(0, (-1, len(TIMES)))


def ours(model: Path) -> Method:
    """The interpolation model of a file."""
    pipeline = Pipeline.from_file(model)

    def method(given: Tensor) -> Tensor:
        frames = pipeline.interpolate(given)
        assert torch.equal(frames[::STEP], given), "a given frame has changed"
        return frames[:-1].unflatten(0, (-1, STEP))[:, 1:]

    return method


def read_clip(path: Path, count: int, width: int) -> Tensor:
    """The first frames (t, 3, h, w) of a clip, t = 1 modulo STEP, reduced to a width with even sides."""
    clip = open_video(path)
    height = 2 * round(clip.height / clip.width * width / 2) if width else clip.height
    frames = []
    for frame in open_video(path, (width or clip.width, height)).frames:
        frames.append(frame)
        if len(frames) == count:
            break
    return torch.stack(frames[: (len(frames) - 1) // STEP * STEP + 1])


def measure(name: str, method: Method, clip: Tensor, cuts: Tensor) -> tuple[list[float], list[float]]:
    """Print a line with the figures of a method on a clip, and return PSNR and SSIM of its made frames."""
    given, true = clip[::STEP], clip[:-1].unflatten(0, (-1, STEP))[:, 1:]
    started = time.perf_counter()
    made = method(given).clamp(0, 1)
    seconds = (time.perf_counter() - started) / made.shape[:2].numel()
    kept = (~cuts).nonzero().flatten().tolist()
    pairs = [(made[i, j], true[i, j]) for i in kept for j in range(STEP - 1)]
    quality, similarity = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
    whole = clip.clone()
    for j in range(STEP - 1):
        whole[j + 1 :: STEP] = made[:, j]
    consistency = clip_report(whole).consistency
    print(
        f"  {name:14} PSNR {mean(quality):6.2f} (median {median(quality):6.2f})  SSIM {mean(similarity):.4f} "
        f"(median {median(similarity):.4f})  warped {consistency:5.2f} dB  {seconds:.3f} s a frame", flush=True,
    )  # fmt: skip
    return quality, similarity


def main() -> None:
    """Measure all methods on all clips that the command names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--width", type=int, default=320, help="0: the clip's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    methods = {"blending": blending, "minterpolate": minterpolate, "DIS flow": dis_flow, "ours": ours(arguments.model)}
    methods = {name: method for name, method in methods.items() if not arguments.only or name in arguments.only}
    totals: dict[str, list[float]] = {name: [] for name in methods}
    for path in arguments.clips:
        clip = read_clip(path, arguments.frames, arguments.width)
        cuts = torch.tensor([is_cut(*pair) for pair in zip(clip[::STEP], clip[STEP::STEP], strict=False)])
        print(f"{path.name}: {len(clip)} frames of {clip.shape[-1]}x{clip.shape[-2]}, {int(cuts.sum())} pairs with a cut")
        for name, method in methods.items():
            totals[name].append(mean(measure(name, method, clip, cuts)[0]))
        print(f"  {'true clip':14} warped {clip_report(clip).consistency:5.2f} dB")
    for name, values in totals.items():
        print(f"{name:16} mean PSNR over the clips {mean(values):.2f} dB")


if __name__ == "__main__":
    main()
