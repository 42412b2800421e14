"""Gives the host's stochastic samplers their share of the prior, through the noise that they draw.

A sampler that goes from σ to σ' by a deterministic step to a lower level and fresh noise loses the mean: at every
level σ it has to be σ·μ. Both the ancestral steps and those of the SDE solvers, at η = 1, go down by the square of
r = σ'/σ and scale the noise by σ'·√(1−r²). So the noise needs the mean μ·(1−r)/√(1−r²).
"""

from __future__ import annotations

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import torch
from torch import Tensor

# The samplers whose noise has this form, as measured on data with an exact score (tests/nodes/test_prior_theory.py).
BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "seeds_2", "seeds_3")
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "res_multistep_ancestral", "ddpm",
             "euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral_cfg_pp")  # fmt: skip


def with_share(sampler, mean: Tensor):
    """The sampler, whose fresh noise gets its share of μ, or the same where it draws none or another kind."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", "").removeprefix("sample_").removesuffix("_gpu")
    if function is None or name not in BROWNIAN + ANCESTRAL:
        return sampler

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None, **options):
        seed = (extra_args or {}).get("seed")
        if noise_sampler is None and name in BROWNIAN:
            positive = sigmas[sigmas > 0]
            noise_sampler = k_diffusion.BrownianTreeNoiseSampler(x, positive.min(), sigmas.max(), seed=seed, cpu=True)
        elif noise_sampler is None:
            noise_sampler = k_diffusion.default_noise_sampler(x, seed=seed)

        def shifted(sigma, sigma_next):
            r = torch.as_tensor(sigma_next / sigma)
            return noise_sampler(sigma, sigma_next) + mean.to(x) * ((1 - r) / (1 - r**2).sqrt()).to(x)

        return function(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable,
                        noise_sampler=shifted, **options)  # fmt: skip

    return comfy.samplers.KSAMPLER(sample, sampler.extra_options, sampler.inpaint_options)
