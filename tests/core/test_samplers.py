"""The samplers on data whose score has a closed form, and against an independent DDIM."""

import math

import numpy as np
import pytest
import torch

from microcinema_core.diffusion import NoiseSchedule, to_denoised
from microcinema_core.prior import shift
from microcinema_core.samplers import churn, churn_rate, initial, sample_euler, sample_heun

SIGMA_MAX = 14.6146


class Gaussian:
    """Data N(m, s²) with noise N(μ, 1): x = z_0 + σ·noise is N(m + σμ, s² + σ²), so E[z_0 | x] has a closed form."""

    def __init__(self, m=1.0, s=0.5, mu=0.3):
        self.m, self.s, self.mu = m, s, mu

    def __call__(self, x, sigma):
        return self.m + self.s**2 / (self.s**2 + sigma**2) * (x - sigma * self.mu - self.m)

    def flow(self, x, start, end):
        """The ODE's exact solution: a point keeps its place within the distribution."""
        place = (x - self.m - start * self.mu) / math.sqrt(self.s**2 + start**2)
        return self.m + end * self.mu + place * math.sqrt(self.s**2 + end**2)


SAMPLES = 200_000
NOISE = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOLERANCE = 5 * 0.5 / SAMPLES**0.5  # five standard errors of the mean of s = 0.5


def bias(sampled, data):
    return sampled.mean().item() - data.m


# --- the prior's start on Gaussian data ---


def start_bias(strength):
    """Bias of the mean with 50 Euler steps from the noise shifted by `strength`; λ = 0.3 and z^c = 1 in training."""
    data, sigmas = Gaussian(m=1.0, mu=0.3), NoiseSchedule().sigmas_for(50).double()
    return bias(sample_euler(data, initial(shift(NOISE, torch.tensor(strength)), sigmas[0]), sigmas), data)


def test_euler_from_the_shifted_start_recovers_the_mean():
    assert abs(start_bias(0.3 + 1 / SIGMA_MAX)) < TOLERANCE


def test_without_gamma_the_mean_lacks_the_share_of_the_terminal_noise():
    """z_999 still holds a little of the data; of the m that the start lacks, s/σ_max reaches the end."""
    assert start_bias(0.3) == pytest.approx(-0.5 / SIGMA_MAX, abs=TOLERANCE)


def test_euler_from_the_plain_start_loses_the_mean():
    """It starts σ_max·λ + 1 too low; s/σ_max of that reaches the end, a little less by Euler's own error."""
    assert start_bias(0.0) == pytest.approx(-0.5 * (0.3 + 1 / SIGMA_MAX), rel=0.1)


class Mixture:
    """Two Gaussians N(±1, s²) of equal weight with noise N(μ, 1), so that E[z_0 | x] is a weighted mean of two."""

    def __init__(self, s=0.3, mu=0.3):
        self.parts = [Gaussian(m, s, mu) for m in (-1.0, 1.0)]

    def __call__(self, x, sigma):
        scores = [-(x - part.m - sigma * part.mu).square() / (2 * (part.s**2 + sigma**2)) for part in self.parts]
        weights = torch.stack(scores).softmax(0)
        return sum(weight * part(x, sigma) for weight, part in zip(weights, self.parts, strict=True))


def share_of_the_upper(strength):
    sigmas = NoiseSchedule().sigmas_for(50).double()
    samples = sample_euler(Mixture(), initial(shift(NOISE, torch.tensor(strength)), sigmas[0]), sigmas)
    return (samples > 0).double().mean().item()


def test_a_mixture_keeps_the_weights_of_its_parts_from_the_shifted_start_alone():
    assert share_of_the_upper(0.3) == pytest.approx(0.5, abs=0.01)
    assert share_of_the_upper(0.0) < 0.4


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_the_best_gamma_is_the_frames_correlation_by_sigma_max(rho):
    """A frame that is ρ·z^c + … has the mean ρ, of which the start lacks ρ/σ_max; the bias is linear in γ."""
    sigmas = NoiseSchedule().sigmas_for(50).double()

    def found(gamma):
        data = Gaussian(m=rho, mu=0.3)
        return bias(sample_euler(data, initial(shift(NOISE, torch.tensor(0.3 + gamma)), sigmas[0]), sigmas), data)

    low, middle, high = found(-0.05), found(0.02), found(0.09)
    assert middle == pytest.approx((low + high) / 2, abs=1e-4)
    assert -0.05 - low * 0.14 / (high - low) == pytest.approx(rho / SIGMA_MAX, abs=TOLERANCE / 0.4)


def churned_bias(mean):
    data, sigmas = Gaussian(m=1.0, mu=0.3), NoiseSchedule().sigmas_for(50).double()
    x = initial(shift(NOISE, torch.tensor(0.3 + 1 / SIGMA_MAX)), sigmas[0])
    generator = torch.Generator().manual_seed(1)
    return bias(sample_euler(data, x, sigmas, mean=mean, s_churn=20, generator=generator), data)


def test_churn_with_its_share_of_the_prior_keeps_the_mean():
    assert abs(churned_bias(0.3)) < TOLERANCE


def test_churn_of_plain_noise_biases_the_mean():
    assert churned_bias(0.0) < -0.1


def test_one_churn_leads_from_one_noise_level_to_the_next():
    """From N(m + σμ, s² + σ²) to N(m + σ̂μ, s² + σ̂²)."""
    sigma, fresh = torch.tensor(3.0), torch.randn(SAMPLES, generator=torch.Generator().manual_seed(1))
    x, sigma_hat = churn(1 + 3 * 0.3 + math.sqrt(0.5**2 + 3**2) * NOISE, sigma, 0.4, fresh, mean=0.3)
    assert sigma_hat.item() == pytest.approx(4.2)
    assert x.mean().item() == pytest.approx(1 + 4.2 * 0.3, abs=5 * 4.2 / SAMPLES**0.5)
    assert x.std().item() == pytest.approx(math.sqrt(0.5**2 + 4.2**2), rel=5 / (2 * SAMPLES) ** 0.5)


def test_churn_rate_is_that_of_karras():
    assert churn_rate(5.0, 50, 10) == 0.2
    assert churn_rate(5.0, 10, 40) == pytest.approx(2**0.5 - 1)
    assert churn_rate(5.0, 50, 10, s_tmin=6) == churn_rate(5.0, 50, 10, s_tmax=4) == 0


# --- the solvers ---


@pytest.mark.parametrize(("sampler", "order"), [(sample_euler, 1), (sample_heun, 2)])
def test_order_of_convergence(sampler, order):
    data, x = Gaussian(), torch.tensor([-20.0, 3.0, 30.0], dtype=torch.float64)

    def error(steps):
        sigmas = torch.logspace(math.log10(SIGMA_MAX), -1, steps + 1, dtype=torch.float64)
        return (sampler(data, x, sigmas) - data.flow(x, SIGMA_MAX, 0.1)).abs().max().item()

    assert math.log2(error(80) / error(160)) == pytest.approx(order, abs=0.15)
    if order == 2:
        assert error(80) < 1e-3


def test_without_churn_the_mean_of_the_prior_is_not_used():
    data, sigmas, x = Gaussian(), NoiseSchedule().sigmas_for(20), 10 * torch.randn(64)
    euler = sample_euler(data, x, sigmas)
    assert torch.equal(sample_euler(data, x, sigmas, mean=0.3), euler)
    assert torch.equal(sample_euler(data, x, sigmas, mean=0.3, s_churn=20, s_tmin=100), euler)
    assert not torch.equal(sample_euler(data, x, sigmas, mean=0.3, s_churn=20), euler)


def test_churn_draws_from_its_generator_alone():
    data, sigmas, x = Gaussian(), NoiseSchedule().sigmas_for(5), torch.ones(64)

    def sample(seed):
        return sample_euler(data, x, sigmas, s_churn=2, generator=torch.Generator().manual_seed(seed))

    before = torch.random.get_rng_state()
    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_euler_is_ddim_with_trailing_timesteps(steps):
    def eps(z, t):  # any smooth function will do
        return torch.tanh(0.7 * z.roll(1, -1) + 0.3 * z) + 0.1 * math.cos(t / 200)

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    timesteps = np.linspace(999, 0, steps, endpoint=False).astype(int)
    z = noise = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        now, then = alphas[t], 1.0 if following is None else alphas[following]
        predicted = eps(z, t)
        clean = (z - (1 - now) ** 0.5 * predicted) / now**0.5
        z = then**0.5 * clean + (1 - then) ** 0.5 * predicted

    schedule = NoiseSchedule()

    def denoise(x, sigma):
        t = schedule.timestep(sigma).item()
        return to_denoised(eps(x / (1 + sigma**2).sqrt(), t), x, sigma, "eps")

    sigmas = schedule.sigmas_for(steps)
    assert torch.allclose(sample_euler(denoise, initial(noise, sigmas[0]), sigmas), z, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
def test_every_step_is_reported_with_its_prediction(sampler):
    reports = []
    sigmas = NoiseSchedule().sigmas_for(4)
    out = sampler(Gaussian(), torch.ones(3), sigmas, reports.append)
    assert [step["i"] for step in reports] == [0, 1, 2, 3]
    assert [step["sigma"] for step in reports] == list(sigmas[:-1])
    assert torch.equal(reports[0]["x"], torch.ones(3))
    assert torch.allclose(reports[-1]["denoised"], out, atol=1e-6)  # the last step ends on its prediction


# --- the schedule ---


def test_sigmas_of_fifty_steps():
    sigmas = NoiseSchedule().sigmas_for(50)
    assert len(sigmas) == 51 and sigmas.dtype == torch.float32
    assert sigmas[0].item() == pytest.approx(14.6146, abs=1e-4)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 30, 37, 50, 111, 999, 1000])
def test_sigmas_are_at_the_papers_timesteps(steps):
    schedule = NoiseSchedule()
    timesteps = np.linspace(999, 0, steps, endpoint=False).astype(int)
    assert torch.equal(schedule.sigmas_for(steps)[:-1], schedule.sigmas[timesteps].float())


def test_timestep_inverts_sigma():
    schedule = NoiseSchedule()
    timesteps = schedule.timestep(schedule.sigmas.float())
    assert torch.allclose(timesteps, torch.arange(1000.0), atol=2e-3)
    between = (schedule.sigmas[500] * schedule.sigmas[501]).sqrt()
    assert schedule.timestep(between).item() == pytest.approx(500.5)
    assert schedule.timestep(torch.tensor([[0.0, 1e6]])).tolist() == [[0.0, 999.0]]


def test_vp_and_sigma_are_two_names_of_one_noise_level():
    schedule, t = NoiseSchedule(), torch.arange(1000)
    root_alpha, root_rest = schedule.vp(t)
    assert torch.allclose(root_rest / root_alpha, schedule.sigmas.float(), rtol=1e-5)
    assert torch.allclose(root_alpha**2 + root_rest**2, torch.ones(1000))


def test_noise_level_between_timesteps_is_the_one_of_its_sigma():
    schedule, sigma = NoiseSchedule(), torch.logspace(-1.4, 1.1, 50)
    assert torch.allclose(schedule.noise_level(schedule.timestep(sigma)), sigma / (1 + sigma**2).sqrt(), rtol=1e-4)
    assert torch.allclose(schedule.noise_level(torch.arange(1000)), schedule.vp(torch.arange(1000))[1], rtol=1e-5)
