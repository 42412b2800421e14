"""The autoencoder is SD's, key for key, and its helpers change what they say and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from microcinema_core.config import DEMO_BASE, AutoencoderConfig
from microcinema_core.model.autoencoder import Autoencoder
from microcinema_core.training.autoencoder import augment, sample_crops, start_as_transform
from microcinema_core.training.scenes import draw_clip


@pytest.fixture(scope="module")
def pictures():
    return torch.stack([draw_clip(seed, frames=1, size=64).frames[0] for seed in range(24)])


def psnr(a, b):
    return -10 * (a - b).square().mean().log10().item()


# --- SD's ---


def test_names_and_shapes_are_those_of_sd():
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig())
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.3.block.1.conv2.bias": (512,),
        "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (512,),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.mid.attn_1.norm.weight": (512,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.1.block.2.norm2.bias": (256,),
        "decoder.up.3.block.2.conv1.weight": (512, 512, 3, 3),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.norm_out.bias": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "encoder.down.3.downsample.conv.weight" not in shapes and "decoder.up.0.upsample.conv.weight" not in shapes
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert len(shapes) == 248


def test_latents_are_scaled_posterior_means(tiny_model, tiny_config):
    model, pictures = tiny_model.autoencoder, torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    mean, log_variance = model.moments(pictures)
    assert mean.shape == log_variance.shape == (2, 4, 8, 12)
    assert torch.equal(model.encode(pictures), mean * tiny_config.autoencoder.scale)
    assert model.decode(model.encode(pictures)).shape == pictures.shape


# --- normalisation ---


@torch.no_grad()
def test_folding_normalises_the_latents_and_changes_no_picture(pictures):
    torch.manual_seed(0)
    model = Autoencoder(DEMO_BASE.autoencoder).eval()
    mean, log_variance = model.moments(pictures)
    decoded = model.decode(model.encode(pictures))
    posterior = log_variance.exp().mean((0, 2, 3)) / mean.var((0, 2, 3))
    model.fold_normalisation(mean.mean((0, 2, 3)), mean.std((0, 2, 3)))

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
