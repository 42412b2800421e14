"""Clips per second of the data path (probed videos, cuts, crop, resize) and of PyAV's bare decoding of the same clips.

    python benchmarks/data.py [FOLDER] [--clips 40] [--frames 9] [--fps 2] [--size 320]

Without a folder of videos it writes some of the size, rate and length of WebVid's. Both halves of the measurement take
turns, clip by clip, in one process and one thread, and are timed by the process's own clock. Bare decoding starts at
the key frame before a clip and keeps nothing; the data path alone leaves out frames before it that nothing refers to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from footage import pan

from microcinema_core.training.data.clips import Unusable
from microcinema_core.training.data.videos import Video, VideoSet


def write_videos(folder: Path, count: int = 4, size: tuple[int, int] = (596, 336), seconds: int = 15) -> None:
    """Photographs under a moving camera with some grain, 25 frames per second, H.264 as libx264 makes it."""
    random = np.random.default_rng(0)
    grain = random.normal(0, 4, (8, size[1], size[0], 1))
    for number in range(count):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "23"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for index, frame in enumerate(pan(25 * seconds, size, number, 2 + number)):
                values = (frame + grain[index % 8]).clip(0, 255).astype(np.uint8)
                picture = av.VideoFrame.from_ndarray(values, format="rgb24")
                picture.pts, picture.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())


def decode(video: Video, start: float, frames: int, fps: float) -> int:
    """Decode a clip's frames and all from the key frame before it; returns their number."""
    span, known, count = (frames - 1) / fps, video.known, 0
    first = known.start + start * max(0.0, known.end - known.start - span)
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        container.seek(int(first / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            count += 1
            if frame.time > first + span:
                break
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--fps", type=float, default=2)
    parser.add_argument("--size", type=int, default=320)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder is None:
            write_videos(Path(temporary))
        started = time.perf_counter()
        videos = VideoSet.from_folder(args.folder or Path(temporary), captions=False)
        print(f"{len(videos)} videos probed in {time.perf_counter() - started:.2f} s, {len(videos.skipped)} skipped")
        starts = torch.rand(args.clips, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
        ours = bare = 0.0
        good = decoded = 0
        for index, start in enumerate(starts):
            video = videos[index % len(videos)]
            before = time.process_time()
            decoded += decode(video, start, args.frames, args.fps)
            middle = time.process_time()
            try:
                videos.clip(index % len(videos), start, args.frames, args.fps, (args.size, args.size))
                good += 1
            except Unusable as error:
                print(f"{video.id}: {error}")
            bare, ours = bare + middle - before, ours + time.process_time() - middle
    print(f"{args.frames} frames at {args.fps:g} fps, {args.size} x {args.size}, {good} of {args.clips} clips usable")
    print(f"data path      {args.clips / ours:8.2f} clips per second")
    print(f"bare decoding  {args.clips / bare:8.2f} clips per second, {decoded / bare:.0f} frames per second")
    print(f"ratio          {bare / ours:8.2f}")


if __name__ == "__main__":
    main()
