"""Appearance Noise Prior (any model): starts the sampling of any video model from noise with a picture as its mean.

The node encodes nothing. When a run begins, the size and the length of the clip are known: the picture is encoded then,
before the model is loaded, and once for each size. The noise is shifted as the last thing before the sampler gets it,
after all that other nodes do to it. This module imports no network.
"""

from __future__ import annotations

import logging
from copy import copy

import comfy.patcher_extension
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.images import fit
from ..microcinema_core.prior import CURVES, frame_strengths, low_pass, without_mean
from .prior_patch import is_first_stage
from .schema import PLACES, advanced, check_images, in_range, schema

KEY = "microcinema_prior_any"
FORMS = {"picture": lambda latents: latents, "mean removed": without_mean, "low-pass": low_pass}
STILLS = ("encoded still clip", "repeated latent")
Wrappers = comfy.patcher_extension.WrappersMP


class AnyPrior:
    """The mean of the noise for one picture, and the wrappers that add it."""

    def __init__(self, vae, picture: Tensor, strength: float, *, curve: str, values: tuple[float, ...], given: str,
                 form: str, still: str, mask: Tensor | None):  # fmt: skip
        """picture: (3, H, W) in [0, 1]. mask: (1, H, W) in [0, 1], 1 where the prior acts."""
        self.vae, self.picture, self.strength, self.mask = vae, picture, strength, mask
        self.curve, self.values, self.given, self.form, self.still = curve, values, PLACES[given], form, still
        self.encoded: dict[tuple[int, ...], Tensor] = {}

    def with_strength(self, strength: float) -> AnyPrior:
        """The same with another strength, and with what was encoded."""
        other = copy(self)
        other.strength = strength
        return other

    def identity(self, any_strength: bool) -> list:
        """What its mean depends on, with or without the strength."""
        settings = [self.curve, self.values, self.given, self.form, self.still]
        return [self.picture, self.mask, settings, None if any_strength else self.strength]

    def start(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """The OUTER_SAMPLE wrapper: encodes the picture, and registers `shift` as the last wrapper of this run.

        Raises MicroCinemaError for a sampler that draws its own noise, and for a VAE that does not fit the model.
        """
        if getattr(getattr(sampler, "sampler_function", None), "__name__", "") == "sample_ar_video":
            raise MicroCinemaError(
                "sample_ar_video draws the noise of every block by itself, so that no prior can enter: take another "
                "sampler, or take Appearance Noise Prior (any model) out of its MODEL."
            )
        shapes = kwargs.get("latent_shapes") or [noise.shape]
        if self.strength and is_first_stage(executor.class_obj.model_patcher, noise, sigmas):
            latents = self._latents(tuple(shapes[0]))
            options = executor.class_obj.model_options  # of this run alone

            def shift(executor, guider, sigmas, extra_args, callback, noise, *args):
                noise = self._shifted(guider, noise, latents, shapes, args[1] if len(args) > 1 else None)
                return executor(guider, sigmas, extra_args, callback, noise, *args)

            comfy.patcher_extension.add_wrapper_with_key(
                Wrappers.SAMPLER_SAMPLE, KEY, shift, options, is_model_options=True
            )
            logging.info("MicroCinema: the noise starts from the picture, strength %g", self.strength)
        else:
            logging.info("MicroCinema: the noise is left alone (strength 0, or a second stage without noise)")
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def _shifted(self, guider, noise: Tensor, latents: Tensor, shapes: list, denoise_mask: Tensor | None) -> Tensor:
        """ε + μ/s, s the noise scale of flow models. Of several packed latents only the first, the picture's, is
        shifted."""
        model, packed = guider.inner_model, len(shapes) > 1
        parts = _unpacked(noise, shapes)
        scaled = (model.latent_format.process_in if packed else model.process_latent_in)(latents.to(parts[0]))
        scaled = FORMS[self.form](scaled)
        dim = 2 if scaled.ndim == 5 else 0
        frames = parts[0].shape[dim]
        guides = _guide_frames(guider.conds, parts[0].shape)
        strengths = torch.zeros(frames)
        strengths[: frames - guides] = frame_strengths(
            self.strength, frames - guides, self.curve, self.given, self.values
        )
        shape = [1] * scaled.ndim
        shape[dim] = frames
        mean = strengths.to(scaled).view(shape) * scaled / getattr(model.model_sampling, "noise_scale", 1.0)
        if self.mask is not None:
            height, width = mean.shape[-2:]
            mean = mean * fit(self.mask, width, height).to(mean)
        if denoise_mask is not None:  # where a frame is given, nothing is shifted
            mean = mean * _unpacked(denoise_mask, shapes)[0]
        parts[0] = parts[0] + mean
        return comfy.utils.pack_latents(parts)[0] if packed else parts[0]

    def _latents(self, shape: tuple[int, ...]) -> Tensor:
        """The still clip's latents for noise of a shape (frames, C, h, w) or (b, C, t, h, w), as the VAE gives them.
        A dimension that does not vary is 1."""
        if len(shape) not in (4, 5):
            raise MicroCinemaError(f"The latent is of shape {shape}, no picture or clip: the prior is for videos.")
        if shape not in self.encoded:
            latents = self._encode(shape)
            self.encoded.clear()  # of the last size alone
            self.encoded[shape] = latents
        return self.encoded[shape]

    def _encode(self, shape: tuple[int, ...]) -> Tensor:
        spatial, temporal = self.vae.spacial_compression_encode(), self.vae.temporal_compression_decode()
        picture = fit(self.picture, shape[-1] * spatial, shape[-2] * spatial).movedim(0, -1)[None]
        if len(shape) == 4:
            latents = self.vae.encode(picture)
            latents = latents[:, :, 0] if latents.ndim == 5 else latents
        else:
            count = (shape[2] - 1) * temporal + 1 if temporal and self.still == STILLS[0] else 1
            latents = self.vae.encode(picture.expand(count, -1, -1, -1))
            latents = latents[:, :, None] if latents.ndim == 4 else latents
            latents = latents.expand(-1, -1, shape[2], -1, -1) if latents.shape[2] == 1 else latents
        if latents.shape != (1, *shape[1:]):
            raise MicroCinemaError(
                f"The VAE gives latents of shape {tuple(latents.shape)}, the model samples {shape}: wire the VAE that "
                "belongs to the model."
            )
        return latents


def _unpacked(latents: Tensor, shapes: list) -> list[Tensor]:
    """The parts of packed latents (b, 1, n), as newer hosts pack picture and sound; other latents as they are."""
    return comfy.utils.unpack_latents(latents, shapes) if len(shapes) > 1 else [latents]


def _guide_frames(conds: dict, shape) -> int:
    """How many frames at the end of a clip (b, C, t, h, w) are guides: LTXVAddGuide appends them, and the coordinates
    of their cells (b, 3, cells, …) are in the conditioning."""
    cells = [cond["keyframe_idxs"] for conditioning in conds.values() for cond in conditioning
             if cond.get("keyframe_idxs") is not None]  # fmt: skip
    return cells[0].shape[2] // (shape[-2] * shape[-1]) if cells else 0


def parse_values(text: str) -> tuple[float, ...]:
    """The numbers of a custom curve, "1, 0.5, 0". Raises MicroCinemaError for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(abs(value) <= 100 for value in values):  # False for NaN
        raise MicroCinemaError(f"The curve '{text[:40]}' is none: give numbers with commas, such as 1, 0.5, 0.")
    return values


class PriorAnyModel(io.ComfyNode):
    """The node Appearance Noise Prior (any model)."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaPriorAnyModel",
            display_name="Appearance Noise Prior (any model)",
            description="Starts any video model from noise whose mean is the picture: calmer clips that keep to the "
            "picture, or livelier ones with a negative strength. Goes between the model's loader and the sampler; "
            "strength 0 changes nothing.",
            search_aliases=["noise prior", "ANP", "image to video", "motion amplitude", "static video", "microcinema"],
            inputs=[
                io.Model.Input("model", tooltip="Any model that makes videos: SVD, AnimateDiff, Wan, LTX, Hunyuan, "
                               "Cosmos, Mochi, CogVideoX. Of Wan 2.2's two, the high-noise one."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The picture that the clip starts from. Of a batch, the first."),
                io.Float.Input(
                    "strength", default=0.03, min=-1.0, max=1.0, step=0.005,
                    tooltip="λ+γ, the picture's share of the noise. More is calmer, below 0 livelier; 0 is the model "
                    "alone. These models were trained without it: it steers, it corrects nothing.",
                ),
                io.Combo.Input("form", options=list(FORMS), default="picture", tooltip="Of the picture's latent: as it "
                               "is; without the mean of each channel, so that colours stay; its coarse part alone."),
                io.Combo.Input("curve", options=list(CURVES), default="constant", tooltip="Over the frames: the same; "
                               "falling to 0 at the frame farthest from the given one; your own factors."),
                advanced(io.String.Input("values", default="1, 0.5, 0", tooltip="Factors of a custom curve, from the "
                                         "first frame to the last; what lies between is interpolated.")),
                advanced(io.Combo.Input("given", options=list(PLACES), default="first",
                                        tooltip="The frame that the picture is, from which a falling curve falls.")),
                advanced(io.Combo.Input(
                    "still", options=list(STILLS), default=STILLS[0],
                    tooltip="For VAEs that compress time: the picture as a clip that stands still, encoded; or the one "
                    "latent of the picture, repeated.",
                )),
                io.Mask.Input("mask", optional=True, tooltip="Where the prior acts; white acts in full."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler node.")],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, model, vae, image, strength, form, curve, values, given, still, mask=None):
        """Return the MODEL with the prior; one of an earlier node of this kind is replaced. Raises MicroCinemaError for
        inputs that do not fit together."""
        if hasattr(model.model, "microcinema"):
            raise MicroCinemaError(
                "This MODEL is one of MicroCinema's, which has its own prior: use Appearance Noise Prior Latent."
            )
        picture = check_images(image)[0].movedim(-1, 0)
        prior = AnyPrior(
            vae, picture, strength, curve=curve, values=parse_values(values), given=given, form=form, still=still,
            mask=None if mask is None else _checked_mask(mask, picture),
        )  # fmt: skip
        patched = model.clone()
        patched.remove_wrappers_with_key(Wrappers.OUTER_SAMPLE, KEY)
        patched.add_wrapper_with_key(Wrappers.OUTER_SAMPLE, KEY, prior.start)
        return io.NodeOutput(patched)


def _checked_mask(mask: Tensor, picture: Tensor) -> Tensor:
    """The first MASK as (1, H, W). Raises MicroCinemaError where it is not of the picture's size."""
    if mask.ndim < 2 or 0 in mask.shape:
        raise MicroCinemaError(f"The mask is of shape {tuple(mask.shape)}: give (count, height, width).")
    mask = mask.reshape(-1, *mask.shape[-2:])[:1].float()
    if mask.shape[1:] != picture.shape[1:]:
        sizes = [f"{shape[-1]}×{shape[-2]}" for shape in (mask.shape, picture.shape)]
        raise MicroCinemaError(f"The mask is of {sizes[0]} pixels, the picture of {sizes[1]}: give one of its size.")
    return mask
