"""Loads the bundled models' text tower as the host's CLIP, for CLIP Text Encode."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import torch
from torch import nn

from ...microcinema_core.checkpoint import TEXT, read_config
from ...microcinema_core.errors import MicroCinemaError
from ...microcinema_core.header import SD21
from ...microcinema_core.model.text import TextEncoder, WordTokens
from ..display import show_text
from .files import Absent, check_keys, fork_rng, part_of


class Text(nn.Module):
    """The demo models' text tower with the interface of the host's text encoders."""

    def __init__(self, config, device=None, dtype=None, model_options=None):
        super().__init__()
        self.text = TextEncoder(config).to(device, dtype)
        self.dtypes = {dtype}

    def set_clip_options(self, options):
        """Raise MicroCinemaError for a layer of CLIP Set Last Layer; other options have no effect."""
        if options.get("layer") is not None:
            raise MicroCinemaError("This text encoder has no layers to skip: leave CLIP Set Last Layer out.")

    def reset_clip_options(self):
        """Called by the host; there are no options to reset."""

    def encode_token_weights(self, tokens):
        """Encode tokens with weights to states (b, max_tokens, width). As in the host, a weight scales the difference
        of a token's state from that of the empty text."""
        pairs = tokens["words"]
        ids = torch.tensor([[token for token, *_ in row] for row in pairs])
        weights = torch.tensor([[weight for _, weight, *_ in row] for row in pairs])[..., None]
        states = self.text(ids)
        if (weights != 1).any():
            empty = self.text(self.text.tokenizer([""]))
            states = empty + (states - empty) * weights.to(states)
        return states, None

    def load_sd(self, state_dict):
        """Load weights; returns missing and unexpected keys."""
        return self.text.load_state_dict(state_dict, strict=False)


class Words:
    """The demo models' tokenizer with the interface of the host's tokenizers."""

    def __init__(self, config):
        self.words = WordTokens(config)

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        """Tokens and the weights that the host's brackets give them: {"words": [[(id, weight), …]]}, with
        return_word_ids (id, weight, index).

        Unknown words are left out, with a note on the node. Raises MicroCinemaError where no word is known.
        """
        parts = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
        parts = [(comfy.sd1_clip.unescape_important(part), weight) for part, weight in parts]
        self._check(" ".join(part for part, _ in parts))
        weights = [weight for part, weight in parts for word in self._ids(part)]
        ids = self.words([" ".join(part for part, _ in parts)])[0].tolist()
        weights = [1.0, *weights]
        weights = (weights + [1.0] * len(ids))[: len(ids)]
        row = zip(ids, weights, range(len(ids)), strict=True)
        return {"words": [[entry if return_word_ids else entry[:2] for entry in row]]}

    def _ids(self, text):
        return [
            i for i in self.words.tokenizer.encode(text, add_special_tokens=False).ids if i != self.words.unknown_id
        ]

    def _check(self, prompt):
        unknown = self.words.unknown_words(prompt)
        if not unknown:
            return
        names = ", ".join(f"'{word}'" for word in unknown)
        message = f"The model does not know {names}: it knows {', '.join(self.words.vocabulary)}."
        if not self._ids(prompt):
            raise MicroCinemaError(message)
        show_text(message)

    def untokenize(self, pairs):
        """Each pair of id and weight with the word of the id."""
        tokenizer = self.words.tokenizer
        return [(pair, tokenizer.id_to_token(pair[0])) for pair in pairs]

    def state_dict(self):
        """Empty: the tokenizer has no tensors to save."""
        return {}


class Target:
    """The description of a text encoder from which comfy.sd.CLIP builds it."""

    def __init__(self, config):
        self.params = {}
        self.clip = lambda **kw: Text(config, **kw)
        self.tokenizer = lambda **kw: Words(config)


@fork_rng
def load_clip(path: str | Path):
    """Load the file's text tower as CLIP, or an Absent where it has none of its own."""
    config, tensors, name = read_config(path), part_of(path, TEXT), Path(path).name
    if config.text is None:
        return Absent(f"'{name}' reads no text: leave CLIP unconnected.")
    if not tensors or config.text.tokenizer is None:  # SD2.1's tower is loaded by the host
        return Absent(f"'{name}' brings no text encoder of its own: take CLIP from Load Checkpoint with {SD21}.")
    clip = comfy.sd.CLIP(Target(config.text), model_options={"dtype": torch.float32})
    check_keys(path, tensors, clip.cond_stage_model.text)
    clip.load_sd({f"text.{key}": value for key, value in tensors.items()}, full_model=True)
    return clip
