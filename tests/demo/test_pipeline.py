"""A pipeline with small models of the bundled models' kind, of random weights."""

import pytest
import torch
from demo_networks import tiny_demo_base, tiny_demo_between
from tiny import random_model, tiny_base

from microcinema_core.pipeline import Pipeline

PROMPT = "a red star moves left quickly"
WARP = {"forward_warp": tiny_base().autoencoder, "residual_std": 0.2}


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base():
    return Pipeline(random_model(tiny_demo_base(**WARP, amplitude_std=0.05)))


@pytest.fixture(scope="module", params=["warp", "blend"])
def between(request):
    return Pipeline(random_model(tiny_demo_between(**(WARP if request.param == "warp" else {"residual_std": 0.2}))))


def test_a_picture_becomes_frames(base):
    clip = base.animate(pictures(3, 41, 70), PROMPT)
    assert clip.shape == (5, 3, 32, 32) and clip.min() >= 0 and clip.max() <= 1
    assert not torch.equal(clip[0], clip[-1])


def test_the_centre_frame_is_the_picture_as_the_autoencoder_shows_it(base):
    picture = pictures(3, 32, 32)
    with torch.no_grad():
        expected = base.decode(base.encode(picture[None]))[0]
    torch.testing.assert_close(base.animate(picture, PROMPT)[2], expected, rtol=0, atol=1e-3)


def test_the_network_gets_the_strength_of_the_prior_without_gamma(base, monkeypatch):
    encode, strengths = base.network.encode_condition, []

    def recorded(latents, *, lambda_=0.0, **settings):
        strengths.append(lambda_)
        return encode(latents, lambda_=lambda_, **settings)

    monkeypatch.setattr(base.network, "encode_condition", recorded)
    base.animate(pictures(3, 32, 32), PROMPT, lambda_=0.3, gamma=0.2)
    base.animate(pictures(3, 32, 32), PROMPT)
    assert strengths == [0.3, base.config.lambda_]


def test_a_window_does_not_depend_on_the_others(between):
    frames = pictures(6, 3, 32, 32)  # five windows: four, then one
    whole = between.interpolate(frames, steps=2)
    assert torch.allclose(whole[:5], between.interpolate(frames[:2], steps=2), atol=1e-4)
    assert torch.allclose(whole[:9], between.interpolate(frames[:3], steps=2), atol=1e-4)
