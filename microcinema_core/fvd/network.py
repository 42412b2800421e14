"""The network whose features are compared: a person's TorchScript file, and what its figure may be called."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MicroCinemaError

# SHA-256 of files that hold the I3D of Kinetics-400 in whose 400 logits FVD is defined (Unterthiner et al. 2018).
# The first is StyleGAN-V's port of it, i3d_torchscript.pt, 51,235,320 bytes, as mirrored at
# https://huggingface.co/flateon/FVD-I3D-torchscript and in the repository of ByteDance/LatentSync-1.6.
KNOWN_I3D = {"bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2": "I3D, Kinetics-400 (StyleGAN-V)"}


class FeatureNetwork:
    """A TorchScript network with the interface of StyleGAN-V's I3D.

    It is called with clips (n, 3, t, h, w) of values 0 … 255 and rescale=True (to −1 … 1), resize=True (to 224×224),
    return_features=True, and returns (n, d).
    """

    def __init__(self, path: Path, device: torch.device | str, frames: int):
        """Load a file and try it on two clips of `frames` frames. Raises MicroCinemaError where it does not do."""
        self.path, self.device = path, torch.device(device)
        self.sha256 = file_sha256(path)
        try:
            self.module = torch.jit.load(str(path), map_location=self.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise MicroCinemaError(
                f"'{path}' is no TorchScript file that this torch can load: give i3d_torchscript.pt with --i3d"
            ) from error
        self.features = self(torch.zeros(2, 3, frames, 64, 64, dtype=torch.uint8)).shape[1]

    @property
    def is_i3d(self) -> bool:
        """Whether the file is one of KNOWN_I3D, to the byte."""
        return self.sha256 in KNOWN_I3D

    @property
    def title(self) -> str:
        """What a distance of its features is called: FVD for a known I3D only."""
        return "FVD" if self.is_i3d else f"Fréchet distance (features of {self.path.name})"

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Clips (n, 3, t, h, w) in uint8 → features (n, d) in float32 on the CPU.

        Without fusion and TF32: the features must not depend on which rank, and how often, was called before.
        """
        unfused = torch.jit.optimized_execution(False)  # pyright: ignore[reportPrivateImportUsage]
        with unfused, torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            try:
                found = self.module(clips.to(self.device).float(), rescale=True, resize=True, return_features=True)
            except (RuntimeError, TypeError) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                raise MicroCinemaError(
                    f"'{self.path}' cannot be called as StyleGAN-V's I3D is (clips, rescale, resize, return_features) "
                    f"with clips of {clips.shape[2]} frames: give i3d_torchscript.pt with --i3d, or more --frames"
                ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(clips):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise MicroCinemaError(
                f"'{self.path}' gives {shape} for {len(clips)} clips, not ({len(clips)}, d) features: give "
                "i3d_torchscript.pt with --i3d"
            )
        if not torch.isfinite(found).all():
            raise MicroCinemaError(f"'{self.path}' gives NaN or infinite features: fetch the file again")
        return found.float().cpu()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises MicroCinemaError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except (OSError, ValueError) as error:
        raise MicroCinemaError(f"'{path}' cannot be read: check its name and folder") from error
    return digest.hexdigest()
