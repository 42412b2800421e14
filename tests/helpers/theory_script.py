"""Run by the host's own Python (tests/nodes/test_prior_theory.py): all samplers of the host, on an exact score.

`python theory_script.py PACK` in the host's folder prints one JSON object. The data are N(m, s²) in every cell of a
latent, the noise of the model's training N(μ, 1); so the expected prediction at every noise level has a closed form.
"""

import json

import host_entry  # noqa: F401  # the first: it enters the host

# isort: split
import comfy.samplers
import torch
from comfy_extras import nodes_custom_sampler as custom
from pack.nodes.prior_any import PriorAnyModel
from pack.nodes.prior_share import with_share
from tiny_families import build

M, S, MU = 1.0, 0.5, 0.3
STEPS, SIDE, FRAMES = 25, 32, 8
CONVERGING = ("euler", "heun", "dpmpp_2m", "ddim", "uni_pc")


class Gaussian(torch.nn.Module):
    """A network that knows its data: the exact expectation of the noise (eps models) or of the velocity (flow)."""

    def __init__(self, sampling, flow: bool):
        super().__init__()
        self.sampling, self.flow, self.dtype = [sampling], flow, torch.float32

    def forward(self, x, timesteps, context=None, **_):
        if self.flow:
            t = (timesteps / getattr(self.sampling[0], "multiplier", 1.0)).view(-1, *[1] * (x.ndim - 1))
            mean, variance = (1 - t) * M + t * MU, (1 - t) ** 2 * S**2 + t**2
            clean = M + (1 - t) * S**2 / variance * (x - mean)
            return (x - clean) / t
        sigma = self.sampling[0].sigma(timesteps).view(-1, *[1] * (x.ndim - 1))
        x = x * (1 + sigma**2).sqrt()
        clean = M + S**2 / (S**2 + sigma**2) * (x - sigma * MU - M)
        return (x - clean) / sigma


class PictureVAE:
    """Its latents are m in every cell, in the units of the model."""

    def __init__(self, model, channels):
        scale = model.latent_format.process_in(
            torch.ones(1, channels, 1, 1, 1) if channels > 4 else torch.ones(1, 4, 1, 1)
        )
        offset = model.latent_format.process_in(0 * torch.ones_like(scale))
        self.value = (M - offset) / (scale - offset)

    def spacial_compression_encode(self):
        return 1

    def temporal_compression_decode(self):
        return None

    def encode(self, pixels):
        shape = (1, self.value.shape[1], *[1] * (self.value.ndim - 4), *pixels.shape[1:3])
        return self.value.expand(shape).clone()


class Fixed:
    """NOISE that is always the same; its seed is of what the sampler draws."""

    def __init__(self, seed):
        self.seed = seed

    def generate_noise(self, latent):
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))


def call(node, *arguments, **named):
    if hasattr(node, "execute"):
        return node.execute(*arguments, **named).result
    return getattr(node(), node.FUNCTION)(*arguments, **named)


def analytic(flow: bool):
    patcher = build("HunyuanVideo" if flow else "SD15")
    model = patcher.model
    model.diffusion_model = Gaussian(model.model_sampling, flow)
    channels = 16 if flow else 4
    shape = (1, 16, FRAMES, SIDE // 2, SIDE // 2) if flow else (FRAMES, 4, SIDE, SIDE)
    return patcher, PictureVAE(model, channels), shape


def run(patcher, shape, name, seed=1, share=None, steps=STEPS, options=None, sigmas=None) -> torch.Tensor:
    sampler = comfy.samplers.sampler_object(name)
    sampler.extra_options |= options or {}
    if share is not None:
        sampler = with_share(sampler, torch.tensor(share))
    if sigmas is None:
        sigmas = call(custom.BasicScheduler, patcher, "simple", steps, 1.0)[0]
    text = [[torch.zeros(1, 8, 32), {"pooled_output": torch.zeros(1, 32)}]]
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(text, text)
    guider.set_cfg(1.0)
    latent = {"samples": torch.zeros(shape)}
    samples = call(custom.SamplerCustomAdvanced, Fixed(seed), guider, sampler, sigmas, latent)[0]["samples"]
    return patcher.model.latent_format.process_in(samples)


def measured(flow: bool, strengths: dict[str, float], names) -> dict:
    patcher, vae, shape = analytic(flow)
    picture = torch.zeros(1, shape[-2], shape[-1], 3)
    settings = {"form": "picture", "curve": "constant", "values": "1", "given": "first", "still": "encoded still clip"}
    started = {key: PriorAnyModel.execute(patcher, vae, picture, value, **settings).result[0]
               for key, value in strengths.items()}  # fmt: skip
    found = {}
    for name in names:
        try:
            row = {}
            for key, model in started.items():
                samples = run(model, shape, name)
                row[key] = {"bias": samples.mean().item() - M, "std": samples.std().item()}
            small = (*shape[:-2], 8, 8)
            other = [run(started["shifted"], small, name, seed) for seed in (1, 2)]
            row["stochastic"] = not torch.equal(*other)
            if name in CONVERGING:
                row["std of 200 steps"] = run(started["shifted"], shape, name, steps=200).std().item()
            if row["stochastic"] and not flow:
                samples = run(started["shifted"], shape, name, share=MU)
                row["with share"] = {"bias": samples.mean().item() - M, "std": samples.std().item()}
                row["share 0 is stock"] = torch.equal(other[0], run(started["shifted"], small, name, share=0.0))
            found[name] = row
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return found


def options() -> dict:
    """The bias with the share where less noise is drawn, and where a σ stands twice."""
    patcher, vae, shape = analytic(False)
    strength = MU + 1 / float(patcher.model.model_sampling.sigma_max)
    settings = {"form": "picture", "curve": "constant", "values": "1", "given": "first", "still": "encoded still clip"}
    model = PriorAnyModel.execute(patcher, vae, torch.zeros(1, SIDE, SIDE, 3), strength, **settings).result[0]
    found = {}
    for name in ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "seeds_2"):
        for eta, s_noise in ((0.5, 1.0), (0.2, 1.0), (1.0, 0.5)):
            samples = run(model, shape, name, share=MU, options={"eta": eta, "s_noise": s_noise})
            found[f"{name} {eta} {s_noise}"] = samples.mean().item() - M
    twice = torch.tensor([14.0, 5.0, 5.0, 1.0, 0.0])
    found["twice"] = run(model, shape, "euler_ancestral", share=MU, sigmas=twice).isfinite().all().item()
    return found


with torch.inference_mode():
    names = comfy.samplers.KSampler.SAMPLERS
    sigma_max = float(build("SD15").model.model_sampling.sigma_max)
    eps = measured(False, {"shifted": MU + 1 / sigma_max, "plain": 0.0, "without gamma": MU}, names)
    flow = measured(True, {"shifted": MU, "plain": 0.0}, names)
    print(json.dumps({"eps": eps, "flow": flow, "options": options()}))
