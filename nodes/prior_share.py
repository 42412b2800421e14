"""Gives the host's stochastic samplers their share of the prior, through the noise that they draw.

A sampler that goes from σ to σ' by a deterministic step to a lower level and fresh noise loses the mean, which has to
be σ·μ at every level σ. With r = σ'/σ, the noise needs the mean μ·share:
- ancestral steps scale it by σ'·e with e = min(1, η·√(1−r²)), and step down to σ'·√(1−e²): share = (1−√(1−e²))/e,
- SDE solvers scale it by σ'·√(1−q²) with q = r^η, and keep q of the old noise: share = √((1−q)/(1+q)).
"""

from __future__ import annotations

import inspect
import math

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
from torch import Tensor

# The samplers whose noise has this form, as measured on data with an exact score (tests/nodes/test_prior_theory.py).
ANCESTRAL = {
    "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "res_multistep_ancestral", "dpmpp_sde", "ddpm",
    "euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral_cfg_pp",
}  # fmt: skip
SDE = {"dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "seeds_2", "seeds_3"}
BROWNIAN = {"dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"}  # whose noise is a Brownian path's


def share(name: str, r: float, eta: float) -> float:
    """The mean of a sampler's noise in a step by the factor r = σ'/σ, in units of μ."""
    if name in SDE:
        q = min(1.0, r**eta)
        return math.sqrt((1 - q) / (1 + q))
    e = min(1.0, eta * math.sqrt(max(1 - r**2, 0.0)))
    return e / (1 + math.sqrt(1 - e**2))


def with_share(sampler, mean: Tensor):
    """The sampler, whose fresh noise gets its share of μ, or the same where it draws none or another kind."""
    function = getattr(sampler, "sampler_function", None)
    full_name = getattr(function, "__name__", "").removeprefix("sample_")
    name = full_name.removesuffix("_gpu")
    if function is None or name not in ANCESTRAL | SDE or not mean.any():
        return sampler
    parameters = inspect.signature(function).parameters
    defaults = {key: parameters[key].default if key in parameters else 1.0 for key in ("eta", "s_noise")}

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None, **options):
        if len(sigmas) < 2:
            return x
        eta, s_noise = (options.get(key, default) for key, default in defaults.items())
        seed = (extra_args or {}).get("seed")
        if noise_sampler is None and name in BROWNIAN:
            noise_sampler = k_diffusion.BrownianTreeNoiseSampler(
                x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=name == full_name
            )
        elif noise_sampler is None:
            noise_sampler = k_diffusion.default_noise_sampler(x, seed=seed)

        def shifted(sigma, sigma_next):
            noise = noise_sampler(sigma, sigma_next)
            return noise + mean.to(x) * share(name, float(sigma_next / sigma), eta) / s_noise if s_noise else noise

        return function(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable,
                        noise_sampler=shifted, **options)  # fmt: skip

    return comfy.samplers.KSAMPLER(sample, sampler.extra_options, sampler.inpaint_options)
