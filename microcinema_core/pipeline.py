"""From a picture and a sentence to frames, and from frames to more frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import LoadedModel, load_model
from .config import ModelConfig
from .denoiser import Denoiser
from .errors import MicroCinemaError
from .images import fit
from .model import Condition
from .prior import prior_mean, shift
from .samplers import initial, sample_euler_edm
from .schedule import NoiseSchedule
from .windows import Progress, Windows, least_side


class Pipeline:
    """A loaded model with everything it takes to run it. Pictures are float tensors in [0, 1]."""

    def __init__(self, model: LoadedModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        needed = {"autoencoder": model.autoencoder}
        if model.config.network.context_dim is not None:
            needed["text encoder"] = model.text
        for part, module in needed.items():
            if module is None:
                raise MicroCinemaError(f"model '{model.config.name}' has no {part} in its file: use an all-in-one file")
        self.config: ModelConfig = model.config
        self.network, self.autoencoder, self.text = model.network, model.autoencoder, model.text
        self.device, self.dtype = torch.device(device), dtype

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        tokenizer: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """`tokenizer` as in load_model; `dtype` is the networks' own: latents and the sampler stay in float32."""
        return cls(load_model(path, device, dtype, tokenizer), device, dtype)

    @property
    def vocabulary(self) -> list[str]:
        """The words the text encoder knows; empty if it knows no bounds."""
        return self.text.tokenizer.vocabulary if self.text else []

    def unknown_words(self, prompt: str) -> list[str]:
        return self.text.tokenizer.unknown_words(prompt) if self.text else []

    @torch.no_grad()
    def animate(
        self,
        picture: Tensor,
        prompt: str,
        *,
        frames: int | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        lambda_: float | None = None,
        gamma: float | None = None,
        churn: float = 0.0,
        seed: int = 0,
        width: int | None = None,
        height: int | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Picture (3, H, W), fitted to width × height, and a sentence → frames (t, 3, height, width).

        The picture is the condition of the centre frame t//2. What is None comes from the model's header. Noise is
        drawn on the CPU from `seed`, so that it is the same on every device. Raises MicroCinemaError for a size that
        is no whole number of latent cells, for no frames or steps, and where the network's numbers overflow.
        """
        c = self.config
        self._require("centre")
        frames = c.network.frames if frames is None else frames
        width, height = c.width if width is None else width, c.height if height is None else height
        check_size(width, height, c)
        picture = fit(picture, width, height)
        latents = self.encode(picture[None])[None]
        cfg = c.cfg if cfg is None else cfg
        context = self.text.encode([prompt] if cfg == 1 else ["", prompt]) if self.text else None
        sampled = self.sample(
            latents, context, frames=frames, steps=steps, cfg=cfg, lambda_=lambda_, gamma=gamma,
            churn=churn, seeds=[seed], progress=progress,
        )  # fmt: skip
        return self.decode(sampled[0])

    def interpolate(
        self,
        frames: Tensor,
        *,
        passes: int = 1,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Tensor:
        """Frames (n, 3, h, w) of any size → ((n−1)·(N−1)^passes + 1, 3, h, w), N = 5 the model's clip length."""
        count = len(frames)
        made = self.interpolated(frames, count, passes=passes, steps=steps, seed=seed, progress=progress)
        return torch.stack(list(made))

    def interpolated(
        self,
        frames: Iterable[Tensor],
        count: int,
        *,
        passes: int = 1,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """Frames (3, h, w) of any size, about `count` of them, → those and the new ones between them, as they are asked
        for (see Windows)."""
        self._require("ends")
        steps = self.config.steps if steps is None else steps
        windows = Windows(self.config, self.between, steps=steps, progress=progress)
        return windows.interpolated(frames, count, passes, seed)

    @torch.no_grad()
    def between(
        self, ends: Tensor, seeds: list[int], steps: int | None = None, progress: Progress | None = None
    ) -> Tensor:
        """A batch of windows (b, 2, 3, h, w), whose sides are whole latent cells, and a seed for each → the frames
        (b, N − 2, 3, h, w) between their two."""
        count = self.config.network.frames
        latents = self.encode(ends.flatten(0, 1)).unflatten(0, (-1, 2))
        encoded = self.network.encode_condition(latents.to(self.dtype))
        sampled = self.sample(
            latents, None, frames=count, steps=steps, cfg=1.0, seeds=seeds, progress=progress, encoded=encoded
        )  # fmt: skip
        # What the autoencoder loses of the end frames is known: give it back on the way.
        lost = ends - self.decode(latents.flatten(0, 1)).unflatten(0, (-1, 2))
        lost = self.network.carry(encoded, lost.to(self.device), count)[:, 1:-1].cpu()
        middle = self.decode(sampled[:, 1:-1].flatten(0, 1)).unflatten(0, (-1, count - 2))
        return (middle + lost).clamp(0, 1)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        context: Tensor | None,
        *,
        frames: int,
        steps: int | None = None,
        cfg: float = 1.0,
        lambda_: float | None = None,
        gamma: float | None = None,
        churn: float = 0.0,
        seeds: list[int],
        progress: Progress | None = None,
        encoded: Condition | None = None,
    ) -> Tensor:
        """Scaled condition latents (b, k, C, h, w), one seed a clip → scaled latents (b, frames, C, h, w). `encoded` is
        what the network's encode_condition gives for them, if it was asked before."""
        c = self.config
        lambda_ = c.lambda_ if lambda_ is None else lambda_
        gamma = c.gamma if gamma is None else gamma
        steps = c.steps if steps is None else steps
        for what, number in (("frames", frames), ("steps", steps)):
            if number < 1:
                raise MicroCinemaError(f"a clip of {number} {what} cannot be made: give 1 or more")
        sigmas = NoiseSchedule().sigmas_for(steps)  # on the CPU: 0-dim values that a GPU takes without waiting
        generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
        shape = (frames, *condition.shape[2:])
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)
        noise = shift(noise, prior_mean(condition, frames, lambda_ + gamma))
        if encoded is None:
            encoded = self.network.encode_condition(condition.to(self.dtype), lambda_)
        denoise = Denoiser(self.network, c, encoded, context, cfg)
        sampled = sample_euler_edm(
            denoise, initial(noise, sigmas[0]), sigmas, progress and (lambda i, _: progress(i + 1, steps)),
            mean=prior_mean(condition, frames, lambda_ + gamma), s_churn=churn, generator=generators[0],
        )  # fmt: skip
        if not torch.isfinite(sampled).all():
            raise MicroCinemaError(self._overflow())
        return sampled

    def _overflow(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        better = [name for name in ("bfloat16", "float32") if name in self.config.dtypes and name != dtype]
        cure = f"choose {' or '.join(better)}" if better else "lower cfg and churn, or fetch the file again"
        return f"the model '{self.config.name}' gave numbers that are none (NaN or infinite) in {dtype}: {cure}"

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) → scaled latents (n, C, h/f, w/f), float32."""
        return self.autoencoder.encode(pictures.to(self.device, self.dtype)).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (n, C, h, w) → pictures (n, 3, h·f, w·f) in [0, 1] on the CPU, a few frames at a time."""
        parts = latents.to(self.dtype).split(8)
        pictures = torch.cat([self.autoencoder.decode(part).float().clamp(0, 1).cpu() for part in parts])
        if pictures.isnan().any():
            raise MicroCinemaError(self._overflow())
        return pictures

    def _require(self, condition: str) -> None:
        if self.config.network.condition != condition:
            kind = {"centre": "animates a picture", "ends": "interpolates between frames"}
            raise MicroCinemaError(
                f"model '{self.config.name}' {kind[self.config.network.condition]}: choose one that {kind[condition]}"
            )


def check_size(width: int, height: int, config: ModelConfig) -> None:
    """Raise MicroCinemaError unless a model can make a clip of width × height pixels."""
    factor, least = config.autoencoder.factor, least_side(config)
    if width % factor or height % factor or min(width, height) < least:
        near = "x".join(str(max(least, round(side / factor) * factor)) for side in (width, height))
        message = f"the size {width}x{height} does not fit the model '{config.name}', whose sides are multiples of"
        raise MicroCinemaError(f"{message} {factor} from {least} on: choose {near} (--size {near})")
