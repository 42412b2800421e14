"""ANP Euler Sampler: the paper's EulerEDM with the host's guider."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from tqdm import tqdm

from ..microcinema_core.diffusion import NoiseSchedule
from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.prior import prior_mean
from ..microcinema_core.samplers import sample_euler
from .display import show_text
from .prior_patch import APPEARANCE
from .schema import check_latent, check_text, in_range, require, schema


def euler_edm(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    """The core's sampler with the signature of the host's samplers, and with their progress bar and callback."""
    ones = x.new_ones(x.shape[0])
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

        def report(step):
            bar.update()
            if callback:
                callback(step)

        return sample_euler(lambda x, sigma: model(x, sigma * ones, **(extra_args or {})), x, sigmas, report, **options)


def paper_sigmas(steps: int, denoise: float = 1.0) -> torch.Tensor:
    """The sigmas (steps + 1,) of the paper; with denoise below 1 the last ones of a longer run, as in the host."""
    return NoiseSchedule().sigmas_for(max(steps, round(steps / denoise)))[-(steps + 1) :]


class EulerSampler(io.ComfyNode):
    """The node ANP Euler Sampler."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaEulerSampler",
            display_name="ANP Euler Sampler",
            description="The paper's sampler, EulerEDM with its own sigma spacing. Fresh noise of churn carries its "
            "share of the prior.",
            search_aliases=["microcinema sampler", "animate picture", "image to video", "euler edm", "video sampler"],
            inputs=[
                io.Model.Input("model", tooltip="A MicroCinema model that animates pictures."),
                io.Conditioning.Input("positive", tooltip="From Appearance Noise Prior Latent."),
                io.Conditioning.Input("negative", tooltip="From Appearance Noise Prior Latent."),
                io.Latent.Input("latent", tooltip="From Appearance Noise Prior Latent."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="Of the noise: the same seed gives the same clip.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000,
                    tooltip="0: the model's own, 1 for the bundled one, 50 for the paper's (5 to be fast).",
                ),
                io.Float.Input(
                    "cfg", default=0.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Text guidance; 1 is none. 0: the model's own, 1 for the bundled one, 7.5 for the paper's.",
                ),
                io.Float.Input(
                    "s_churn", default=0.0, min=0.0, max=1000.0, step=0.1,
                    tooltip="Fresh noise over all steps: γ† = min(s_churn / steps, √2 − 1) a step. The paper's is 0.",
                ),
                io.Float.Input(
                    "s_tmin", default=0.0, min=0.0, max=1000.0, step=0.01, tooltip="Least sigma to churn at.",
                ),
                io.Float.Input(
                    "s_tmax", default=1000.0, min=0.0, max=1000.0, step=0.01, tooltip="Largest sigma to churn at.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01,
                    tooltip="Below 1: start from the latent with that share of the noise, instead of from noise alone.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Sigmas.Output(display_name="sigmas", tooltip="The paper's spacing, for SamplerCustomAdvanced."),
            ],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, model, positive, negative, latent, seed, steps, cfg, s_churn, s_tmin, s_tmax, denoise):
        """Sample a clip; returns the LATENT and the sigmas. Raises MicroCinemaError for inputs that do not fit
        together."""
        config = require(model, "centre")
        steps, cfg = steps or config.steps, cfg or config.cfg
        show_text(f"{steps} step{'s' * (steps > 1)}, cfg {cfg:g}")
        samples = check_latent(latent, model.get_model_object("latent_format").latent_channels)
        check_text([*positive, *negative], config)
        appearances = [options[APPEARANCE] for _, options in positive if APPEARANCE in options]
        if not appearances:
            raise MicroCinemaError(
                "The conditioning carries no picture: pass it through Appearance Noise Prior Latent first."
            )
        device = comfy.model_management.get_torch_device()
        appearance = appearances[0]
        latents = model.model.process_latent_in(appearance.latents).to(device, torch.float32)
        mean = prior_mean(latents, samples.shape[0], appearance.lambda_ + appearance.gamma)[0]
        generator = torch.Generator().manual_seed(seed)
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "mean": mean, "generator": generator}
        sigmas = paper_sigmas(steps, denoise)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        sampled = guider.sample(
            torch.randn(samples.shape, generator=generator), samples, comfy.samplers.KSAMPLER(euler_edm, options),
            sigmas, denoise_mask=latent.get("noise_mask"), callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )  # fmt: skip
        sampled = sampled.to(comfy.model_management.intermediate_device())
        return io.NodeOutput({**latent, "samples": sampled}, sigmas)
