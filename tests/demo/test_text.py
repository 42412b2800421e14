"""The bundled models' text: all that captions say is in their vocabulary, and in what the tower has learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from towers import assert_tower_is_that_of_transformers

from microcinema_core.checkpoint import load_model, resolve
from microcinema_core.demo.captions import COLOURS, all_words, reverse
from microcinema_core.demo.config import DEMO_BASE
from microcinema_core.demo.network import pooled
from microcinema_core.demo.scenes import SPEED_PIXELS
from microcinema_core.demo.text import COLOURS_AT, VELOCITIES, random_caption, train_text
from microcinema_core.model.text import TextEncoder, WordTokens, word_tokenizer


@pytest.fixture(scope="module")
def text_config():
    return replace(DEMO_BASE.text, tokenizer=word_tokenizer(all_words()))


# --- the vocabulary ---


def test_every_caption_is_in_the_vocabulary_and_fits(captions):
    vocabulary = set(all_words())
    assert len(set(captions)) > 150
    assert {word for caption in captions for word in caption.split()} <= vocabulary
    assert max(len(caption.split()) for caption in captions) <= DEMO_BASE.text.max_tokens - 2
    assert len(vocabulary) + 4 <= DEMO_BASE.text.vocabulary_size


def test_tokens_distinguish_all_captions(captions, text_config):
    different = sorted(set(captions))
    assert len(WordTokens(text_config)(different).unique(dim=0)) == len(different)


def test_the_bundled_model_has_these_words():
    assert load_model(resolve("demo-base")).text.tokenizer.vocabulary == all_words()


# --- what captions mean ---


def test_captions_mean_what_they_say():
    rng = np.random.default_rng(0)
    said = dict(random_caption(rng) for _ in range(4000))
    faster = said["the camera pans left quickly"]
    assert faster[0] < said["the camera pans left"][0] < 0 and not faster[1:].any()
    pairs = [(meaning, said[reverse(caption)]) for caption, meaning in said.items() if reverse(caption) in said]
    assert len(pairs) > 300
    for meaning, backwards in pairs:
        assert np.array_equal(-meaning[:COLOURS_AT], backwards[:COLOURS_AT])
        assert np.array_equal(meaning[COLOURS_AT:], backwards[COLOURS_AT:])  # what moves, which is the same backwards
    red = VELOCITIES.start + 2 * list(COLOURS).index("red")
    two = next(c for c in said if c.startswith("a red ") and " moves left" in c.split(" and ")[0] and " and " in c)
    assert said[two][red] < 0, two
    both = [meaning for caption, meaning in said.items() if " and " in caption and "zoom" in caption]
    assert len(both) > 50 and all(meaning[2] for meaning in both)
    assert sum(meaning[VELOCITIES].any() for meaning in both) > 0.6 * len(both)


def test_the_tower_learns_to_distinguish_directions(text_config):
    torch.manual_seed(0)
    text = TextEncoder(text_config)
    meanings_of = train_text(text, steps=120, seed=0)
    with torch.no_grad():
        left, right = pooled(text.encode(["the camera pans left", "the camera pans right"]))[:, 0] @ meanings_of.T
    assert left[0] < -0.1 and right[0] > 0.1, (left[0], right[0])  # of the camera's x, -1 and 1


def test_the_bundled_models_tower_is_that_of_transformers():
    assert_tower_is_that_of_transformers(load_model(resolve("demo-base")).text)


def test_the_bundled_model_reads_velocities():
    model, rng = load_model(resolve("demo-base")), np.random.default_rng(1)
    captions, meanings = zip(*(random_caption(rng) for _ in range(256)), strict=True)
    with torch.no_grad():
        text = pooled(model.text.encode(list(captions)))[:, 0]
        named, camera = model.network.forward_warp.named_velocities(text), model.network.forward_warp.camera(text)
    expected = torch.from_numpy(np.stack(meanings))
    pixels = 4 * SPEED_PIXELS[""]  # to the end of nine frames
    errors = named[:, 1:].flatten(1) / pixels - expected[:, VELOCITIES]
    assert errors.square().mean().sqrt() < 0.02 and errors.abs().max() < 0.3
    torch.testing.assert_close(camera[:, [2, 5]] / -pixels, expected[:, :2], rtol=0, atol=0.1)
