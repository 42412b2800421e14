"""Temporal Interpolate: new frames between the frames of any image batch."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.schedule import NoiseSchedule
from .display import show_text
from .prior_patch import APPEARANCE, Appearance
from .sampler import euler_edm
from .schema import check_encoded, check_images, in_range, require, schema


class WindowGuider(comfy.samplers.CFGGuider):
    """A guider without text: one conditioning, no negative."""

    def set_appearance(self, appearance: Appearance) -> None:
        self.inner_set_conds({"positive": [[None, {APPEARANCE: appearance}]]})
        self.set_cfg(1.0)


class Windows:
    """Batches of two frames to those between them, through the host: its sampler, wrappers, patches and memory."""

    def __init__(self, model, vae, config, steps: int):
        self.model, self.vae, self.config, self.steps = model, vae, config, steps
        self.count = config.network.frames
        self.guider = WindowGuider(model)

    def between(self, ends: Tensor, seeds: list[int], callback=None) -> Tensor:
        """Ends (b, 2, 3, h, w) in [0, 1] of b windows, and their seeds, to the frames (b, N − 2, 3, h, w) between."""
        latents = self._encode(ends.flatten(0, 1)).unflatten(0, (-1, 2))
        appearance = Appearance(latents, self.config.lambda_, self.config.gamma)
        shape = (self.count, *latents.shape[2:])
        noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        self._load(noise.shape)
        encoded = self.model.model.encode(appearance, self.model.load_device)  # kept for sampling, and for what is lost
        self.guider.set_appearance(appearance)
        sampled = self.guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(euler_edm), NoiseSchedule().sigmas_for(self.steps),
            callback=callback, disable_pbar=True, seed=seeds[0],
        ).unflatten(0, (-1, self.count))  # fmt: skip
        middle = self._decode(sampled[:, 1:-1].flatten(0, 1)).unflatten(0, (-1, self.count - 2))
        # What the autoencoder loses of the end frames is known: give it back on the way.
        lost = ends - self._decode(latents.flatten(0, 1)).unflatten(0, (-1, 2))
        self._load(noise.shape)
        with torch.no_grad():
            lost = self.model.model.diffusion_model.carry(encoded, lost.to(self.model.load_device), self.count)
        return (middle + lost[:, 1:-1].cpu()).clamp(0, 1)

    def padded(self, frames: Tensor) -> Tensor:
        factor = self.config.autoencoder.factor
        least = factor * 2 ** (len(self.config.network.channel_multipliers) - 1)
        rows, columns = (max(least, -(-side // factor) * factor) - side for side in frames.shape[2:])
        return torch.nn.functional.pad(frames, (0, columns, 0, rows), mode="replicate") if rows or columns else frames

    def _load(self, shape) -> None:
        """The network on its device, with its patches: the VAE may have pushed it away since."""
        required = self.model.memory_required(list(shape))
        comfy.model_management.load_models_gpu([self.model], memory_required=required)

    def _encode(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.movedim(1, -1)).float()
        check_encoded(latents, self.config)
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).float().movedim(-1, 1).cpu()


class Interpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
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
        config = require(model, "ends")
        frames = check_images(images, least=2).cpu()
        cls._check_vae(vae, config)
        if model.model_options.get("context_handler"):
            raise MicroCinemaError("Temporal Interpolate cuts windows itself: take Context Windows out of its MODEL.")
        steps = steps or config.steps
        show_text(f"{steps} step{'s' * (steps > 1)}")
        frames = torch.cat((frames, frames[:1])) if loop else frames
        windows = Windows(model, vae, config, steps)
        made = cls._passes(windows, frames.movedim(-1, 1), passes, seed)
        made = made[: len(made) - loop].movedim(1, -1)
        inserted = (config.network.frames - 1) ** passes
        return io.NodeOutput(made, fps * inserted, len(made))

    @staticmethod
    def _passes(windows: Windows, frames: Tensor, passes: int, seed: int) -> Tensor:
        """Frames (n, 3, h, w) to those of one or two passes, in batches of windows that memory holds."""
        inner, at_once = windows.count - 1, 4
        counts = [(len(frames) - 1) * inner**i for i in range(passes)]
        bar, done = comfy.utils.ProgressBar(sum(counts) * windows.steps), 0
        height, width = frames.shape[2:]
        frames = windows.padded(frames)
        for index, count in enumerate(counts):
            out, start = [frames[:1]], 0
            while start < count:
                ends = torch.stack((frames[:-1], frames[1:]), 1)[start : start + at_once]
                size = len(ends)
                seeds = [((seed * 1_000_003 + index) * 1_000_003 + start + i) % 2**63 for i in range(size)]

                def callback(step, denoised, x, total, done=done, size=size):
                    bar.update_absolute(done + (step + 1) * size)

                try:
                    made = windows.between(ends, seeds, callback)
                except comfy.model_management.OOM_EXCEPTION:
                    if size == 1:
                        raise
                    at_once = size // 2
                    comfy.model_management.soft_empty_cache()
                    continue
                out.append(torch.cat((made, ends[:, 1:]), 1).flatten(0, 1))
                done += size * windows.steps
                start += size
            frames = torch.cat(out)
        return frames[:, :, :height, :width]

    @staticmethod
    def _check_vae(vae, config) -> None:
        found, wanted = vae.latent_channels, config.autoencoder.latent_channels
        if found != wanted:
            raise MicroCinemaError(
                f"The VAE has {found} latent channels, the model {wanted}: wire the VAE that belongs to it."
            )
