"""Temporal Interpolate: new frames between the frames of any image batch."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..microcinema_core.checkpoint import LoadedModel
from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.pipeline import Pipeline
from .schema import check_images, require, schema


class _Network:
    """The host's copy of the network, in the precision the host runs it in."""

    def __init__(self, model):
        self.network, self.dtype = model.diffusion_model, model.compute_dtype

    def encode_condition(self, latents: Tensor):
        return self.network.encode_condition(latents.to(self.dtype))

    def carry(self, condition, pictures: Tensor, frames: int) -> Tensor:
        return self.network.carry(condition, pictures, frames)

    def __call__(self, x: Tensor, timesteps: Tensor, context, *, condition, num_video_frames: int) -> Tensor:
        out = self.network(x.to(self.dtype), timesteps, context, condition=condition, clip_frames=num_video_frames)
        return out.to(x.dtype)


class _Autoencoder:
    """The host's VAE as the core knows autoencoders: (n, 3, h, w) in [0, 1] to scaled latents and back."""

    def __init__(self, vae, latent_format, device):
        self.vae, self.format, self.device = vae, latent_format, device

    def encode(self, pictures: Tensor) -> Tensor:
        return self.format.process_in(self.vae.encode(pictures.movedim(1, -1))).float().to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self.format.process_out(latents)).float().movedim(-1, 1)


class Interpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroCinemaInterpolate",
            display_name="Temporal Interpolate",
            description="Puts three new frames between any two frames. The given ones come out unchanged.",
            search_aliases=["frame interpolation", "smooth video", "increase fps", "slow motion"],
            inputs=[
                io.Model.Input("model", tooltip="A MicroCinema model that interpolates, such as demo-interpolation."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("images", tooltip="Any batch of two or more frames, of any size."),
                io.Int.Input("passes", default=1, min=1, max=2, tooltip="1: 9 frames become 33. 2: 33 become 129."),
                io.Int.Input(
                    "steps", default=1, min=1, max=1000, tooltip="1 suits the bundled model, 50 the paper's.",
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
    def execute(cls, model, vae, images, passes, steps, seed, loop, fps):
        config = require(model, "ends")
        frames = check_images(images, least=2).cpu()
        frames = torch.cat((frames, frames[:1])) if loop else frames
        cls._check_vae(vae, config)
        host = model.model
        comfy.model_management.load_models_gpu([model], memory_required=model.memory_required([20, *frames.shape[1:]]))
        device = model.load_device
        parts = LoadedModel(config, _Network(host), _Autoencoder(vae, host.latent_format, device), None)
        bar = comfy.utils.ProgressBar(1)

        def progress(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        made = Pipeline(parts, device).interpolate(
            frames.movedim(-1, 1), passes=passes, steps=steps, seed=seed, progress=progress
        )
        made = made[: len(made) - loop].movedim(1, -1)
        inserted = (config.network.frames - 1) ** passes
        return io.NodeOutput(made, fps * inserted, len(made))

    @staticmethod
    def _check_vae(vae, config) -> None:
        found, wanted = vae.latent_channels, config.autoencoder.latent_channels
        if found != wanted:
            raise MicroCinemaError(
                f"The VAE has {found} latent channels, the model {wanted}: wire the VAE that belongs to it."
            )
