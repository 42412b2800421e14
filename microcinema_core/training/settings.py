"""The tables of a run that trains one of the paper's models: [model], [data], and more settings in [train]."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import StrictBool

from ..config import ModelConfig, configurations
from ..errors import MicroCinemaError
from ..validated import Fits, Range, shown, validated
from .config import RunConfig, Share, TrainConfig

Fps = Annotated[float, Range(0.1, 240, "frames a second", 2)]
Factor = Annotated[float, Range(0, 1, such_as=0.1)]


@validated
class VideoTrainConfig(TrainConfig):
    """[train] of one of the paper's models."""

    trained: Literal["all", "new", "lora"] = "all"  # as parameters.select describes them
    lora_rank: Annotated[int, Range(1, 1024, "of the adapters", 16)] = 16
    spatial_factor: Factor = 1.0  # of the learning rate, for the layers that Stable Diffusion has


@validated
class ModelTable:
    """[model]: what is trained, and from where it starts."""

    # A configuration of the paper, parts of which `override` replaces; it is not read where `start` has its own.
    config: str = "base"
    override: dict[str, Any] = field(default_factory=dict)
    start: str = ""  # a model file, of `microcinema init` or of another run; otherwise weights are random
    # A model file or a bundled model, for a start without an autoencoder; or whose latents have other channels than the
    # start's, the first and last convolutions of which then begin anew.
    autoencoder: str = ""
    text: str = ""  # the same for the text encoder, which stays as it is; for a start from random weights
    tokenizer: str = ""  # the folder of CLIP's vocab.json and merges.txt, for Stable Diffusion's text encoder
    # Words of a text encoder of its own, the most frequent ones of the captions, which is trained too; 0 for none.
    vocabulary: Annotated[int, Range(0, 100_000, "words", 1000)] = 0

    def configuration(self) -> ModelConfig:
        """The configuration with its overrides.

        Raises MicroCinemaError for a name that is unknown, and for what does not fit together.
        """
        known = {name: config for name, config in configurations().items() if type(config) is ModelConfig}
        if self.config not in known:
            raise MicroCinemaError(f"model.config cannot be '{shown(self.config)}': give {' or '.join(known)}")
        try:
            return ModelConfig.from_json(_replaced(known[self.config].to_json(), self.override))
        except ValueError as error:
            raise MicroCinemaError(f"model.override.{error}") from error


@validated
class DataTable:
    """[data]: the clips that are learned from. One of folder, shards, cache and scenes is given."""

    folder: str = ""  # of videos, with their captions in `table` or in .txt files beside them
    table: str = ""  # a CSV with WebVid's columns
    shards: str = ""  # WebDataset's, such as clips-{000000..000099}.tar
    cache: str = ""  # a folder that `microcinema cache` has made
    scenes: Annotated[int, Range(0, 10**9, "drawn clips", 10_000)] = 0  # the bundled models' scenes
    probes: str = ""  # a folder for what is known of each video, by default that of the run
    fps: Annotated[tuple[Fps, ...], Fits("at most 8 numbers from 0.1 to 240, such as [2.0]", 0, 8)] = ()  # the model's
    buckets: StrictBool = False  # sizes of about equal area for wide and for tall videos, instead of one for all
    # From how many places of a video clips are cut, one after another in the epochs; 0: from a new one in each epoch.
    variants: Annotated[int, Range(0, 1000, "clips of a video", 1)] = 0
    text_drop: Share = 0.1  # share of the clips that are learned from without their text
    cache_dtype: Literal["float16", "float32"] = "float16"  # of the moments that `microcinema cache` stores
    held_out: Annotated[int, Range(0, 10_000, "videos", 8)] = 0  # not learned from, for samples and validation losses

    def __post_init__(self):
        given = [name for name in ("folder", "shards", "cache", "scenes") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"folder, shards, cache and scenes: give one of them, not {' and '.join(given) or 'none'}")


@validated
class VideoRunConfig(RunConfig):
    """A run that trains one of the paper's models."""

    train: VideoTrainConfig
    data: DataTable
    model: ModelTable = field(default_factory=ModelTable)

    def __post_init__(self):
        if self.train.trained != "all" and self.train.dtype == "float32":
            raise ValueError(f"train.dtype cannot be 'float32' with trained '{self.train.trained}': give 'bfloat16'")
        if self.train.trained == "lora" and self.train.strategy == "fsdp2":
            raise ValueError("train.strategy cannot be 'fsdp2' with trained 'lora': give 'ddp'")

    def identity(self) -> dict[str, Any]:
        """As RunConfig's. Data are known by their hash, so that they may lie elsewhere; so are files of the model."""
        values = super().identity()
        values["data"] = {key: values["data"][key] for key in ("text_drop", "held_out", "variants", "buckets")}
        values["model"] = {key: values["model"][key] for key in ("config", "override", "vocabulary")}
        return values


def _replaced(values: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Nested values with those of `override` in their place."""
    merged = dict(values)
    for key, value in override.items():
        inner = merged.get(key)
        merged[key] = _replaced(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
