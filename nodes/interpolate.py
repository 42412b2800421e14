"""Temporal Interpolate: inserts frames between the frames of an image batch."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..microcinema_core.diffusion import NoiseSchedule
from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.windows import Progress, Windows, each_once
from .display import show_text
from .prior_patch import APPEARANCE, Appearance
from .sampler import euler_edm
from .schema import check_encoded, check_images, in_range, require, schema


class WindowGuider(comfy.samplers.CFGGuider):
    """A guider without text: one conditioning, no negative."""

    def set_appearance(self, appearance: Appearance) -> None:
        """Set the conditioning to that of these pictures."""
        self.inner_set_conds({"positive": [[None, {APPEARANCE: appearance}]]})
        self.set_cfg(1.0)


class HostInterpolator:
    """Interpolates batches of windows with the host's sampler, wrappers, patches and memory management."""

    def __init__(self, model, vae, config):
        self.model, self.vae, self.config = model, vae, config
        self.guider = WindowGuider(model)

    def between(self, ends: Tensor, seeds: list[int], steps: int, progress: Progress | None, shares: Tensor) -> Tensor:
        """As the core's Interpolator: end frames (b, 2, 3, h, w) in [0, 1] to frames (b, N − 2, 3, h, w)."""
        count = self.config.network.frames
        latents = each_once(self._encode, ends)
        appearance = Appearance(latents, self.config.lambda_, self.config.gamma, pixels=ends)
        shape = (count, *latents.shape[2:])
        noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        self._load(noise.shape)
        host = self.model.model
        encoded = host.encode(appearance, self.model.load_device)  # the model keeps it for the sampling
        self.guider.set_appearance(appearance)
        sampled = self.guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(euler_edm), NoiseSchedule().sigmas_for(steps),
            callback=progress and (lambda step, *_: progress(step + 1, steps)), disable_pbar=True, seed=seeds[0],
        ).unflatten(0, (-1, count))  # fmt: skip

        def decode(latents: Tensor) -> Tensor:
            pictures = self._decode(host.process_latent_out(latents))
            self._load(noise.shape)
            return pictures

        self._load(noise.shape)
        with torch.no_grad():
            sampled = host.process_latent_in(sampled.to(self.model.load_device))
            return host.diffusion_model.pictures_between(encoded, sampled, decode, shares)

    @torch.no_grad()
    def compare(self, triples: Tensor) -> Tensor:
        """As the core's Interpolator."""
        host = self.model.model
        self._load((len(triples), host.latent_format.latent_channels, *triples.shape[-2:]))
        return host.diffusion_model.compare(triples.to(self.model.load_device, host.compute_dtype))

    def _load(self, shape) -> None:
        """Load the network with its patches to its device, from which the VAE may have displaced it."""
        required = self.model.memory_required(list(shape))
        comfy.model_management.load_models_gpu([self.model], memory_required=required)

    def _encode(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.movedim(1, -1)).float()
        check_encoded(latents, self.config)
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).float().movedim(-1, 1).cpu()


class Interpolate(io.ComfyNode):
    """The node Temporal Interpolate."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaInterpolate",
            display_name="Temporal Interpolate",
            description="Puts three new frames between any two frames. The given ones come out unchanged.",
            search_aliases=["interpolate", "frame interpolation", "smooth video", "increase fps", "slow motion"],
            inputs=[
                io.Model.Input("model", tooltip="A MicroCinema model that interpolates, such as demo-interpolation."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("images", tooltip="Any batch of two or more frames, of any size."),
                io.Int.Input("passes", default=1, min=1, max=2, tooltip="1: 9 frames become 33. 2: 33 become 129."),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000,
                    tooltip="0: the model's own, 1 for the bundled one, 50 for the paper's.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="Of the noise.",
                ),
                io.Boolean.Input(
                    "loop", default=False, tooltip="Also between the last frame and the first: a loop without a seam.",
                ),
                io.Float.Input("fps", default=2.0, min=0.01, max=1000.0, step=0.01, tooltip="Of the given frames."),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Float.Output(display_name="fps", tooltip="4 times the given one for each pass."),
                io.Int.Output(display_name="frame_count"),
            ],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, model, vae, images, passes, steps, seed, loop, fps):
        """Interpolate the images; returns them, the new frames per second and the number of frames. Raises
        MicroCinemaError for inputs that do not fit together."""
        config = require(model, "ends")
        frames = check_images(images, minimum=2).cpu()
        cls._check_vae(vae, config)
        if model.model_options.get("context_handler"):
            raise MicroCinemaError("Temporal Interpolate cuts windows itself: take Context Windows out of its MODEL.")
        steps = steps or config.steps
        show_text(f"{steps} step{'s' * (steps > 1)}")
        frames = torch.cat((frames, frames[:1])) if loop else frames
        bar = comfy.utils.ProgressBar(1)
        windows = Windows(
            config, HostInterpolator(model, vae, config), steps=steps, progress=bar.update_absolute,
            out_of_memory=comfy.model_management.OOM_EXCEPTION, warn=show_text,
        )  # fmt: skip
        inserted = (config.network.frames - 1) ** passes
        result = torch.empty((len(frames) - 1) * inserted + 1, *frames.shape[1:])
        for index, frame in enumerate(windows.interpolated(frames.movedim(-1, 1), len(frames), passes, seed)):
            result[index] = frame.movedim(0, -1)
        result = result[: len(result) - loop]
        return io.NodeOutput(result, fps * inserted, len(result))

    @staticmethod
    def _check_vae(vae, config) -> None:
        actual, expected = vae.latent_channels, config.autoencoder.latent_channels
        if actual != expected:
            raise MicroCinemaError(
                f"The VAE has {actual} latent channels, the model {expected}: wire the VAE that belongs to it."
            )
