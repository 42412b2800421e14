"""The Appearance Noise Prior: one shift of the noise, the same in training and at the start of sampling."""

from dataclasses import replace

import pytest
import torch

from microcinema_core.config import BASE, INTERPOLATION
from microcinema_core.diffusion import NoiseSchedule, to_denoised
from microcinema_core.prior import frame_strengths, low_pass, prior_mean, shift, without_mean
from microcinema_core.samplers import initial
from microcinema_core.training.objective import DiffusionLoss

LAMBDA, GAMMA = 0.03, 0.02


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat_condition(k):
    """k pictures of constant colour, each channel its own, as one clip's condition."""
    return 3 * randn(1, k, 4, 1, 1, seed=9).expand(-1, -1, -1, 256, 256)


# --- the start ---


def test_start_has_mean_of_the_condition_and_unit_variance():
    condition, strength = flat_condition(1), 0.3
    start = shift(randn(1, 9, 4, 256, 256), prior_mean(condition, 9, strength))
    standard_error = 1 / 256
    expected = strength * condition.mean((3, 4)).expand(-1, 9, -1)
    assert torch.allclose(start.mean((3, 4)), expected, rtol=0, atol=5 * standard_error)
    assert torch.allclose(start.var((3, 4)), torch.ones(1, 9, 4), rtol=0, atol=5 * 2**0.5 * standard_error)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("strength", [0.0, torch.zeros(9)])
def test_strength_zero_is_plain_noise_to_the_bit(k, strength):
    noise = randn(2, 9, 4, 8, 8)
    assert torch.equal(shift(noise, prior_mean(randn(2, k, 4, 8, 8, seed=1), 9, strength)), noise)


def test_every_frame_may_have_its_own_strength():
    condition, strengths = randn(2, 1, 4, 8, 8), torch.tensor([0.0, 0.1, 0.5, 0.1, -0.2])
    mean = prior_mean(condition, 5, strengths)
    for frame, strength in enumerate(strengths.tolist()):
        assert torch.allclose(mean[:, frame], strength * condition[:, 0])


def test_between_two_pictures_the_mean_moves_from_one_to_the_other():
    condition = randn(2, 2, 4, 8, 8)
    first, last = condition[:, 0], condition[:, 1]
    mean = prior_mean(condition, 5, 0.5)
    for frame in range(5):
        share = frame / 4
        assert torch.allclose(mean[:, frame], 0.5 * ((1 - share) * first + share * last), atol=1e-6)


# --- training agrees with it ---


@pytest.mark.parametrize("config", [BASE, INTERPOLATION])
def test_noisy_latents_are_those_of_equation_15(config):
    latents, noise, timesteps = randn(3, 5, 4, 8, 8), randn(3, 5, 4, 8, 8, seed=1), torch.tensor([0, 500, 999])
    noisy, target = DiffusionLoss(replace(config, lambda_=0.3)).noisy(latents, timesteps, noise)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    for clip, t in enumerate(timesteps.tolist()):
        alpha_bar = torch.prod(1 - betas[: t + 1]).item()
        for frame in range(5):
            condition = latents[clip, 2]
            if config is INTERPOLATION:
                condition = latents[clip, 0] + frame / 4 * (latents[clip, 4] - latents[clip, 0])
            shifted = noise[clip, frame] + 0.3 * condition
            z_t = alpha_bar**0.5 * latents[clip, frame] + (1 - alpha_bar) ** 0.5 * shifted
            assert torch.allclose(noisy[clip, frame], z_t, atol=1e-5)
            assert torch.allclose(target[clip, frame], shifted, atol=1e-6)  # eq. (22): ε + μ


def test_last_timestep_and_sampling_start_have_the_same_mean():
    """Of a static clip (every frame is z^c) z_999 has mean (√ᾱ + √(1−ᾱ)λ)z^c. The start has it with γ = 1/σ_max, up to
    the 0.23 % between σ_max and √(1+σ_max²); with γ = 0 it has the prior's share alone."""
    picture = randn(1, 1, 4, 8, 8)
    static, silence = picture.expand(-1, 9, -1, -1, -1), torch.zeros(1, 9, 4, 8, 8)
    trained, _ = DiffusionLoss(replace(BASE, lambda_=LAMBDA)).noisy(static, torch.tensor([999]), silence)
    sigma_max = NoiseSchedule().sigmas_for(50)[0]

    def start(gamma):
        x = initial(shift(silence, prior_mean(picture, 9, LAMBDA + gamma)), sigma_max)
        return x / (1 + sigma_max**2).sqrt()  # the network's input

    assert torch.allclose(start(1 / sigma_max), trained, rtol=0.003)
    assert torch.allclose(start(0.0), 0.3 * trained, rtol=0.03)  # 0.030 of 0.098


def test_prior_share_of_training_is_the_one_sampling_starts_from():
    """With nothing of the clip left but its prior: the same clip with and without λ."""
    latents, silence = randn(1, 9, 4, 8, 8), torch.zeros(1, 9, 4, 8, 8)
    timesteps = torch.tensor([999])
    shifted, _ = DiffusionLoss(replace(BASE, lambda_=LAMBDA)).noisy(latents, timesteps, silence)
    plain, _ = DiffusionLoss(replace(BASE, lambda_=0.0)).noisy(latents, timesteps, silence)
    start = shift(silence, prior_mean(latents[:, [4]], 9, LAMBDA))
    assert torch.allclose(shifted - plain, start, rtol=0.003, atol=1e-6)


# --- eps and v ---


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_a_perfect_network_gives_the_clean_latents(parameterization):
    schedule, latents = NoiseSchedule(), randn(4, 5, 4, 8, 8)
    timesteps = torch.tensor([10, 300, 700, 999])
    objective = DiffusionLoss(replace(BASE, parameterization=parameterization))
    noisy, target = objective.noisy(latents, timesteps, randn(4, 5, 4, 8, 8, seed=1))
    for clip, t in enumerate(timesteps):
        sigma = schedule.sigmas[t].float()
        x = noisy[clip] * (1 + sigma**2).sqrt()
        assert torch.allclose(to_denoised(target[clip], x, sigma, parameterization), latents[clip], atol=2e-5)


def test_v_loss_is_the_eps_loss_divided_by_alpha_bar():
    """One network's output, read as v, and as the eps it stands for: eps = √(1−ᾱ)·z_t + √ᾱ·v."""
    schedule, latents, noise, v = NoiseSchedule(), *(randn(4, 5, 4, 8, 8, seed=i) for i in range(3))
    timesteps = torch.tensor([10, 300, 700, 999])
    of_v, of_eps = (DiffusionLoss(replace(BASE, parameterization=name)) for name in ("v", "eps"))
    alpha_bar = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1).float()
    noisy, _ = of_v.noisy(latents, timesteps, noise)
    eps = (1 - alpha_bar).sqrt() * noisy + alpha_bar.sqrt() * v
    v_loss = of_v.losses(lambda *_: v, latents, timesteps, noise, None)
    eps_loss = of_eps.losses(lambda *_: eps, latents, timesteps, noise, None)
    assert torch.allclose(eps_loss, alpha_bar.flatten() * v_loss, rtol=1e-4)


# For models that were trained without it


def test_strengths_follow_their_curve():
    assert frame_strengths(0.05, 4).tolist() == pytest.approx([0.05] * 4)
    assert frame_strengths(0.06, 4, "falling").tolist() == pytest.approx([0.06, 0.04, 0.02, 0])
    assert frame_strengths(0.06, 5, "falling", given=0.5).tolist() == pytest.approx([0, 0.03, 0.06, 0.03, 0])
    assert frame_strengths(0.1, 5, "custom", values=(1.0, 0.0, 2.0)).tolist() == pytest.approx([0.1, 0.05, 0, 0.1, 0.2])
    assert frame_strengths(0.1, 3, "custom", values=(0.5,)).tolist() == pytest.approx([0.05] * 3)
    assert frame_strengths(0.1, 1, "falling", given=1.0).tolist() == pytest.approx([0.1])


def test_without_its_mean_a_latent_shifts_no_colour():
    latents = torch.randn(2, 4, 3, 8, 8) + 5
    assert without_mean(latents).mean((-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(
        without_mean(latents) - latents, -latents.mean((-2, -1), keepdim=True).expand_as(latents)
    )


def test_the_low_frequencies_of_a_latent_keep_its_mean_and_lose_its_detail():
    latents = torch.randn(1, 4, 32, 32)
    low = low_pass(latents)
    torch.testing.assert_close(low.mean((-2, -1)), latents.mean((-2, -1)))
    assert low.std() < 0.5 * latents.std()
    checked = (-1.0) ** (torch.arange(32)[:, None] + torch.arange(32)).expand(1, 1, 32, 32)
    assert low_pass(checked).abs().max() < 1e-3


# The supplement's derivation, in numbers


def test_the_forward_steps_of_equation_16_add_up_to_equation_15():
    alphas_cumprod, mean = NoiseSchedule().alphas_cumprod, 0.0
    for alpha_bar, before in zip(alphas_cumprod, [torch.tensor(1.0), *alphas_cumprod[:-1]], strict=True):
        alpha = alpha_bar / before
        mean = alpha.sqrt() * mean + (1 - alpha_bar).sqrt() - (alpha - alpha_bar).clamp(0).sqrt()
        assert mean == pytest.approx((1 - alpha_bar).sqrt().item(), abs=1e-9)  # of μ, eq. (15)


def test_the_reverse_ode_with_the_prior_is_that_without():
    """Eq. (24), whose form is eq. (14)'s, equals eq. (21) with the drift of eq. (20), on data N(m, s²) whose score and
    whose expected noise have closed forms, found independently."""
    m, s, mu, beta = 0.7, 0.5, 0.3, 4.2
    z = torch.linspace(-3, 3, 25, dtype=torch.float64)
    for alpha_bar in (0.99, 0.5, 0.01):
        root, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        mean, variance = root * m + noise * mu, alpha_bar * s**2 + 1 - alpha_bar
        score = -(z - mean) / variance
        clean = m + root * s**2 / variance * (z - mean)
        output = (z - root * clean) / noise  # f_θ: the expectation of ε + μ
        drift = -beta / 2 * z + beta / (2 * noise) * mu  # eq. (20)
        torch.testing.assert_close(drift - beta / 2 * score, -beta / 2 * z + beta / (2 * noise) * output)
        torch.testing.assert_close(score, -(output - mu) / noise)  # eq. (23)
