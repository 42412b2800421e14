"""The bundled models' autoencoder: where its training starts, what it learns from, and how it is normalised."""

import pytest
import torch
import torch.nn.functional as F

from microcinema_core.demo.autoencoder import augment, fold_normalisation, sample_crops, start_as_transform
from microcinema_core.demo.config import DEMO_BASE
from microcinema_core.demo.scenes import draw_clip
from microcinema_core.model.autoencoder import Autoencoder


@pytest.fixture(scope="module")
def pictures():
    return torch.stack([draw_clip(seed, frames=1, size=64).frames[0] for seed in range(24)])


def psnr(a, b):
    return -10 * (a - b).square().mean().log10().item()


# --- normalisation ---


@torch.no_grad()
def test_folding_normalises_the_latents_and_changes_no_picture(pictures):
    torch.manual_seed(0)
    model = Autoencoder(DEMO_BASE.autoencoder).eval()
    mean, log_variance = model.moments(pictures)
    decoded = model.decode(model.encode(pictures))
    posterior = log_variance.exp().mean((0, 2, 3)) / mean.var((0, 2, 3))
    fold_normalisation(model, pictures)

    latents = model.encode(pictures)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=1e-3)
    assert torch.allclose(model.decode(latents), decoded, atol=1e-4)
    mean, log_variance = model.moments(pictures)  # the posterior stays as wide, measured by the latents
    assert torch.allclose(log_variance.exp().mean((0, 2, 3)) / mean.var((0, 2, 3)), posterior, rtol=1e-3)


# --- the start of training ---


def block_pca(pictures, count, side=8):
    """Pictures rebuilt from the first principal components of their side×side blocks."""
    blocks = F.unfold(pictures, side, stride=side).transpose(1, 2).flatten(0, 1)
    mean = blocks.mean(0)
    basis = torch.linalg.svd(blocks - mean, full_matrices=False)[2][:count]
    rebuilt = (blocks - mean) @ basis.T @ basis + mean
    return F.fold(rebuilt.unflatten(0, (len(pictures), -1)).transpose(1, 2), pictures.shape[-2:], side, stride=side)


@torch.no_grad()
def test_the_start_is_nearly_the_best_linear_block_code(pictures):
    torch.manual_seed(0)
    model = Autoencoder(DEMO_BASE.autoencoder).eval()
    untrained = psnr(model.decode(model.encode(pictures)), pictures)
    start_as_transform(model, pictures)
    best = psnr(block_pca(pictures, DEMO_BASE.autoencoder.latent_channels), pictures)
    start = psnr(model.decode(model.encode(pictures)), pictures)
    assert best - 2 < start < best + 0.1
    assert start > untrained + 5


# --- its data ---


def test_crops_are_cut_from_the_frames():
    frames = torch.arange(2 * 3 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(2, 3, 3, 8, 8)
    crops = sample_crops(frames, 5, 4, torch.Generator().manual_seed(0))
    assert crops.shape == (5, 3, 4, 4)
    places = frames.unfold(3, 4, 1).unfold(4, 4, 1).permute(0, 1, 3, 4, 2, 5, 6).flatten(0, 3).float() / 255
    assert all((places == crop).flatten(1).all(1).any() for crop in crops)


def test_augmentation_keeps_pictures_in_range_and_draws_for_each():
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = augment(picture.expand(6, -1, -1, -1), torch.Generator().manual_seed(0))
    assert out.min() >= 0 and out.max() <= 1
    assert len({row.sum().item() for row in out}) == 6
    assert torch.equal(out, augment(picture.expand(6, -1, -1, -1), torch.Generator().manual_seed(0)))
