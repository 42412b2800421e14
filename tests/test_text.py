"""The text side: the demo model's words, CLIP's tokens, and the size of SD2.1's tower."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextModel

from microcinema_core.config import DEMO_BASE, TextConfig
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model.text import ClipTokens, TextEncoder, WordTokens, clip_config, word_tokenizer
from microcinema_core.training.captions import all_words


@pytest.fixture(scope="module")
def words(tiny_config):
    return WordTokens(tiny_config.text)


@pytest.fixture(scope="module")
def captions(small_clips):
    return [clip.caption for clip in small_clips]


# --- words ---


def test_unknown_words_are_reported_as_typed(words):
    assert words.unknown_words("A Zebra moves left, then RUNS!") == ["Zebra", "then", "RUNS"]
    assert words.unknown_words("the camera zooms in") == []
    assert words.unknown_words("") == []


def test_case_and_punctuation_do_not_matter(words):
    assert torch.equal(words(["  A red STAR moves left, quickly!! "]), words(["a red star moves left quickly"]))


def test_an_unknown_word_is_left_out(words):
    assert torch.equal(words(["a red striped star"]), words(["a red star"]))
    assert torch.equal(words(["zebra"]), words([""]))


def test_a_prompt_stands_between_start_and_end_and_is_padded_with_zeros(words, tiny_config):
    vocabulary = json.loads(tiny_config.text.tokenizer)["model"]["vocab"]
    row = words(["pan left"])[0].tolist()
    assert row == [vocabulary[w] for w in ("<start>", "pan", "left", "<end>")] + 20 * [0]


def test_a_long_prompt_loses_its_end_but_not_its_end_mark(tiny_config):
    words = WordTokens(replace(tiny_config.text, max_tokens=6))
    long, short = words(["a red star moves left quickly and slowly", "a red star moves"])
    assert torch.equal(long, short) and 0 not in long


def test_every_caption_is_in_the_vocabulary_and_fits(captions):
    known = set(all_words())
    assert len(set(captions)) > 150
    assert {word for caption in captions for word in caption.split()} <= known
    assert max(len(caption.split()) for caption in captions) <= DEMO_BASE.text.max_tokens - 2
    assert len(known) + 4 <= DEMO_BASE.text.vocabulary_size


def test_tokens_tell_all_captions_apart(captions, words):
    different = sorted(set(captions))
    assert len(words(different).unique(dim=0)) == len(different)


# --- CLIP's tokens ---


def test_missing_tokenizer_files_are_named(tmp_path):
    with pytest.raises(MicroCinemaError, match="vocab.json.*copy it"):
        ClipTokens(TextConfig(), tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(MicroCinemaError, match="merges.txt.*copy it"):
        ClipTokens(TextConfig(), tmp_path)
    with pytest.raises(MicroCinemaError, match="name the folder"):
        TextEncoder(TextConfig())


def test_clip_tokens_are_padded_with_zero_and_cut(tmp_path):
    vocabulary = {"!": 0, "c": 1, "a": 2, "t</w>": 3, "ca": 4, "cat</w>": 5, "<|startoftext|>": 6, "<|endoftext|>": 7}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokens = ClipTokens(replace(TextConfig(), max_tokens=6), tmp_path)
    assert tokens(["cat CAT", "", "cat " * 9]).tolist() == [[6, 5, 5, 7, 0, 0], [6, 7, 0, 0, 0, 0], [6, 5, 5, 5, 5, 7]]


# --- the tower ---


def test_tower_knows_the_marks_of_its_tokenizer(tiny_config):
    vocabulary = json.loads(tiny_config.text.tokenizer)["model"]["vocab"]
    tower = clip_config(tiny_config.text)
    assert (tower.bos_token_id, tower.eos_token_id) == (vocabulary["<start>"], vocabulary["<end>"])


def test_prompts_become_states_of_every_token(tiny_model):
    states = tiny_model.text.encode(["", "a red star moves left", "a red star moves right"])
    assert states.shape == (3, 24, 64)
    assert states[1, :5].allclose(states[2, :5], atol=1e-6)  # a token sees only what stands before it
    assert not states[1, 5:].allclose(states[2, 5:], atol=1e-2)


def test_skipped_layers_are_not_built(tiny_config):
    built = TextEncoder(replace(tiny_config.text, layers=3, skip_last=1)).transformer
    layers = {name.split("layers.")[1].split(".")[0] for name in built.state_dict() if "layers." in name}
    assert layers == {"0", "1"}


@pytest.mark.parametrize(("skip_last", "millions"), [(1, 340.39), (0, 352.98)])
def test_tower_has_the_size_of_sd21(skip_last, millions):
    with torch.device("meta"):
        tower = CLIPTextModel(clip_config(replace(TextConfig(), skip_last=skip_last)))
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_tokenizer_survives_its_json():
    config = replace(DEMO_BASE.text, tokenizer=word_tokenizer(["left", "pan"]))
    assert WordTokens(config).vocabulary == ["left", "pan"]


def test_a_damaged_vocabulary_says_so():
    with pytest.raises(MicroCinemaError, match="vocabulary .* damaged"):
        WordTokens(replace(TextConfig(), tokenizer="{broken"))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer["model"]["vocab"].update(boat=128),  # one more than there are vectors for
        lambda tokenizer: tokenizer.update(post_processor=None),  # nothing marks start and end
        lambda tokenizer: tokenizer["model"]["vocab"].pop("<unknown>"),
    ],
    ids=["too large", "no marks", "no unknown"],
)
def test_a_vocabulary_that_does_not_fit_says_so(tiny_config, change):
    tokenizer = json.loads(tiny_config.text.tokenizer)
    change(tokenizer)
    with pytest.raises(MicroCinemaError, match="vocabulary is damaged .*<unknown> below 128"):
        WordTokens(replace(tiny_config.text, tokenizer=json.dumps(tokenizer)))
