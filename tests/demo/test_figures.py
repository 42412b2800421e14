"""The parts of benchmarks/figures.py whose results are known beforehand."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from microcinema_core.diffusion import NoiseSchedule
from microcinema_core.prior import shift
from microcinema_core.samplers import initial

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "figures.py"


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["figures"]


def test_ancestral_steps_keep_the_mean_with_the_share_of_the_prior_alone(figures):
    """Data N(1, 0.5²) with noise N(0.3, 1), whose E[z_0 | x] has a closed form."""
    sigmas, generator = NoiseSchedule().sigmas_for(50).double(), torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    start = initial(shift(noise, torch.tensor(0.3 + 1 / float(sigmas[0]))), sigmas[0])

    def mean(share):
        def denoise(x, sigma):
            return 1 + 0.25 / (0.25 + sigma**2) * (x - sigma * 0.3 - 1)

        return figures.sample_ancestral(denoise, start, sigmas, share, generator).mean().item()

    assert mean(0.3) == pytest.approx(1, abs=5 * 0.5 / len(noise) ** 0.5)
    assert mean(0.0) < 0.98


def test_the_rescaled_schedule_begins_as_the_papers_and_ends_in_noise(figures):
    rescaled, paper = figures.ZeroTerminalSnr(), NoiseSchedule()
    assert rescaled.alphas_cumprod[0] == pytest.approx(paper.alphas_cumprod[0]) and rescaled.sigmas[-1] > 9_000
    assert (rescaled.sigmas.diff() > 0).all() and (rescaled.sigmas[1:] > paper.sigmas[1:]).all()


def test_a_table_has_the_first_row_and_what_differs_from_it(figures):
    first = {"drift": [0.1, 0.2, 0.3]}
    rows = [("plain", first), ("more", {"drift": [0.3, 0.4, 0.5]}), ("mixed", {"drift": [0.0, 0.2, 0.6]})]
    lines = figures.table(rows)
    assert lines[0] == "|  | drift, of 1 |" and lines[2] == "| plain | 0.2 |"
    assert lines[3] == "| more | **+0.2 [+0.2, +0.2]** |" and lines[4].startswith("| mixed | +0.067 [-0.1")
