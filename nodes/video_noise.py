"""Video Noise: NOISE whose frames depend on each other, to compare the prior with."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.noise import KINDS, correlated_noise, frame_init
from .schema import in_range, schema

FRAME_INIT = "FrameInit"


class FramesNoise:
    """NOISE for SamplerCustomAdvanced, drawn frame by frame."""

    def __init__(self, seed: int, kind: str, alpha: float, still: torch.Tensor | None, level: float):
        self.seed, self.kind, self.alpha, self.still, self.level = seed, kind, alpha, still, level

    def generate_noise(self, latent):
        """Noise in the shape of a LATENT's samples, (frames, C, h, w) or (b, C, t, h, w)."""
        samples = latent["samples"]
        if samples.is_nested or samples.ndim not in (4, 5):
            raise MicroCinemaError("Video Noise is for latents of pictures alone: give it the LATENT before its sound.")
        clips = samples.movedim(2, 0) if samples.ndim == 5 else samples  # frames first
        kind = self.kind if self.kind in KINDS else "independent"
        noise = correlated_noise(tuple(clips.shape[1:]), len(clips), self.seed, kind, self.alpha)
        if self.kind == FRAME_INIT:
            assert self.still is not None  # as execute has checked
            still = self.still.movedim(2, 0) if self.still.ndim == 5 else self.still
            if still.shape[1:] != noise.shape[1:] or len(still) not in (1, len(noise)):
                raise MicroCinemaError(
                    f"The still clip is of shape {tuple(self.still.shape)}, the latent of {tuple(samples.shape)}: "
                    "encode the picture at the size of the clip."
                )
            noise = frame_init(still.to(noise).expand_as(noise), noise, self.level)
        return noise.movedim(0, 2) if samples.ndim == 5 else noise


class VideoNoise(io.ComfyNode):
    """The node Video Noise."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaVideoNoise",
            display_name="Video Noise",
            description="Noise whose frames depend on each other: PYoCo's mixed and progressive noise, FrameInit. A "
            "longer clip keeps the noise of its first frames.",
            search_aliases=["pyoco", "mixed noise", "progressive noise", "frameinit", "freeinit"],
            inputs=[
                io.Int.Input(
                    "noise_seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="Of the noise.",
                ),
                io.Combo.Input(
                    "kind", options=[*KINDS, FRAME_INIT], default="mixed",
                    tooltip="Independent frames; PYoCo's mixed (all share a part) or progressive (each keeps a part of "
                    "the one before); FrameInit, whose coarse part is the still clip.",
                ),
                io.Float.Input("alpha", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="PYoCo's α: how much "
                               "frames share; 0 is independent noise."),
                io.Model.Input("model", optional=True, tooltip="For FrameInit: the model that samples."),
                io.Latent.Input("still", optional=True, tooltip="For FrameInit: the picture, encoded, as one frame or "
                                "as a still clip."),
                io.Float.Input("level", optional=True, default=0.023, min=0.0, max=1.0, step=0.001, tooltip="For "
                               "FrameInit: ᾱ of the noised still clip; 0.023 is timestep 850 of SD."),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, noise_seed, kind, alpha, model=None, still=None, level=0.023):
        """Return the NOISE. Raises MicroCinemaError for FrameInit without a model or a still clip."""
        latents = None
        if kind == FRAME_INIT:
            if model is None or still is None:
                raise MicroCinemaError("FrameInit needs the model and the picture's latent: wire model and still.")
            latents = model.model.process_latent_in(still["samples"])
        return io.NodeOutput(FramesNoise(noise_seed, kind, alpha, latents, level))
