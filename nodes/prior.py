"""Appearance Noise Prior Latent: makes a picture the condition of a clip and the mean of its noise."""

from __future__ import annotations

import node_helpers
import torch
from comfy_api.latest import io

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.images import fit, size_from
from ..microcinema_core.pipeline import check_motion
from .display import show_text
from .prior_patch import APPEARANCE, Appearance
from .schema import check_encoded, check_images, in_range, require, schema


class Noise:
    """NOISE for SamplerCustomAdvanced: Gaussian noise of a seed. It has no mean, which the MODEL adds in every run."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, latent):
        """Noise in the shape of a LATENT's samples."""
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(self.seed))


class PriorLatent(io.ComfyNode):
    """The node Appearance Noise Prior Latent."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaPriorLatent",
            display_name="Appearance Noise Prior Latent",
            description="Makes a picture the condition of a clip, and the mean of the noise that the sampler starts "
            "from. The prior enters the run exactly once, with any sampler.",
            search_aliases=["image to video", "i2v latent", "noise prior", "ANP", "animate picture", "microcinema"],
            inputs=[
                io.Model.Input("model", tooltip="A MicroCinema model that animates pictures."),
                io.Conditioning.Input("positive", tooltip="What moves, and how."),
                io.Conditioning.Input("negative", tooltip="The empty sentence, or what is not wanted."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The picture that the middle frame shows. Of a batch, the first."),
                io.Int.Input(
                    "width", default=0, min=0, max=4096, step=8,
                    tooltip="Of the clip, in pixels; the picture is resized and cut to it. "
                    "0: from the picture; both 0: its shape, long side 384.",
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=4096, step=8,
                    tooltip="Of the clip, in pixels. 0: from the picture's shape and the width.",
                ),
                io.Int.Input(
                    "frames", default=9, min=2, max=257,
                    tooltip="Of the clip; the picture is the middle one, of an even number the first after the middle. "
                    "The models are trained at 9.",
                ),
                io.Float.Input(
                    "lambda_", display_name="lambda", default=0.03, min=0.0, max=1.0, step=0.005,
                    tooltip="λ, the prior's strength in training: 0.03 for the paper's models and the bundled one. "
                    "Starting from the prior helped in all small models measured; having trained with it added "
                    "little or nothing to that.",
                ),
                io.Float.Input(
                    "gamma", default=0.02, min=-1.0, max=1.0, step=0.005,
                    tooltip="γ, added to λ when sampling: more is calmer, a negative one moves more and wilder. It is "
                    "a fine adjustment: in small models, from −0.02 to 0.06, the motion fell by 8 to 30 %.",
                ),
                io.Int.Input(
                    "noise_seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="Of the noise output; samplers with a seed of their own do not use it.",
                ),
                io.Float.Input(
                    "motion", default=1.0, min=0.0, max=4.0, step=0.05, optional=True,
                    tooltip="The size of the motion: 0.5 is half the way, 0 a still. The bundled model has it; a "
                    "full-size one moves less with more gamma.",
                ),
                io.Boolean.Input(
                    "overscan", default=False, optional=True,
                    tooltip="Never show what lies outside the picture: the view is as much tighter as the camera's "
                    "move needs. The bundled model has it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of that many frames."),
                io.Noise.Output(
                    display_name="noise", tooltip="For SamplerCustomAdvanced. Plain: the model adds the prior, once.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, model, positive, negative, vae, image, width, height, frames, lambda_, gamma, noise_seed,
                motion=1.0, overscan=False):  # fmt: skip
        """Encode the picture; returns both conditionings with it, an empty latent and the noise. Raises
        MicroCinemaError for inputs that do not fit together."""
        config = require(model, "centre")
        motion = 1.0 if motion is None else motion
        check_motion(config, motion, bool(overscan))
        factor = config.autoencoder.factor
        picture = check_images(image)[0].movedim(-1, 0)
        if min(picture.shape[1:]) < factor:
            size = f"{picture.shape[2]}×{picture.shape[1]}"
            raise MicroCinemaError(
                f"The picture of {size} pixels is smaller than one latent cell of {factor}: enlarge it."
            )
        width, height = _size(picture, width, height, factor)
        show_text(f"{frames} frames of {width}×{height}")
        latents = vae.encode(fit(picture, width, height).movedim(0, -1)[None])
        check_encoded(latents, config)
        appearance = Appearance(latents[None], lambda_, gamma, motion, frames if overscan else 0)
        positive, negative = (
            node_helpers.conditioning_set_values(conditioning, {APPEARANCE: appearance})
            for conditioning in (positive, negative)
        )
        empty = torch.zeros(frames, *latents.shape[1:])
        return io.NodeOutput(positive, negative, {"samples": empty}, Noise(noise_seed))


def _size(picture: torch.Tensor, width: int, height: int, factor: int) -> tuple[int, int]:
    """The width and height of the clip. A side of 0 follows from the aspect ratio of the picture (3, H, W). Raises
    MicroCinemaError for sides that are no multiples of `factor`."""
    if not width and not height:
        return size_from(picture, factor)
    rows, columns = picture.shape[1:]
    width = width or max(1, round(height * columns / rows / factor)) * factor
    height = height or max(1, round(width * rows / columns / factor)) * factor
    if width % factor or height % factor:
        raise MicroCinemaError(f"The size {width}×{height} does not fit the model: take multiples of {factor}.")
    return width, height
