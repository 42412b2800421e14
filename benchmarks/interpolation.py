"""Interpolation on any clips: ours beside linear blending, optical flow (OpenCV's DIS) and ffmpeg's minterpolate.

`python benchmarks/interpolation.py CLIP … [--model FILE] [--frames 33] [--width 320]` gives every method each fourth
frame and compares the three that it makes between two of them with the true ones: PSNR in dB and SSIM, as mean and
median over the frames; the PSNR of each made clip's frames with the next one, warped back by the flow (the true clip's
is in the last line); and the time of a made frame. Pairs at which the program sees a cut are left out, and counted.

It needs `pip install opencv-python-headless`; minterpolate comes with PyAV.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from microcinema_core.images import to_bytes
from microcinema_core.metrics.clip_report import clip_report
from microcinema_core.metrics.quality import psnr, ssim
from microcinema_core.optical_flow import warp
from microcinema_core.pipeline import Pipeline
from microcinema_core.video import open_video
from microcinema_core.windows import Windows

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

    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(to_bytes(frame), cv2.COLOR_RGB2GRAY) for frame in given]
    made = []
    for index in range(len(given) - 1):
        pair = grey[index], grey[index + 1]
        forward, backward = (
            torch.from_numpy(dis.calc(*order, None)).movedim(-1, 0)[None] for order in (pair, pair[::-1])
        )
        first, last = given[index : index + 1], given[index + 1 : index + 2]
        for t in TIMES:
            to_first = -(1 - t) * t * forward + t * t * backward
            to_last = (1 - t) ** 2 * forward - t * (1 - t) * backward
            made.append(torch.lerp(warp(first, to_first), warp(last, to_last), t)[0])
    return torch.stack(made).unflatten(0, (-1, len(TIMES)))


def minterpolate(given: Tensor) -> Tensor:
    """ffmpeg's motion-compensated interpolation: motion searched in both directions, blocks that overlap."""
    import av.error
    import av.filter

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
        picture.pts, picture.time_base = index, Fraction(1)
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


class Ours:
    """The interpolation model of a file. `cuts` are the pairs of the last clip at which it held the given frames."""

    def __init__(self, model: Path):
        self.pipeline, self.cuts = Pipeline.from_file(model), []

    def __call__(self, given: Tensor) -> Tensor:
        """As Method."""
        config = self.pipeline.config
        windows = Windows(config, self.pipeline, steps=config.steps, warn=lambda _: None)
        frames = torch.stack(list(windows.interpolated(given, len(given), 1, seed=0)))
        assert torch.equal(frames[::STEP], given), "a given frame has changed"
        self.cuts = [number - 1 for number in windows.cuts]
        return frames[:-1].unflatten(0, (-1, STEP))[:, 1:]


def read_clip(path: Path, count: int, width: int) -> Tensor:
    """The first frames (t, 3, h, w) of a clip, t = 1 modulo STEP, reduced to a width with even sides."""
    side = open_video(path).size
    size = (width, 2 * round(side[1] / side[0] * width / 2)) if width else side
    frames = []
    for frame in open_video(path, size).frames:
        frames.append(frame)
        if len(frames) == count:
            break
    return torch.stack(frames[: (len(frames) - 1) // STEP * STEP + 1])


def measure(method: Method, clip: Tensor) -> tuple[Tensor, float]:
    """The frames (n, STEP − 1, 3, h, w) that a method makes of a clip, and the seconds that each took."""
    started = time.perf_counter()
    made = method(clip[::STEP]).clamp(0, 1)
    return made, (time.perf_counter() - started) / made.shape[:2].numel()


def report(name: str, clip: Tensor, made: Tensor, seconds: float, kept: list[int]) -> float:
    """Print a line with the figures of a method on the pairs `kept` of a clip, and return the mean PSNR."""
    true, whole = clip[:-1].unflatten(0, (-1, STEP))[:, 1:], clip.clone()
    pairs = [(made[i, j], true[i, j]) for i in kept for j in range(STEP - 1)]
    quality, similarity = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
    for j in range(STEP - 1):
        whole[j + 1 :: STEP] = made[:, j]
    print(
        f"  {name:14} PSNR {mean(quality):6.2f} (median {median(quality):6.2f})  SSIM {mean(similarity):.4f} "
        f"(median {median(similarity):.4f})  warped {clip_report(whole).consistency:5.2f} dB  {seconds:.3f} s a frame",
        flush=True,
    )
    return mean(quality)


def main() -> None:
    """Measure all methods on all clips that the command names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--frames", type=int, default=33, help="of each clip, from its first on")
    parser.add_argument("--width", type=int, default=320, help="to which the clips are reduced; 0: their own")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = Ours(arguments.model)
    methods = {"blending": blending, "minterpolate": minterpolate, "DIS flow": dis_flow, "ours": model}
    totals: dict[str, list[float]] = {name: [] for name in methods}
    for path in arguments.clips:
        clip = read_clip(path, arguments.frames, arguments.width)
        results = {name: measure(method, clip) for name, method in methods.items()}
        kept = [pair for pair in range(len(clip) // STEP) if pair not in model.cuts]
        print(f"{path.name}: {len(clip)} frames of {clip.shape[-1]}x{clip.shape[-2]}, without {len(model.cuts)} cuts")
        for name, result in results.items():
            totals[name].append(report(name, clip, *result, kept))
        print(f"  {'true clip':14} warped {clip_report(clip).consistency:5.2f} dB")
    for name, values in totals.items():
        print(f"{name:16} mean PSNR over the clips {mean(values):.2f} dB")


if __name__ == "__main__":
    main()
