"""From a picture to frames and from frames to more frames, with a small model of random weights."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from microcinema_core import pipeline as pipeline_module
from microcinema_core.diffusion import Denoiser
from microcinema_core.errors import MicroCinemaError
from microcinema_core.pipeline import Pipeline

PROMPT = "a red star moves left quickly"


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base(tiny_model):
    return Pipeline(tiny_model)


@pytest.fixture(scope="module")
def between(tiny_ends_model):
    return Pipeline(tiny_ends_model)


# --- animate ---


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (5, 3, 32, 32)),
        ({"frames": 3, "width": 48, "height": 16}, (3, 3, 16, 48)),
        ({"frames": 8, "steps": 1, "churn": 1.0}, (8, 3, 32, 32)),
    ],
)
def test_a_picture_of_any_size_becomes_frames(base, options, shape):
    clip = base.animate(pictures(3, 41, 70), PROMPT, **options)
    assert clip.shape == shape and clip.dtype == torch.float32
    assert clip.min() >= 0 and clip.max() <= 1
    assert clip.std() > 0.01 and not torch.equal(clip[0], clip[-1])


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_seed_decides(base, churn):
    picture = pictures(3, 32, 32)
    clips = [base.animate(picture, PROMPT, seed=seed, churn=churn) for seed in (3, 3, 4)]
    assert torch.equal(clips[0], clips[1])
    assert not torch.allclose(clips[0], clips[2], atol=1e-3)


@pytest.mark.parametrize(
    "change", [{"lambda_": 0.5}, {"gamma": -0.3}, {"cfg": 5.0}, {"steps": 4}, {"churn": 1.0}, {"prompt": "pan left"}]
)
def test_every_setting_counts(base, change):
    settings = {"picture": pictures(3, 32, 32), "prompt": PROMPT}
    assert not torch.allclose(base.animate(**settings), base.animate(**{**settings, **change}), atol=1e-4)


def test_what_is_not_given_comes_from_the_header(base, tiny_config):
    c, picture = tiny_config, pictures(3, 32, 32)
    spelt = {"frames": 5, "steps": c.steps, "cfg": c.cfg, "lambda_": c.lambda_, "gamma": c.gamma, "width": c.width}
    assert torch.equal(base.animate(picture, PROMPT), base.animate(picture, PROMPT, **spelt))


def test_progress_counts_the_steps(base):
    reports = []
    base.animate(pictures(3, 32, 32), PROMPT, steps=4, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_unknown_words_are_listed(base):
    assert base.unknown_words("a purple zebra moves left") == ["zebra"]
    assert "purple" in base.vocabulary


# --- the prior ---


def start_of(base, monkeypatch, **settings):
    """What the sampler is given: its start, the sigmas, and μ for churn."""
    given = {}

    def sampler(denoise, x, sigmas, callback, **options):
        given.update(x=x, sigmas=sigmas, mean=options["mean"])
        return x

    monkeypatch.setattr(pipeline_module, "sample_euler", sampler)
    base.animate(pictures(3, 32, 32), PROMPT, seed=7, **settings)
    return given


def test_prior_enters_the_start_exactly_once(base, monkeypatch):
    given = start_of(base, monkeypatch, lambda_=0.3, gamma=0.2)
    noise = torch.randn(1, 5, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    latent = base.encode(pictures(1, 3, 32, 32))[:, None]
    expected = (noise + 0.5 * latent) * (1 + given["sigmas"][0] ** 2).sqrt()
    assert torch.allclose(given["x"], expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(given["mean"], 0.5 * latent.expand_as(noise))  # churn keeps λ + γ


def test_without_prior_the_start_is_plain_noise_to_the_bit(base, monkeypatch):
    given = start_of(base, monkeypatch, lambda_=0.0, gamma=0.0)
    noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(7))[None]
    assert torch.equal(given["x"], noise * (1 + given["sigmas"][0] ** 2).sqrt())


# --- guidance ---


def predict(base, prompts, cfg):
    x, sigma = torch.randn(1, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(1.5)
    condition = base.network.encode_condition(base.encode(pictures(1, 3, 32, 32))[None])
    return Denoiser(base.network, base.config, condition, base.text.encode(prompts), cfg)(x, sigma)


@torch.no_grad()
def test_guidance_leads_from_the_empty_text_through_the_prompt(base):
    empty, prompted = predict(base, [""], 1.0), predict(base, [PROMPT], 1.0)
    assert not torch.allclose(empty, prompted, atol=1e-3)
    for cfg in (0.0, 0.5, 3.0):
        guided = predict(base, ["", PROMPT], cfg)
        assert torch.allclose(guided, empty + cfg * (prompted - empty), atol=1e-4)


def test_guidance_of_one_is_none(base):
    picture = pictures(3, 32, 32)
    unguided = base.animate(picture, PROMPT, cfg=1.0)
    assert torch.allclose(base.animate(picture, PROMPT, cfg=1 + 1e-9), unguided, atol=1e-4)
    assert torch.allclose(base.animate(picture, PROMPT, cfg=0.0), base.animate(picture, "", cfg=1.0), atol=1e-4)


# --- interpolate ---


@pytest.mark.parametrize("passes", [1, 2])
def test_frames_stay_to_the_bit_and_new_ones_come_between(between, passes):
    frames = pictures(3, 3, 32, 32)
    out = between.interpolate(frames, passes=passes, steps=2)
    stride = 4**passes
    assert out.shape == (2 * stride + 1, 3, 32, 32)
    assert torch.equal(out[::stride], frames)
    assert out.min() >= 0 and out.max() <= 1
    assert not any(torch.equal(a, b) for a, b in zip(out[:-1], out[1:], strict=True))


def test_a_window_does_not_depend_on_the_others(between):
    frames = pictures(6, 3, 32, 32)  # five windows: four, then one
    whole = between.interpolate(frames, steps=2)
    assert torch.allclose(whole[:5], between.interpolate(frames[:2], steps=2), atol=1e-4)
    assert torch.allclose(whole[:9], between.interpolate(frames[:3], steps=2), atol=1e-4)


def test_each_window_has_a_noise_of_its_own(between):
    out = between.interpolate(pictures(1, 3, 32, 32).expand(6, -1, -1, -1), steps=2)
    windows = [out[start + 1 : start + 4] for start in range(0, 20, 4)]
    assert not any(torch.allclose(windows[0], window, atol=1e-4) for window in windows[1:])
    assert torch.equal(out, between.interpolate(pictures(1, 3, 32, 32).expand(6, -1, -1, -1), steps=2))
    assert not torch.allclose(out, between.interpolate(pictures(1, 3, 32, 32).expand(6, -1, -1, -1), steps=2, seed=1))


def test_interpolation_progress_reaches_its_total(between):
    reports = []
    between.interpolate(pictures(6, 3, 32, 32), steps=2, progress=lambda *counts: reports.append(counts))
    done = [count for count, _ in reports]
    assert {total for _, total in reports} == {5 * 2}
    assert done == sorted(done) and done[-1] == 10


def test_frames_are_made_when_they_are_needed(between):
    """Two passes over a clip without end: what is read ahead are a few windows."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield pictures(3, 32, 32, seed=read)

    made = between.interpolated(endless(), 10**9, passes=2, steps=1)
    for index, frame in enumerate(islice(made, 16 * 12)):
        assert index % 16 or torch.equal(frame, pictures(3, 32, 32, seed=1 + index // 16))
        assert read <= 2 + index // 16 + 8


def test_windows_that_memory_does_not_hold_are_halved(tiny_ends_model, monkeypatch):
    frames, halved = pictures(6, 3, 32, 32), Pipeline(tiny_ends_model)
    expected, whole, sizes = halved.interpolate(frames, steps=1), halved.between, []

    def small(ends, *arguments):
        sizes.append(len(ends))
        if len(ends) > 1:
            raise torch.cuda.OutOfMemoryError
        return whole(ends, *arguments)

    monkeypatch.setattr(halved, "between", small)
    assert torch.allclose(halved.interpolate(frames, steps=1), expected, atol=1e-4)
    assert sizes == [4, 2, 1, 1, 1, 1, 1]


def test_the_sides_may_be_odd(between):
    frames = pictures(3, 3, 31, 45)
    out = between.interpolate(frames, steps=1)
    assert out.shape == (9, 3, 31, 45) and torch.equal(out[::4], frames)


# --- what it refuses, what it leaves alone ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "0 frames cannot be made: give 1 or more"),
        ({"frames": -3}, "-3 frames"),
        ({"steps": 0}, "0 steps"),
        ({"width": 33}, "33x32 does not fit .* multiples of 4 from 8 on: choose 32x32"),
        ({"height": 0}, "32x0 does not fit"),
        ({"height": 4}, "32x4 does not fit .*: choose 32x8"),
    ],
)
def test_what_cannot_be_made_is_refused_and_not_replaced(base, options, message):
    with pytest.raises(MicroCinemaError, match=message):
        base.animate(pictures(3, 32, 32), PROMPT, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_no_black_clip(tiny_model, tiny_ends_model, monkeypatch, value):
    for model, make in (
        (tiny_model, lambda p: p.animate(pictures(3, 32, 32), PROMPT)),
        (tiny_ends_model, lambda p: p.interpolate(pictures(2, 3, 32, 32))),
    ):
        broken = Pipeline(model)
        monkeypatch.setattr(broken, "network", _Broken(broken.network, value))
        with pytest.raises(MicroCinemaError, match=f"'{model.config.name}' gave numbers that are none .* in float32"):
            make(broken)
        broken.dtype = torch.float16
        assert "in float16: choose bfloat16 or float32" in broken._overflow()


class _Broken:
    """A network whose last layer overflows."""

    def __init__(self, network, value):
        self.network, self.value = network, value

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, x, *arguments, **options):
        out = self.network(x, *arguments, **options)
        out[0, 0, 0, 0] = self.value
        return out


def test_a_model_of_the_wrong_kind_is_named(base, between):
    with pytest.raises(MicroCinemaError, match="'tiny-interpolation' interpolates between frames: choose one"):
        between.animate(pictures(3, 32, 32), PROMPT)
    with pytest.raises(MicroCinemaError, match="'tiny-base' animates a picture: choose one that interpolates"):
        base.interpolate(pictures(2, 3, 32, 32))


def test_a_model_without_its_other_parts_is_refused(tiny_model):
    with pytest.raises(MicroCinemaError, match="no autoencoder.*all-in-one"):
        Pipeline(replace(tiny_model, autoencoder=None))
    with pytest.raises(MicroCinemaError, match="no text encoder.*all-in-one"):
        Pipeline(replace(tiny_model, text=None))


def test_global_randomness_is_left_alone(base, between):
    before = torch.random.get_rng_state()
    base.animate(pictures(3, 32, 32), PROMPT, steps=1, churn=1.0)
    between.interpolate(pictures(2, 3, 32, 32), steps=1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("motion", "overscan", "word"), [(0.5, False, "motion"), (1.0, True, "overscan")])
def test_a_model_that_moves_no_pixels_is_steered_with_gamma(base, motion, overscan, word):
    with pytest.raises(MicroCinemaError, match=f"has no {word}, which .* gamma"):
        base.animate(pictures(3, 32, 32), PROMPT, motion=motion, overscan=overscan)
