"""The text side: CLIP's text tower (Radford et al. 2021, arXiv 2103.00020) behind a tokenizer.

SD2.1's tower uses CLIP's byte-pair tokens, which need the user's files `vocab.json` and `merges.txt`. The demo model
has a vocabulary of its own in its configuration.

The tower is implemented here instead of taken from transformers, whose modules and keys change their names between
versions, and whose import takes longer than a clip. Keys in files, after `cond_stage_model.transformer.`: `embeddings.`
with `token_embedding` and `position_embedding`; `encoder.layers.N.` with `layer_norm1`, `self_attn.{q,k,v,out}_proj`,
`layer_norm2` and `mlp.fc1`, `mlp.fc2`; `final_layer_norm`.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from ..config import TextConfig
from ..errors import MicroCinemaError
from ..header import SD21_PAGE

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"
TOKENIZER = f"the folder tokenizer of {SD21_PAGE}, or comfy/sd1_tokenizer of any ComfyUI"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer(words: list[str]) -> str:
    """A tokenizer with a vocabulary of whole words in lower case, as JSON for TextConfig.tokenizer."""
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
    """Converts prompts to token ids by the configuration's vocabulary of whole words; other words are left out."""

    def __init__(self, config: TextConfig):
        """Raises MicroCinemaError where the configuration's tokenizer is damaged or larger than its vocabulary size."""
        assert config.tokenizer is not None
        try:
            template = json.loads(config.tokenizer).get("post_processor") or {}
            marks = {part["SpecialToken"]["id"] for part in template.get("single", ()) if "SpecialToken" in part}
            if unknown := marks - template.get("special_tokens", {}).keys():  # with these the library would panic
                raise ValueError(f"no {min(unknown)}")
            self.tokenizer = Tokenizer.from_str(config.tokenizer)
            self.unknown_id = self.tokenizer.token_to_id(UNKNOWN)
            marks, largest = self.tokenizer.encode("").ids, max(self.tokenizer.get_vocab().values())
            if len(marks) != 2 or self.unknown_id in (None, *marks) or largest >= config.vocabulary_size:
                raise ValueError(f"no {START}, {END} and {UNKNOWN} below {config.vocabulary_size}")
        except Exception as error:  # the library raises no narrower type
            raise MicroCinemaError(f"the header's vocabulary is damaged ({error}): fetch the model again") from error
        self.length = config.max_tokens

    @property
    def vocabulary(self) -> list[str]:
        """The words of the vocabulary, sorted."""
        return sorted(set(self.tokenizer.get_vocab()) - {PAD, START, END, UNKNOWN})

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of the prompt that are not in the vocabulary."""
        encoded = self.tokenizer.encode(_unicode(prompt), add_special_tokens=False)
        return [prompt[a:b] for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True) if i == self.unknown_id]

    def __call__(self, prompts: list[str]) -> Tensor:
        """Token ids (b, max_tokens) of the prompts, padded with 0."""
        encoded = [self.tokenizer.encode(_unicode(prompt)).ids for prompt in prompts]
        return _rows([[i for i in ids if i != self.unknown_id] for ids in encoded], self.length)  # <pad> is 0


class ClipTokens:
    """Converts prompts to CLIP's byte-pair tokens, padded with id 0 as in the training of SD2.1."""

    vocabulary: list[str] = []  # empty: every word can be encoded

    def __init__(self, config: TextConfig, folder: Path):
        """`folder` contains vocab.json and merges.txt. Raises MicroCinemaError where one is missing or damaged."""
        files = [folder / "vocab.json", folder / "merges.txt"]
        if missing := [str(file) for file in files if not file.exists()]:
            raise MicroCinemaError(f"SD2.1's tokenizer needs {missing[0]}: copy it from {TOKENIZER}")
        try:
            vocabulary, merges = map(str, files)
            marks: Any = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "unk_token": CLIP_END}
            self.tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges, **marks))
        except Exception as error:  # the library raises no narrower type
            raise MicroCinemaError(f"CLIP's tokenizer in '{folder}' is damaged ({error}): fetch it again") from error
        start, end = map(self.tokenizer.token_to_id, (CLIP_START, CLIP_END))
        if start is None or end is None:
            raise MicroCinemaError(f"'{files[0]}' lacks {CLIP_START} or {CLIP_END}: take CLIP's own vocabulary")
        self.tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])  # fmt: skip
        self.tokenizer.post_processor = processors.RobertaProcessing(
            (CLIP_END, end), (CLIP_START, start), trim_offsets=False, add_prefix_space=False
        )
        self.length = config.max_tokens

    def unknown_words(self, prompt: str) -> list[str]:
        """Always empty."""
        return []

    def __call__(self, prompts: list[str]) -> Tensor:
        """Token ids (b, max_tokens) of the prompts."""
        return _rows([self.tokenizer.encode(_plain(_unicode(prompt))).ids for prompt in prompts], self.length)


def _rows(prompts: list[list[int]], length: int) -> Tensor:
    """Token ids of the prompts, with start and end tokens, as one tensor (b, length). Long prompts are truncated before
    the end token, short ones padded with 0."""
    rows = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, ids in zip(rows, prompts, strict=True):
        ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def _unicode(prompt: str) -> str:
    """Return the prompt. Raises MicroCinemaError for surrogates, into which Python decodes bytes that are no UTF-8."""
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise MicroCinemaError(f"the prompt {ascii(prompt)} is no valid UTF-8: type it anew")
    return prompt


_STRAIGHT = str.maketrans("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "'" * 5 + '"' * 4)


def _plain(prompt: str) -> str:
    """Replace curly quotes, HTML entities, ligatures and full-width letters, as open_clip cleaned the captions on which
    SD2.1's tower was trained."""
    prompt = html.unescape(html.unescape(prompt)).translate(_STRAIGHT)
    return re.sub("[\ufb00-\ufb06\uff01-\uff9f]", lambda match: unicodedata.normalize("NFKC", match[0]), prompt)


class TextEncoder(nn.Module):
    """Prompts → normalised token states (b, max_tokens, width) of the layer that TextConfig.skip_last selects."""

    def __init__(self, config: TextConfig, tokenizer_folder: Path | None = None):
        """`tokenizer_folder` as in ClipTokens, for a configuration without a tokenizer of its own. Raises
        MicroCinemaError where it is missing."""
        super().__init__()
        self.config = config
        if config.tokenizer is not None:
            self.tokenizer = WordTokens(config)
        elif tokenizer_folder is not None:
            self.tokenizer = ClipTokens(config, tokenizer_folder)
        else:
            raise MicroCinemaError(
                "this text encoder needs CLIP's tokenizer: name the folder of vocab.json and merges.txt (--tokenizer), "
                f"which are in {TOKENIZER}"
            )
        self.transformer = ClipText(config)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids (b, max_tokens) → (b, max_tokens, width)."""
        return self.transformer(token_ids.to(self.transformer.final_layer_norm.weight.device))

    def encode(self, prompts: list[str]) -> Tensor:
        """Tokenize and encode prompts: (b, max_tokens, width)."""
        return self(self.tokenizer(prompts))


class ClipText(nn.Module):
    """CLIP's text transformer, with causal attention. The layers that TextConfig.skip_last leaves out are not built."""

    def __init__(self, config: TextConfig):
        super().__init__()
        layers = config.layers - config.skip_last
        self.embeddings = nn.ModuleDict({
            name: nn.Embedding.from_pretrained(torch.empty(count, config.width), freeze=False)
            for name, count in (("token_embedding", config.vocabulary_size), ("position_embedding", config.max_tokens))
        })  # fmt: skip
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(config, layers) for _ in range(layers))})
        self.final_layer_norm = nn.LayerNorm(config.width)
        for embedding in self.embeddings.values():
            _draw(_embedding(embedding).weight, 0.02)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embedding of the token ids."""
        return _embedding(self.embeddings["token_embedding"])

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids (b, t) to states (b, t, width) after the final norm."""
        positions = _embedding(self.embeddings["position_embedding"]).weight[: token_ids.shape[1]]
        states = self.token_embedding(token_ids) + positions
        for layer in self.encoder["layers"].children():
            states = layer(states)
        return self.final_layer_norm(states)


class _Layer(nn.Module):
    def __init__(self, config: TextConfig, layers: int):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        deep = (2 * layers) ** -0.5  # the residual branches start smaller in a deeper tower
        linears = (*self.self_attn.values(), *self.mlp.values())
        for linear, scale in zip(linears, (deep, deep, deep, 1, 0.5**0.5, deep), strict=True):
            assert isinstance(linear, nn.Linear)
            _draw(linear.weight, scale * width**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm1(x)
        q, k, v = (self.self_attn[f"{n}_proj"](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.self_attn["out_proj"](attended.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))))


def _embedding(module: nn.Module) -> nn.Embedding:
    assert isinstance(module, nn.Embedding)
    return module


def _draw(weight: Tensor, std: float) -> None:
    """Draw CLIP's initial weights. Not on the meta device, where torch would load its compiler to do nothing."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
