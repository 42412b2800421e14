"""Every model of this package is one of these: the paper's two (supplement Table 3) and the two bundled demo models.

A configuration travels in the header of the checkpoint it describes, as JSON. Headers come from anywhere: every number
has a range, and what does not fit together is refused before anything is built.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from math import gcd
from typing import Annotated, Any, Literal

from pydantic import StrictBool, TypeAdapter, ValidationError

from .validated import Fits, Printable, Range, sentence, validated

LAMBDA = 0.03  # of the prior in training, as in the paper

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
Size = Annotated[float, Range(0, 1000, "in latents", 0.2, above=True)]
Side = Annotated[int, Range(1, 8192, "pixels", 320)]


def _check_groups(name: str, channels: int, multipliers: tuple[int, ...], groups: int) -> None:
    """Group-norms need as many channels as groups, or a multiple, at each level."""
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
    pixel_shuffle: StrictBool = (
        False  # upsample by sub-pixel convolution; SD repeats pixels, from which small models learn late
    )
    scale: Annotated[float, Range(0, 1000, "", 0.18215, above=True)] = 0.18215  # model latents = scale · encoder mean

    def __post_init__(self):
        _check_groups("channels", self.channels, self.channel_multipliers, self.norm_groups)

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def least_parameters(self) -> int:
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
    # layers left out at the end; the final norm still applies
    skip_last: Annotated[int, Range(0, 127, "layers", 1)] = 1
    projection: StrictBool = True
    tokenizer: str | None = None  # a `tokenizers` JSON for models with a vocabulary of their own

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads cannot be {self.heads}: give a divisor of width ({self.width})")
        if self.skip_last >= self.layers:
            raise ValueError(f"skip_last cannot be {self.skip_last}: give less than layers ({self.layers})")

    @property
    def least_parameters(self) -> int:
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
    temporal_positions: StrictBool = True  # the frames' places are told to the attention
    frames: Annotated[int, Range(2, 1000, "frames", 9)] = 9  # the clip length it is trained at; others run
    condition: Literal["centre", "ends"] = "centre"
    scale_shift_norm: StrictBool = False  # the time embedding scales and shifts, instead of only shifting as in SD
    residual_std: Size | None = None  # v only: the layers predict what differs from the condition; its size in latents
    motion_embedding: StrictBool = False  # adds τ·A(text) + τ²·B(text) to the time embedding, τ = signed frame offset
    # With residual_std: what differs from the condition, moved along paths told by the text; the model's autoencoder
    # stands between its latents and the pixels that move, four to a cell or more in each direction.
    forward_warp: AutoencoderConfig | None = None
    amplitude_std: Size | None = None  # with a forward warp told by text: how far motion may differ from what is told

    def __post_init__(self):
        levels, widths = len(self.channel_multipliers), self._widths
        _check_groups("model_channels", self.model_channels, self.channel_multipliers, self.norm_groups)
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
        if self.motion_embedding and self.context_dim is None:
            raise ValueError("motion_embedding cannot be true without text: give context_dim")
        if self.forward_warp:
            self._check_warp(self.forward_warp)

    def _check_warp(self, autoencoder: AutoencoderConfig) -> None:
        if autoencoder.factor < 4:
            raise ValueError("forward_warp cannot have fewer than 3 channel_multipliers: give 4 pixels a cell or more")
        if autoencoder.latent_channels != self.latent_channels:
            raise ValueError(f"forward_warp.latent_channels must be the network's own ({self.latent_channels})")
        least = 48 if self.context_dim is None else 24  # the widths inside are multiples of it
        if least % self.norm_groups:
            raise ValueError(f"norm_groups cannot be {self.norm_groups} with forward_warp: give a divisor of {least}")

    @property
    def _widths(self) -> list[int]:
        return [self.model_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def least_parameters(self) -> int:
        """A lower bound of the parameters: the convolutions of its ResBlocks, AppearNet's and the temporal ones."""
        blocks, each = 2 * self.res_blocks + 1, 18 + 3 * self.temporal_conv_depth
        return each * (sum(blocks * width**2 for width in self._widths) + 2 * self._widths[-1] ** 2)


@validated
class ModelConfig:
    """A network with all it takes to run it, and the settings it is meant to be run with."""

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
        if network.residual_std is not None and self.parameterization != "v":
            raise ValueError("residual_std needs parameterization v")
        if network.forward_warp and network.residual_std is None:
            raise ValueError("forward_warp needs residual_std")
        if network.amplitude_std is not None and not (network.forward_warp and network.context_dim):
            raise ValueError("amplitude_std needs forward_warp and a text")
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
        """The types it may compute in, by torch's names, the preferred one first. A forward warp overflows half
        precision (docs/performance.md), and such a model is small."""
        return ("float32",) if self.network.forward_warp else ("float16", "bfloat16", "float32")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Raises ValueError naming a field that is unknown, missing or out of its range, and what to give instead."""
        if not isinstance(data, dict):
            raise ValueError("the configuration is not an object")
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            raise ValueError(sentence(error)) from error


_DEMO_AUTOENCODER = AutoencoderConfig(
    channels=16,
    channel_multipliers=(1, 2, 4, 4),
    res_blocks=1,
    latent_channels=16,
    norm_groups=1,
    pixel_shuffle=True,
)
_DEMO_NETWORK = NetworkConfig(
    latent_channels=16, model_channels=64, channel_multipliers=(1, 1, 1), res_blocks=1, attention_levels=(1, 2),
    head_channels=32, norm_groups=4, context_dim=128, scale_shift_norm=True, residual_std=0.2,
    motion_embedding=True, forward_warp=_DEMO_AUTOENCODER, amplitude_std=0.05,
)  # fmt: skip

BASE = ModelConfig(name="base")
INTERPOLATION = replace(
    BASE, name="interpolation", network=NetworkConfig(frames=5, condition="ends", context_dim=None), text=None, fps=8.0,
    cfg=1.0,
)  # fmt: skip
DEMO_BASE = ModelConfig(
    name="demo-base", network=_DEMO_NETWORK, autoencoder=_DEMO_AUTOENCODER,
    text=TextConfig(width=128, layers=2, heads=4, vocabulary_size=128, max_tokens=24, skip_last=0, projection=False),
    parameterization="v", width=96, height=96, steps=1, cfg=1.0,
)  # fmt: skip
DEMO_INTERPOLATION = replace(
    DEMO_BASE, name="demo-interpolation", text=None, fps=8.0,
    network=replace(
        _DEMO_NETWORK, model_channels=48, head_channels=24, channel_multipliers=(1, 1), attention_levels=(1,),
        context_dim=None, frames=5, condition="ends", motion_embedding=False, amplitude_std=None,
    ),
)  # fmt: skip

CONFIGS = {config.name: config for config in (BASE, INTERPOLATION, DEMO_BASE, DEMO_INTERPOLATION)}
