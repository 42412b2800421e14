"""The pipeline: a picture and a sentence become frames, and frames become more frames."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import LoadedModel, load_model
from .config import ModelConfig
from .diffusion import Denoiser, NoiseSchedule
from .errors import MicroCinemaError
from .images import fit
from .model import Condition, MicroCinemaUNet
from .model.autoencoder import Autoencoder
from .model.text import TextEncoder
from .prior import prior_mean, shift
from .samplers import initial, sample_euler
from .windows import Progress, Windows, each_once, minimum_side


class Pipeline:
    """A loaded model with its sampler. Pictures are float tensors in [0, 1]."""

    network: MicroCinemaUNet
    autoencoder: Autoencoder
    text: TextEncoder | None

    def __init__(self, model: LoadedModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """`device` and `dtype` are those of the model's weights. Raises MicroCinemaError where a part is missing."""
        self.config: ModelConfig = model.config
        if model.autoencoder is None:
            raise self._missing_part("autoencoder")
        if model.text is None and model.config.network.context_dim is not None:
            raise self._missing_part("text encoder")
        if model.network is None:
            raise self._missing_part("network")
        self.network, self.autoencoder, self.text = model.network, model.autoencoder, model.text
        self.device, self.dtype = torch.device(device), dtype

    def _missing_part(self, part: str) -> MicroCinemaError:
        return MicroCinemaError(f"model '{self.config.name}' has no {part} in its file: use an all-in-one file")

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        tokenizer: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """Load a model file, with `tokenizer` as in load_model. `dtype` is that of the networks; latents and the
        sampler use float32."""
        return cls(load_model(path, device, dtype, tokenizer), device, dtype)

    @property
    def vocabulary(self) -> list[str]:
        """The words of the text encoder's vocabulary; empty for a model without text and for CLIP's tokenizer."""
        return self.text.tokenizer.vocabulary if self.text else []

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of the prompt that are not in the text encoder's vocabulary."""
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
        motion: float = 1.0,
        overscan: bool = False,
    ) -> Tensor:
        """Animate a picture (3, H, W), cropped and resized to width × height, as `prompt` says: (t, 3, height, width).

        The picture is the condition of the centre frame t//2. Settings that are None come from the model's header. The
        noise is drawn on the CPU from `seed`, so that it is the same on every device. `motion` scales the motion, 0.5
        is half the way; with `overscan` nothing outside of the picture is shown, at the price of a tighter view. Raises
        MicroCinemaError for a size that is no multiple of the latent cell, for less than one frame or step, for a
        motion or overscan that the model does not have, and where the network overflows.
        """
        c = self.config
        self._require("centre")
        check_motion(c, motion, overscan)
        frames = c.network.frames if frames is None else frames
        width, height = c.width if width is None else width, c.height if height is None else height
        check_size(width, height, c)
        picture = fit(picture, width, height)
        latents = self.encode(picture[None])[None]
        cfg = c.cfg if cfg is None else cfg
        context = self.text.encode([prompt] if cfg == 1 else ["", prompt]) if self.text else None
        sampled = self.sample(
            latents, context, frames=frames, steps=steps, cfg=cfg, lambda_=lambda_, gamma=gamma,
            churn=churn, seeds=[seed], progress=progress, motion=motion, overscan=frames if overscan else 0,
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
        """Frames (n, 3, h, w) of any size → ((n−1)·(N−1)^passes + 1, 3, h, w), with N = 5 the model's clip length."""
        count = len(frames)
        result = self.interpolated(frames, count, passes=passes, steps=steps, seed=seed, progress=progress)
        return torch.stack(list(result))

    def interpolated(
        self,
        frames: Iterable[Tensor],
        count: int,
        *,
        passes: int = 1,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> Iterator[Tensor]:
        """Frames (3, h, w) of any size, about `count` of them → the same frames and the new ones between them, computed
        when the iterator needs them (see Windows, also for `warn`)."""
        self._require("ends")
        steps = self.config.steps if steps is None else steps
        windows = Windows(self.config, self, steps=steps, progress=progress, warn=warn)
        return windows.interpolated(frames, count, passes, seed)

    @torch.no_grad()
    def between(
        self, ends: Tensor, seeds: list[int], steps: int | None = None, progress: Progress | None = None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """A batch of windows (b, 2, 3, h, w), whose sides are multiples of the latent cell, and a seed for each → the
        frames (b, N − 2, 3, h, w) between their end frames. `shares` (b,) are those of Trust, 1 by default."""
        count = self.config.network.frames
        latents = each_once(self.encode, ends)
        encoded = self.network.encode_condition(latents.to(self.dtype), pixels=ends)
        sampled = self.sample(
            latents, None, frames=count, steps=steps, cfg=1.0, seeds=seeds, progress=progress, encoded=encoded
        )  # fmt: skip
        shares = torch.ones(len(ends)) if shares is None else shares
        return self.network.pictures_between(encoded, sampled, self.decode, shares)

    @torch.no_grad()
    def compare(self, triples: Tensor) -> Tensor:
        """As Interpolator's."""
        return self.network.compare(triples.to(self.device, self.dtype))

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
        motion: float = 1.0,
        overscan: int = 0,
    ) -> Tensor:
        """Sample scaled latents (b, frames, C, h, w) for scaled condition latents (b, k, C, h, w), one seed per clip.

        `encoded` is the result of the network's encode_condition for them, if it was called before; otherwise it is
        called with `motion` and `overscan`, the number of frames or 0. Raises MicroCinemaError as `animate` does.
        """
        c = self.config
        lambda_ = c.lambda_ if lambda_ is None else lambda_
        gamma = c.gamma if gamma is None else gamma
        steps = c.steps if steps is None else steps
        for what, number in (("frames", frames), ("steps", steps)):
            if number < 1:
                raise MicroCinemaError(f"a clip of {number} {what} cannot be made: give 1 or more")
        sigmas = NoiseSchedule().sigmas_for(steps)  # on the CPU: 0-dim values, whose use does not synchronise a GPU
        generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
        shape = (frames, *condition.shape[2:])
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)
        noise = shift(noise, prior_mean(condition, frames, lambda_ + gamma))
        if encoded is None:
            encoded = self.network.encode_condition(
                condition.to(self.dtype), lambda_=lambda_, motion=motion, overscan=overscan
            )
        denoise = Denoiser(self.network, c, encoded, context, cfg)
        sampled = sample_euler(
            denoise, initial(noise, sigmas[0]), sigmas, progress and (lambda step: progress(step["i"] + 1, steps)),
            mean=prior_mean(condition, frames, lambda_ + gamma), s_churn=churn, generator=generators[0],
        )  # fmt: skip
        if not torch.isfinite(sampled).all():
            raise MicroCinemaError(self._overflow())
        return sampled

    def _overflow(self) -> str:
        """The message for a result with NaN or infinity: names the dtype and what to try instead."""
        dtype = str(self.dtype).removeprefix("torch.")
        better = [name for name in ("bfloat16", "float32") if name in self.config.dtypes and name != dtype]
        cure = f"choose {' or '.join(better)}" if better else "lower cfg and churn, or fetch the file again"
        return f"the model '{self.config.name}' gave numbers that are none (NaN or infinite) in {dtype}: {cure}"

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) → scaled latents (n, C, h/f, w/f) in float32, f the autoencoder's factor."""
        return self.autoencoder.encode(pictures.to(self.device, self.dtype)).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (n, C, h, w) → pictures (n, 3, h·f, w·f) in [0, 1] on the CPU, decoded 8 at a time.

        Raises MicroCinemaError where the decoder overflows.
        """
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
    """Raise MicroCinemaError unless the model can generate a clip of width × height pixels."""
    factor, minimum = config.autoencoder.factor, minimum_side(config)
    if width % factor or height % factor or min(width, height) < minimum:
        near = "x".join(str(max(minimum, round(side / factor) * factor)) for side in (width, height))
        message = f"the size {width}x{height} does not fit the model '{config.name}', whose sides are multiples of"
        raise MicroCinemaError(f"{message} {factor} from {minimum} on: choose {near} (--size {near})")


def check_motion(config: ModelConfig, motion: float, overscan: bool) -> None:
    """Raise MicroCinemaError for a size of the motion other than 1, or overscan, where the model has none."""
    if (motion != 1 or overscan) and not config.moves_pixels:
        option = "motion" if motion != 1 else "overscan"
        raise MicroCinemaError(
            f"the model '{config.name}' has no {option}, which the bundled demo-base has: steer how much it moves with "
            "gamma, more is calmer"
        )
