"""A small network with the interface of StyleGAN-V's I3D, which is none, and a set with the layout of UCF-101."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StandIn(nn.Module):
    """Clips (n, 3, t, h, w) → (n, 4): a fixed mix of coarse pixels. With `bad` it gives something else."""

    def __init__(self, bad: str = ""):
        super().__init__()
        self.bad = bad
        self.mix = nn.Parameter(torch.randn(3 * 2 * 4 * 4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale:
            x = 2 * (x / 255) - 1
        if resize:
            x = F.interpolate(x, [x.size(2), 32, 32], mode="trilinear", align_corners=False)
        found = F.adaptive_avg_pool3d(x, [2, 4, 4]).flatten(1) @ self.mix
        if self.bad == "map":
            return found[:, :, None]
        if self.bad == "nan":
            return found / 0 - found / 0
        return found if return_features else found.softmax(1)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def save_network(path: Path, module: nn.Module | None = None) -> Path:
    torch.jit.script(module or StandIn()).save(str(path))
    return path


def write_avi(path: Path, count: int, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    """Smooth noise that moves to the left, in Motion JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = torch.rand(1, 3, 5, 9, generator=torch.Generator().manual_seed(seed))
    wide = F.interpolate(drawn, (size[1], size[0] + count), mode="bicubic").clamp(0, 1)[0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p"
        for place in range(count):
            pixels = (wide[:, :, place : place + size[0]].permute(1, 2, 0) * 255).byte().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())


def write_ucf(folder: Path, clips: int = 4, frames: int = 12) -> Path:
    """Three classes with `clips` clips each."""
    for index, name in enumerate(("ApplyEyeMakeup", "TaiChi", "YoYo")):
        for clip in range(clips):
            write_avi(folder / name / f"v_{name}_g01_c{clip + 1:02}.avi", frames, 100 * index + clip)
    return folder
