"""Noise whose frames depend on each other: its distribution is that of the formulas, frame by frame the same."""

import pytest
import torch

from microcinema_core.diffusion import NoiseSchedule
from microcinema_core.noise import KINDS, correlated_noise, frame_init, frame_noise, mix_frequencies

SHAPE = (4, 64, 64)
TOLERANCE = 5 / (4 * 64 * 64) ** 0.5  # five standard errors of a correlation


def correlations(noise):
    return torch.corrcoef(noise.flatten(1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_standard_normal(kind):
    noise = correlated_noise(SHAPE, 6, 0, kind, alpha=1.5)
    assert noise.mean((1, 2, 3)).abs().max() < TOLERANCE
    assert (noise.var((1, 2, 3)) - 1).abs().max() < 2 * TOLERANCE


def test_frames_of_mixed_noise_are_equally_correlated():
    found = correlations(correlated_noise(SHAPE, 6, 0, "mixed", alpha=1.5))
    expected = 1.5**2 / (1 + 1.5**2)
    assert (found[~torch.eye(6, dtype=bool)] - expected).abs().max() < TOLERANCE


def test_frames_of_progressive_noise_forget_the_first_by_powers():
    found = correlations(correlated_noise(SHAPE, 6, 0, "progressive", alpha=1.5))[0]
    keep = 1.5 / (1 + 1.5**2) ** 0.5
    assert (found - keep ** torch.arange(6.0)).abs().max() < TOLERANCE


def test_alpha_0_is_independent_noise():
    for kind in KINDS:
        assert torch.equal(correlated_noise(SHAPE, 3, 5, kind, alpha=0.0), frame_noise(SHAPE, 3, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_clip_begins_with_the_noise_of_a_shorter_one(kind):
    assert torch.equal(correlated_noise(SHAPE, 9, 3, kind)[:4], correlated_noise(SHAPE, 4, 3, kind))


@pytest.mark.parametrize("cells", [(4, 8, 8), (16, 12, 12), (16, 32, 48)])
def test_the_noise_of_the_command_and_of_the_prior_node_begins_alike_too(cells):
    """Both draw a clip at once, from one generator on the CPU."""
    long, short = (torch.randn(n, *cells, generator=torch.Generator().manual_seed(7)) for n in (9, 5))
    assert torch.equal(long[:5], short)


def test_seeds_and_frames_differ():
    assert not torch.equal(frame_noise(SHAPE, 2, 0), frame_noise(SHAPE, 2, 1))
    first, second = frame_noise(SHAPE, 2, 0)
    assert not torch.equal(first, second)
    state = torch.random.get_rng_state()
    frame_noise(SHAPE, 1, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_frequencies_are_mixed_as_their_window_says():
    """A wave of a frequency f keeps exp(−f²/(2·cutoff²)) of the first clip, and gets the rest from the second."""
    place = torch.arange(64) / 64
    wave = torch.cos(2 * torch.pi * 8 * place).expand(4, 1, 64, 64)  # a quarter of the highest frequency
    kept = torch.exp(torch.tensor(-(0.25**2) / (2 * 0.25**2)))
    torch.testing.assert_close(mix_frequencies(wave, 0 * wave), kept * wave, atol=1e-5, rtol=0)
    torch.testing.assert_close(mix_frequencies(0 * wave, wave), (1 - kept) * wave, atol=1e-5, rtol=0)
    torch.testing.assert_close(mix_frequencies(wave, wave), wave, atol=1e-5, rtol=0)


def test_frame_init_starts_from_the_coarse_part_of_the_still_clip():
    alpha_bar = float(NoiseSchedule().alphas_cumprod[850])
    noise, still = frame_noise(SHAPE, 8, 0), torch.ones(8, *SHAPE)
    found = frame_init(still, noise, alpha_bar)
    assert found.mean().item() == pytest.approx(alpha_bar**0.5 + (1 - alpha_bar) ** 0.5 * noise.mean().item(), abs=1e-4)
    assert found.std().item() == pytest.approx(1, abs=0.02)
