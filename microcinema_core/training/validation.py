"""Samples and losses of clips that are the same at every step, by which a person sees how a training goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import images
from ..pipeline import Pipeline
from ..video import write_video
from .data.clips import Unusable
from .data.order import generator
from .data.samples import Clips
from .export import export, version
from .objective import by_band, moments
from .trainer import Trainer

if TYPE_CHECKING:
    from .recipe import Prepared

SAMPLES, CLIPS = 4, 16  # clips that are sampled, and those whose loss is computed
NOISE = 2**60  # instead of a step, for the noise of the losses


class Validation:
    """Shows the averaged model: the loss of each clip at five timesteps, samples of some beside the true clips as a
    sheet and as animations, and the model file."""

    def __init__(self, prepared: Prepared, clips: Clips, rows: np.ndarray, trainer: Trainer, folder: Path):
        """rows: the clips, by which `clips` knows them."""
        self.prepared, self.clips, self.rows, self.trainer = prepared, clips, rows[:CLIPS], trainer
        self.path = folder / f"{prepared.config.name}.safetensors"
        self._read: list[tuple[str, Tensor]] | None = None  # captions, and scaled latents (1, t, C, h, w)

    def show(self, folder: Path, stem: str) -> dict[str, float]:
        """Write samples and the model; returns the losses, for Trainer."""
        world, config = self.trainer.world, self.prepared.config
        if self._read is None:
            self._read = self._read_clips()
        with torch.autocast(world.device.type, torch.bfloat16, enabled=self.trainer.config.train.dtype == "bfloat16"):
            figures = self._losses(self._read)
            sheet = []
            for number, (caption, latents) in enumerate(self._read[:SAMPLES]):
                truth, sample = self._sample(caption, latents, number)
                if world.first:
                    write_video(folder / f"{stem}-{number}.gif", torch.cat((truth, sample), -1), min(config.fps, 50))
                sheet += [truth, sample]
        if world.first and len({clip.shape for clip in sheet}) == 1:
            images.contact_sheet(torch.cat(sheet, -2), folder / f"{stem}.png")
        export(self.path, self.prepared.loaded, self._notes(figures), world)
        return figures

    def _read_clips(self) -> list[tuple[str, Tensor]]:
        autoencoder, device = self.prepared.loaded.autoencoder, self.trainer.world.device
        assert autoencoder is not None
        read = []
        for row in self.rows.tolist():
            try:
                clip = self.clips.read(row, 0)
            except Unusable:
                continue
            mean = clip.mean
            if mean is None:
                assert clip.pixels is not None
                mean = moments(clip.pixels[None].to(device), autoencoder)[0][0]
            read.append((clip.caption, autoencoder.config.scale * mean[None].to(device).float()))
        return read

    def _losses(self, clips: list[tuple[str, Tensor]]) -> dict[str, float]:
        timesteps = torch.arange(5) * 200 + 99
        objective, losses = self.prepared.objective, []
        for number, (caption, latents) in enumerate(clips):
            text = self._tokens(caption)
            noise = torch.randn(latents.shape, generator=generator(0, NOISE, number)).to(latents)
            for timestep in timesteps:
                losses.append(
                    objective.diffusion.losses(objective.model, latents, timestep[None].to(latents.device), noise, text)
                )
        if not losses:
            return {}
        values = torch.cat(losses).cpu()
        bands = by_band(values, timesteps.repeat(len(clips)))
        return {"validation_loss": values.mean().item()} | {f"validation_{key}": value for key, value in bands.items()}

    def _tokens(self, caption: str) -> Tensor | None:
        text = self.prepared.loaded.text
        return text.tokenizer([caption]) if text else None

    def _sample(self, caption: str, latents: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The decoded clip and a sample for its condition and caption, both (t, 3, h, w)."""
        config, loaded = self.prepared.config, self.prepared.loaded
        pipeline = Pipeline(loaded, self.trainer.world.device)
        cfg = config.cfg if loaded.text else 1.0
        context = loaded.text.encode([""] * (cfg != 1) + [caption]) if loaded.text else None
        sampled = pipeline.sample(
            self.prepared.objective.diffusion.condition(latents),
            context,
            frames=latents.shape[1],
            cfg=cfg,
            seeds=[seed],
        )
        return pipeline.decode(latents[0]), pipeline.decode(sampled[0])

    def _notes(self, figures: dict[str, float]) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "step": trainer.step, "version": version(), "data": trainer.identity["data"], "figures": figures,
            "settings": trainer.config.identity(),
        }  # fmt: skip
