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


BETWEEN = {
    "flow": {"flow_warp": tiny_base().autoencoder, "residual_std": 0.2},
    "blend": {"residual_std": 0.2},
}


@pytest.fixture(scope="module", params=BETWEEN)
def between(request):
    return Pipeline(random_model(tiny_demo_between(**BETWEEN[request.param])))


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


def test_a_window_does_not_depend_on_the_others(between, monkeypatch):
    """But for what their frames tell of quiet places, which is test_quiet.py's."""
    monkeypatch.setattr(between, "compare", lambda triples: torch.zeros(len(triples), 2))
    frames = 0.8 * pictures(1, 3, 32, 32) + 0.2 * pictures(6, 3, 32, 32)  # five windows: four, then one; no cut
    whole = between.interpolate(frames, steps=2)
    assert torch.allclose(whole[:5], between.interpolate(frames[:2], steps=2), atol=1e-4)
    assert torch.allclose(whole[:9], between.interpolate(frames[:3], steps=2), atol=1e-4)


def test_at_a_cut_the_frames_are_copies_and_a_warning_tells_so():
    model = random_model(tiny_demo_between(**BETWEEN["flow"]))
    for name, parameter in model.network.flow_warp.network.named_parameters():
        if name.startswith("fine") or ".head." in name:  # random heads would tear the pictures apart
            parameter.zero_()
    scenes = [torch.nn.functional.interpolate(pictures(1, 3, 16, 16, seed=seed), 64)[0] for seed in (0, 1)]
    frames, warnings = torch.stack([scenes[0], scenes[0], scenes[1], scenes[1]]), []
    made = torch.stack(list(Pipeline(model).interpolated(frames, 4, warn=warnings.append)))
    assert torch.equal(made[::4], frames)
    assert torch.equal(made[5:7], frames[[1, 1]]) and torch.equal(made[7], frames[2])
    assert len(warnings) == 1 and "the scene changes after given frame 2: the frames there are copies" in warnings[0]
