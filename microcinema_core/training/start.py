"""The model at the start of a run, from the table [model]."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from tokenizers import normalizers, pre_tokenizers
from torch import nn

from ..checkpoint import LoadedModel, load_autoencoder, load_model, load_text
from ..config import ModelConfig, NetworkConfig, TextConfig
from ..errors import MicroCinemaError
from ..header import read_config, resolve
from ..model import MicroCinemaUNet, build
from ..model.layers import channels_last, zero
from ..model.text import TextEncoder, word_tokenizer
from ..validated import sentence, shown
from .settings import ModelTable, VideoRunConfig

SPECIAL_TOKENS = 4  # of word_tokenizer


def check_model(config: VideoRunConfig) -> ModelConfig:
    """The configuration of the model that a run trains, without its vocabulary, checked before anything is loaded.

    Raises MicroCinemaError for a file that is missing or no model of this package, and for parts that do not fit.
    """
    table = config.model
    if table.start:
        model = read_config(_file("start", table.start))
        if type(model) is not ModelConfig:
            raise MicroCinemaError(f"model.start cannot be '{shown(table.start)}', a bundled model: leave it out")
        if table.override:
            raise MicroCinemaError("model.override cannot change the model of model.start: leave one of them out")
    else:
        model = table.configuration()
    if table.autoencoder:
        model = _with_autoencoder(model, table)
    elif not table.start:
        raise MicroCinemaError("model.autoencoder is missing: give a model file with one, such as 'demo-base'")
    if table.text:
        model = _with_text(model, table)
    if model.text:
        _check_text(model.text, table)
    elif table.vocabulary:
        raise MicroCinemaError(f"model.vocabulary cannot be {table.vocabulary} for a model without text: give 0")
    return model


def _with_autoencoder(model: ModelConfig, table: ModelTable) -> ModelConfig:
    """The model with the autoencoder of another file; for a start, one whose latents have other channels."""
    autoencoder = read_config(_file("autoencoder", table.autoencoder)).autoencoder
    if autoencoder == model.autoencoder:
        return model
    if table.start and autoencoder.latent_channels == model.autoencoder.latent_channels:
        raise MicroCinemaError("model.autoencoder is not that of model.start: leave it out")
    try:
        return replace(
            model, autoencoder=autoencoder, network=replace(model.network, latent_channels=autoencoder.latent_channels)
        )
    except ValidationError as error:
        raise MicroCinemaError(f"model.autoencoder does not fit the model: {sentence(error)}") from error


def _with_text(model: ModelConfig, table: ModelTable) -> ModelConfig:
    """The model with the text encoder of another file."""
    if table.start or table.vocabulary:
        other = "start" if table.start else "vocabulary"
        raise MicroCinemaError(f"model.text and model.{other} both give a text encoder: leave one of them out")
    text = read_config(_file("text", table.text)).text
    if text is None:
        raise MicroCinemaError(f"model.text cannot be '{shown(table.text)}', which has no text encoder: leave it out")
    try:
        return replace(model, text=text)
    except ValidationError as error:
        raise MicroCinemaError(f"model.text does not fit the model: {sentence(error)}") from error


def _check_text(text: TextConfig, table: ModelTable) -> None:
    """Raise MicroCinemaError unless the text encoder's vocabulary is known."""
    if table.vocabulary and table.start:
        raise MicroCinemaError("model.vocabulary cannot be given with model.start, which has a text encoder: give 0")
    if table.vocabulary or text.tokenizer is not None:
        return
    if not (table.start or table.text):
        raise MicroCinemaError("model.vocabulary is 0: give a number of words, or a model with text in model.start")
    if not os.path.isdir(table.tokenizer):
        raise MicroCinemaError(
            f"model.tokenizer cannot be '{shown(table.tokenizer)}': give the folder of CLIP's vocab.json and "
            "merges.txt, such as comfy/sd1_tokenizer of any ComfyUI"
        )


def initial_model(config: VideoRunConfig, model: ModelConfig, captions: Iterable[str]) -> LoadedModel:
    """Load or draw the model of check_model, with a vocabulary of the captions where the settings ask for one.

    Raises MicroCinemaError as load_model and load_autoencoder do, and where a part is missing.
    """
    table, loaded = config.model, None
    if table.start:
        loaded = load_model(_file("start", table.start), tokenizer=Path(table.tokenizer) if table.tokenizer else None)
        if loaded.network is None:
            raise MicroCinemaError(f"model.start '{table.start}' holds no network: give a file with one")
    autoencoder = loaded.autoencoder if loaded else None
    if table.autoencoder:
        autoencoder = load_autoencoder(_file("autoencoder", table.autoencoder))
    if autoencoder is None:
        raise MicroCinemaError(f"'{table.start}' holds no autoencoder: name a file that has it in model.autoencoder")
    if loaded:
        if model.text and loaded.text is None:
            raise MicroCinemaError(f"'{table.start}' holds no text encoder: make it with `microcinema init` from SD2.1")
        network = loaded.network
        assert network is not None
        if model.network != loaded.config.network:
            network = with_new_latents(network, model.network, config.train.seed)
        return LoadedModel(model, network.requires_grad_(True).train(), autoencoder, loaded.text)
    torch.manual_seed(config.train.seed)
    text = _text(table, model.text, captions)
    model = replace(model, text=text.config if text else None)
    return LoadedModel(model, build(model.network), autoencoder, text)


def _text(table: ModelTable, config: TextConfig | None, captions: Iterable[str]) -> TextEncoder | None:
    """The text encoder of a model that starts from random weights: another file's, or a new one."""
    if table.text:
        return load_text(_file("text", table.text), Path(table.tokenizer) if table.tokenizer else None)
    if config and table.vocabulary:
        config = with_vocabulary(config, captions, table.vocabulary)
    return TextEncoder(config) if config else None


def with_new_latents(network: nn.Module, config: NetworkConfig, seed: int) -> MicroCinemaUNet:
    """The network with the weights of another, for latents of other channels: the convolutions that read or write them
    start new, the condition's and the last one at zero, as in a new network."""
    new, weights = build(config, device="meta"), network.state_dict()
    torch.manual_seed(seed)
    for name, module in new.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape != weights[f"{name}.weight"].shape:
            module.to_empty(device="cpu").reset_parameters()
            weights |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for module in (new.condition_in, new.out[2]):
        zero(module)
    new.load_state_dict(weights, assign=True)
    return channels_last(new)


def with_vocabulary(text: TextConfig, captions: Iterable[str], size: int) -> TextConfig:
    """The text encoder's configuration with the `size` most frequent words of the captions as its vocabulary."""
    normalize, words = normalizers.Lowercase(), Counter()
    divide = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")])
    for caption in captions:
        words.update(word for word, _ in divide.pre_tokenize_str(normalize.normalize_str(caption)))
    ranked = sorted(words, key=lambda word: (-words[word], word))[:size]
    return replace(text, vocabulary_size=len(ranked) + SPECIAL_TOKENS, tokenizer=word_tokenizer(ranked))


def _file(setting: str, name: str) -> Path:
    try:
        return resolve(name)
    except MicroCinemaError as error:
        raise MicroCinemaError(f"model.{setting}: {error}") from error
