"""The residual around the flow warp: its data, its loss, and the map to pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from demo_networks import tiny_demo_between
from PIL import Image
from short_runs import ALONE, CONFIG
from tiny import random_model, tiny_base

from microcinema_core.demo.moved_photographs import Photographs
from microcinema_core.demo.residual_training import (
    ResidualBatches,
    ResidualObjective,
    draw_clips,
    fit_residual_out,
    least_squares,
)  # fmt: skip
from microcinema_core.model.layers import zero


@pytest.fixture(scope="module")
def model():
    model = random_model(tiny_demo_between(flow_warp=tiny_base().autoencoder, residual_std=0.2))
    network = model.network
    network.flow_warp.autoencoder.load_state_dict(model.autoencoder.state_dict())
    zero(network.flow_warp.network.conv_out)  # a random one would tear pictures apart
    return model


@pytest.fixture(scope="module")
def clips(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(6):
        coarse = np.random.default_rng(seed).integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((900, 800), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return draw_clips(model.network, Photographs([folder]), range(12), 64)


def test_clips_without_a_cut_come_with_their_prediction(clips):
    assert 4 <= len(clips) <= 12 and not clips.warped.is_cut.any()
    assert clips.pixels.shape[1:] == (5, 3, 64, 64) and clips.latents.shape == clips.warped.latents.shape
    assert torch.equal(clips.latents[:, [0, -1]], clips.warped.latents[:, [0, -1]])
    assert 0 < clips.residual_std < clips.latents.std()


def test_the_loss_is_that_of_the_seed_and_reaches_every_layer_but_the_flow_warp(model, clips):
    network = model.network.requires_grad_(True)
    network.flow_warp.requires_grad_(False)
    objective, batches = ResidualObjective(model.config, network), ResidualBatches(CONFIG, clips, ALONE)
    losses = [objective(step, next(batches(step))[0])[0] for step in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    learned = {name: p for name, p in network.named_parameters() if not name.startswith("flow_warp")}
    assert [name for name, p in learned.items() if p.grad is None or not p.grad.any()] == []
    network.requires_grad_(False)


def test_a_residual_that_tells_nothing_changes_pixels_little(model, clips):
    """The samples of this untrained network have nothing to do with the true pixels."""
    before, after = fit_residual_out(model, clips)
    assert 0 < after < 1.001 * before


def test_least_squares_find_the_map_that_made_the_pixels():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 4**2, 4, 3, 3, generator=generator)
    parts = []
    for _ in range(3):
        residual = torch.randn(2, 4, 8, 8, generator=generator)
        parts.append((residual, F.pixel_shuffle(F.conv2d(residual, weights, padding=1), 4)))
    torch.testing.assert_close(least_squares(parts, 4), weights, rtol=0.02, atol=0.02)
