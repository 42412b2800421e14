"""The text side: a CLIP text tower (transformers') behind a tokenizer.

SD2.1's tower reads CLIP's byte-pair tokens, from `vocab.json` and `merges.txt` where a person has them; the demo model
has a vocabulary of its own, carried in its configuration.
"""

from __future__ import annotations

import html
import re
import unicodedata
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..config import TextConfig
from ..errors import MicroCinemaError

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"


def word_tokenizer(words: list[str]) -> str:
    """A tokenizer of whole lower-case words, as JSON for TextConfig.tokenizer."""
    vocabulary = {word: i for i, word in enumerate([PAD, START, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return tokenizer.to_str()


class WordTokens:
    """Prompts to token ids by a vocabulary of whole words; a word outside it is left out."""

    def __init__(self, config: TextConfig):
        try:
            self.tokenizer = Tokenizer.from_str(config.tokenizer)
            self.unknown_id = self.tokenizer.token_to_id(UNKNOWN)
            marks, largest = self.tokenizer.encode("").ids, max(self.tokenizer.get_vocab().values())
            if len(marks) != 2 or self.unknown_id in (None, *marks) or largest >= config.vocabulary_size:
                raise ValueError(f"no {START}, {END} and {UNKNOWN} below {config.vocabulary_size}")
        except Exception as error:  # the library raises nothing narrower
            raise MicroCinemaError(f"the header's vocabulary is damaged ({error}): fetch the model again") from error
        self.length = config.max_tokens

    @property
    def vocabulary(self) -> list[str]:
        return sorted(set(self.tokenizer.get_vocab()) - {PAD, START, END, UNKNOWN})

    def unknown_words(self, prompt: str) -> list[str]:
        encoded = self.tokenizer.encode(prompt, add_special_tokens=False)
        return [prompt[a:b] for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True) if i == self.unknown_id]

    def __call__(self, prompts: list[str]) -> Tensor:
        rows = torch.zeros(len(prompts), self.length, dtype=torch.long)  # <pad> is 0
        for row, prompt in zip(rows, prompts, strict=True):
            start, *words, end = (i for i in self.tokenizer.encode(prompt).ids if i != self.unknown_id)
            ids = [start, *words[: self.length - 2], end]
            row[: len(ids)] = torch.tensor(ids)
        return rows


class ClipTokens:
    """CLIP's byte-pair tokens, padded with id 0 as SD2.1 was trained; `folder` holds vocab.json and merges.txt."""

    vocabulary: list[str] = []

    def __init__(self, config: TextConfig, folder: Path):
        files = [folder / "vocab.json", folder / "merges.txt"]
        if missing := [str(file) for file in files if not file.exists()]:
            raise MicroCinemaError(f"SD2.1's tokenizer needs {missing[0]}: copy it from the model's tokenizer folder")
        self.tokenizer = CLIPTokenizer(*map(str, files))
        self.length = config.max_tokens

    def unknown_words(self, prompt: str) -> list[str]:
        return []

    def __call__(self, prompts: list[str]) -> Tensor:
        rows = torch.zeros(len(prompts), self.length, dtype=torch.long)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = self.tokenizer(_plain(prompt), truncation=True, max_length=self.length)["input_ids"]
            row[: len(ids)] = torch.tensor(ids)
        return rows


_STRAIGHT = str.maketrans("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "'" * 5 + '"' * 4)


def _plain(prompt: str) -> str:
    """Straight quotes, no HTML entities, no ligatures, no letters of double width: so open_clip cleaned the captions
    that SD2.1's tower was trained on, and transformers' tokenizer does not."""
    prompt = html.unescape(html.unescape(prompt)).translate(_STRAIGHT)
    return re.sub("[\ufb00-\ufb06\uff01-\uff9f]", lambda match: unicodedata.normalize("NFKC", match[0]), prompt)


class TextEncoder(nn.Module):
    """Prompts → token states (b, max_tokens, width), from the layer that TextConfig.skip_last names, normalised."""

    def __init__(self, config: TextConfig, tokenizer_folder: Path | None = None):
        super().__init__()
        self.config = config
        if config.tokenizer is not None:
            self.tokenizer = WordTokens(config)
        elif tokenizer_folder is not None:
            self.tokenizer = ClipTokens(config, tokenizer_folder)
        else:
            raise MicroCinemaError(
                "this text encoder needs CLIP's tokenizer: name the folder of vocab.json and merges.txt (--tokenizer)"
            )
        self.transformer = CLIPTextModel(clip_config(config))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids (b, max_tokens) → (b, max_tokens, width)."""
        return self.transformer(token_ids.to(self.transformer.device)).last_hidden_state

    def encode(self, prompts: list[str]) -> Tensor:
        return self(self.tokenizer(prompts))


def clip_config(config: TextConfig) -> CLIPTextConfig:
    """transformers' configuration of the tower; layers that are skipped at the end are not built."""
    # Ids of word_tokenizer's marks, or else CLIP's own.
    marks = {"bos_token_id": 1, "eos_token_id": 2} if config.tokenizer else {}
    return CLIPTextConfig(
        vocab_size=config.vocabulary_size, hidden_size=config.width, intermediate_size=4 * config.width,
        num_hidden_layers=config.layers - config.skip_last, num_attention_heads=config.heads,
        max_position_embeddings=config.max_tokens, hidden_act="gelu", projection_dim=config.width, **marks,
    )  # fmt: skip
