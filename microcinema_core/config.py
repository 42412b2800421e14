"""The paper's two models (supplement Table 3), and the classes that describe any model of this package.

A configuration travels in the header of the checkpoint it describes, as JSON. Headers come from anywhere: every number
has a range, and what does not fit together is refused before anything is built.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from math import gcd
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import StrictBool, TypeAdapter, ValidationError

from .errors import MicroCinemaError
from .validated import Fits, Printable, Range, sentence, validated

LAMBDA = 0.03  # of the prior in training, as in the paper
# The prefixes of the keys in a model file, see header.py.
NETWORK, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
TEMPORAL_INPUT_HEADS = 8  # as in DynamiCrafter, VideoCrafter2, ModelScope's model and I2VGen-XL
# Fields of demo.config.DemoNetworkConfig, now or in 0.1; a header with a value for one describes a model of that kind.
DEMO_FIELDS = {"residual_std", "motion_embedding", "forward_warp", "flow_warp", "amplitude_std"}
T = TypeVar("T")

Channels = Annotated[int, Range(1, 16384, "channels", 64)]
LatentChannels = Annotated[int, Range(1, 1024, "channels", 4)]
NormGroups = Annotated[int, Range(1, 1024, "groups", 32)]
ResBlocks = Annotated[int, Range(1, 16, "blocks a level", 2)]
Multipliers = Annotated[
    tuple[Annotated[int, Range(1, 64)], ...], Fits("1 to 8 whole numbers from 1 to 64, such as [1, 2, 4, 4]", 1, 8)
]
Levels = Annotated[
    tuple[Annotated[int, Range(0, 7)], ...], Fits("at most 8 whole numbers from 0 to 7, such as [0, 1, 2]", 0, 8)
]
Side = Annotated[int, Range(1, 8192, "pixels", 320)]


def check_groups(name: str, channels: int, multipliers: tuple[int, ...], groups: int) -> None:
    """Raise ValueError unless the channels of every level are a multiple of the group-norms' `groups`."""
    if channels * gcd(*multipliers) % groups:
        raise ValueError(f"norm_groups cannot be {groups}: give a divisor of each level's channels ({name}·multiplier)")


@validated
class AutoencoderConfig:
    """SD's AutoencoderKL layout at any width. The defaults are SD2.1's own VAE (84 M parameters)."""

    channels: Channels = 128
    channel_multipliers: Multipliers = (1, 2, 4, 4)
    res_blocks: ResBlocks = 2
    latent_channels: LatentChannels = 4
    norm_groups: NormGroups = 32
    # Upsample by sub-pixel convolution; SD repeats pixels, which slows the training of small models.
    pixel_shuffle: StrictBool = False
    scale: Annotated[float, Range(0, 1000, "", 0.18215, above=True)] = 0.18215  # model latents = scale · encoder mean

    def __post_init__(self):
        check_groups("channels", self.channels, self.channel_multipliers, self.norm_groups)

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def minimum_parameters(self) -> int:
        """A lower bound of the parameters, from the 3×3 convolutions alone."""
        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        blocks = 2 * self.res_blocks + 1
        return 9 * (sum(blocks * width**2 for width in widths) + 8 * widths[-1] ** 2)


@validated
class TextConfig:
    """A CLIP text tower. The defaults are SD2.1's OpenCLIP ViT-H (354 M parameters), read at its penultimate layer."""

    width: Channels = 1024
    layers: Annotated[int, Range(1, 128, "layers", 24)] = 24
    heads: Annotated[int, Range(1, 1024, "heads", 16)] = 16
    vocabulary_size: Annotated[int, Range(4, 1_000_000, "tokens", 49408)] = 49408
    max_tokens: Annotated[int, Range(3, 4096, "tokens", 77)] = 77
    # The number of layers left out at the end; the final norm is applied in any case.
    skip_last: Annotated[int, Range(0, 127, "layers", 1)] = 1
    projection: StrictBool = True
    tokenizer: str | None = None  # a `tokenizers` JSON for models with a vocabulary of their own

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads cannot be {self.heads}: give a divisor of width ({self.width})")
        if self.skip_last >= self.layers:
            raise ValueError(f"skip_last cannot be {self.skip_last}: give less than layers ({self.layers})")

    @property
    def minimum_parameters(self) -> int:
        """A lower bound of the parameters: the embedding and each layer's matrices."""
        return self.vocabulary_size * self.width + (self.layers - self.skip_last) * 12 * self.width**2


@validated
class NetworkConfig:
    """The image&text-to-video UNet. The defaults are the paper's base model: SD2.1's UNet, inflated (2.0 B)."""

    latent_channels: LatentChannels = 4
    model_channels: Channels = 320
    channel_multipliers: Multipliers = (1, 2, 4, 4)
    res_blocks: ResBlocks = 2
    attention_levels: Levels = (0, 1, 2)  # levels with transformers; level 0 is the full latent resolution
    head_channels: Channels = 64
    norm_groups: NormGroups = 32
    context_dim: Channels | None = 1024  # None: a network that never sees text
    temporal_conv_depth: Annotated[int, Range(1, 8, "convolutions", 1)] = 1
    temporal_attentions: Literal[1, 2] = 1  # per temporal transformer, one after the other; 2 as in ModelScope's model
    temporal_positions: StrictBool = True  # the temporal attention gets an embedding of the frames' positions
    temporal_input: StrictBool = False  # one more temporal transformer, after the input convolution
    frames: Annotated[int, Range(2, 1000, "frames", 9)] = 9  # the clip length it is trained at; others run
    condition: Literal["centre", "ends"] = "centre"
    scale_shift_norm: StrictBool = False  # the time embedding scales and shifts, instead of only shifting as in SD

    # What a parameter belongs to, by the first part of its name; all others are SD2.1's own.
    PARTS: ClassVar[dict[str, str]] = {
        "temporal_convs": "temporal convolutions",
        "temporal_transformers": "temporal transformers",
        "temporal_input": "temporal input layer",
        "appearance": "appearance network",
        "appearance_injections": "appearance injection",
        "condition_in": "condition input",
    }

    def __post_init__(self):
        levels, widths = len(self.channel_multipliers), self._widths
        check_groups("model_channels", self.model_channels, self.channel_multipliers, self.norm_groups)
        if self.model_channels % 2:
            raise ValueError(f"model_channels cannot be {self.model_channels}: give an even number")
        if not set(self.attention_levels) <= set(range(levels)):
            raise ValueError(
                f"attention_levels cannot be {list(self.attention_levels)}: give levels from 0 to {levels - 1}"
            )
        for level in {*self.attention_levels, levels - 1}:
            if widths[level] % max(1, widths[level] // self.head_channels):
                raise ValueError(
                    f"head_channels cannot be {self.head_channels}: give a divisor of each level's channels "
                    f"({', '.join(map(str, widths))})"
                )

    @property
    def _widths(self) -> list[int]:
        return [self.model_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def temporal_input_width(self) -> int:
        """The channels inside the temporal input layer: 8 heads, however many channels it has outside."""
        return TEMPORAL_INPUT_HEADS * self.head_channels

    @property
    def minimum_parameters(self) -> int:
        """A lower bound of the parameters: the convolutions of its ResBlocks, AppearNet's and the temporal ones, and
        the attention and the feed-forward of the temporal input layer."""
        blocks, each = 2 * self.res_blocks + 1, 18 + 3 * self.temporal_conv_depth
        convolutions = each * (sum(blocks * width**2 for width in self._widths) + 2 * self._widths[-1] ** 2)
        return convolutions + self.temporal_input * 16 * self.temporal_input_width**2


@validated
class ModelConfig:
    """A network, the autoencoder and text encoder that it needs, and its default settings for sampling."""

    name: Annotated[str, Printable(100)]
    network: NetworkConfig = NetworkConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: TextConfig | None = TextConfig()
    parameterization: Literal["eps", "v"] = "eps"
    width: Side = 320
    height: Side = 320
    fps: Annotated[float, Range(0.1, 240, "frames a second", 2)] = 2.0
    steps: Annotated[int, Range(1, 1000, "steps", 50)] = 50
    cfg: Annotated[float, Range(0, 100, "", 7.5)] = 7.5
    lambda_: Annotated[float, Range(0, 1, "", LAMBDA)] = LAMBDA  # prior strength the model was trained with
    gamma: Annotated[float, Range(-1, 1, "", 0.02)] = 0.02  # added to it when sampling

    def __post_init__(self):
        network = self.network
        if network.latent_channels != self.autoencoder.latent_channels:
            raise ValueError(
                f"network.latent_channels cannot be {network.latent_channels}: give the autoencoder's own "
                f"({self.autoencoder.latent_channels})"
            )
        if self.text and network.context_dim not in (None, self.text.width):
            raise ValueError(
                f"network.context_dim cannot be {network.context_dim}: give the text's own width ({self.text.width})"
            )
        for name, side in (("width", self.width), ("height", self.height)):
            if side % self.autoencoder.factor:
                raise ValueError(f"{name} cannot be {side}: give a multiple of {self.autoencoder.factor} pixels")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that the network supports, by torch's names, the preferred one first."""
        return ("float16", "bfloat16", "float32")

    @property
    def moves_pixels(self) -> bool:
        """Whether the size of the motion and overscan can be set: where a picture's pixels are moved along paths."""
        return False

    def from_file(self, tensors: dict[str, T]) -> dict[str, T]:
        """Rename the tensors of a file, by key, to the modules' current names."""
        return tensors

    def to_file(self, tensors: dict[str, T]) -> dict[str, T]:
        """Select those of the modules' tensors, by key, that a file stores."""
        return tensors

    def to_json(self) -> dict[str, Any]:
        """The configuration as a JSON object, the inverse of from_json."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ModelConfig:
        """Build a configuration from a JSON object.

        Raises ValueError, which names a field that is unknown, missing or out of its range, and a valid value, and
        MicroCinemaError as demo_module does.
        """
        if not isinstance(data, dict):
            raise ValueError("the configuration is not an object")
        kind, network = ModelConfig, data.get("network")
        if isinstance(network, dict):
            # The headers of release 0.1 name the demo's fields in every model, without a value in the paper's.
            network = {k: v for k, v in network.items() if k not in DEMO_FIELDS or (v is not None and v is not False)}
            data = data | {"network": network}
            if not DEMO_FIELDS.isdisjoint(network):
                kind = demo_module("config").model_class(network)
        try:
            return TypeAdapter(kind).validate_python(data)
        except ValidationError as error:
            raise ValueError(sentence(error)) from error


BASE = ModelConfig(name="base")
INTERPOLATION = replace(
    BASE, name="interpolation", network=NetworkConfig(frames=5, condition="ends", context_dim=None), text=None, fps=8.0,
    cfg=1.0,
)  # fmt: skip


def configurations() -> dict[str, ModelConfig]:
    """All configurations by name: the paper's two, and those of the bundled models."""
    configs = [BASE, INTERPOLATION]
    with suppress(MicroCinemaError):
        demo = demo_module("config")
        configs += [demo.DEMO_BASE, demo.DEMO_INTERPOLATION]
    return {config.name: config for config in configs}


def demo_module(name: str) -> ModuleType:
    """Import a module of the bundled models' folder.

    Raises MicroCinemaError where this installation lacks the folder, or a package that the module needs.
    """
    try:
        return import_module(f".demo.{name}", __package__)
    except ModuleNotFoundError as error:
        missing, cure = str(error.name), "install it with pip"
        if missing.startswith(str(__package__)):
            missing, cure = "the folder demo of the bundled models", "install the package again"
        raise MicroCinemaError(f"this installation lacks {missing}: {cure}") from error
