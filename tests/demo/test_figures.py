"""The parts of benchmarks/figures.py whose results are known beforehand."""

import importlib.util
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import random_model, tiny_base

from microcinema_core.checkpoint import save_model, write_model
from microcinema_core.diffusion import NoiseSchedule
from microcinema_core.errors import MicroCinemaError
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


def trained(folder, step=10, lambda_=0.0):
    """A model file of a training, without weights."""
    folder.mkdir(exist_ok=True)
    training = {"step": step, "data": "drawn", "settings": {"model": {"override": {"lambda_": lambda_}}}}
    write_model(folder / "model.safetensors", tiny_base(), {}, torch.float32, json.dumps(training))


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of small models, which differ in λ and in nothing else."""
    for seed in (0, 1):
        trained(tmp_path / f"small-eps-0-{seed}")
        trained(tmp_path / f"small-eps-0.03-{seed}", lambda_=0.03)
    return tmp_path


def test_a_pair_differs_in_lambda_alone(figures, pairs):
    found = [("small-eps-0.03-0", "small-eps-0-0"), ("small-eps-0.03-1", "small-eps-0-1")]
    assert figures.Models(pairs, 2, "cpu").pairs("eps") == found
    trained(pairs / "small-eps-0-1", step=5)
    with pytest.raises(MicroCinemaError, match=r"small-eps-0\.03-1 and small-eps-0-1 differ in more than λ"):
        figures.Models(pairs, 2, "cpu").pairs("eps")


def test_models_of_other_programs_make_a_pair_too(figures, tmp_path):
    for name in ("full-eps-0.03-0", "full-eps-0-0"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name / "model.safetensors", tiny_base(), {}, torch.float32)
    assert figures.Models(tmp_path, 2, "cpu").pairs("eps") == [("full-eps-0.03-0", "full-eps-0-0")]


def test_a_model_that_is_not_trained_yet_makes_no_pair(figures, pairs):
    (pairs / "small-eps-0-0" / "model.safetensors").unlink()
    assert figures.Models(pairs, 2, "cpu").pairs("eps") == [("small-eps-0.03-1", "small-eps-0-1")]


def test_pairs_of_a_kind_get_a_row_each_and_one_for_all_seeds(figures, pairs, monkeypatch):
    models, column = figures.Models(pairs, 2, "cpu"), "all frames"
    known = {"small-eps-0.03-0": [2.0, 4.0], "small-eps-0.03-1": [4.0, 8.0]}
    monkeypatch.setattr(models, "measure", lambda name, _: {column: known.get(name, [1.0, 1.0])})
    lines = figures.each_pair(models, models.pairs("eps"), lambda a, b: ((a, 0.05), (b, 0.0)))
    assert lines[2].startswith("| small eps, seed 0 | **+2 [") and lines[3].startswith("| small eps, seed 1 | **+5 [")
    assert lines[4:] == ["| small eps, 2 seeds | +3.5, ± 2 |"]


def test_models_of_any_size_give_all_tables(figures, tmp_path, monkeypatch):
    for kind, strength in product(("eps", "v"), ("0.03", "0")):
        config = replace(tiny_base(), parameterization=kind, lambda_=float(strength))
        (tmp_path / f"full-{kind}-{strength}-0").mkdir()
        save_model(tmp_path / f"full-{kind}-{strength}-0" / "model.safetensors", random_model(config))
    page = tmp_path / "page.md"
    page.write_text(f"What was found.\n\n{figures.MARK}\nold tables")
    monkeypatch.setattr(
        sys, "argv", ["figures.py", str(tmp_path), "--scenes", "2", "--threads", "1", "--page", str(page)]
    )
    figures.main()
    text = page.read_text()
    assert text.startswith(f"What was found.\n\n{figures.MARK}\n\n2 scenes") and "old tables" not in text
    assert text.count("\n## ") == 7  # figures 3 to 6, the paper's lack, terminal noise, interpolation
    assert "nan" not in text
    with Image.open(tmp_path / "page.jpg") as rows, Image.open(tmp_path / "page-larger.jpg") as larger:
        assert rows.height > 2 * larger.height and larger.width > rows.width
