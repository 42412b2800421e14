"""Every model of this package is one of these: the paper's two (supplement Table 3) and the two bundled demo models.

A configuration travels in the header of the checkpoint it describes, as JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

LAMBDA = 0.03  # of the prior in training, as in the paper


@dataclass(frozen=True)
class AutoencoderConfig:
    """SD's AutoencoderKL layout at any width. The defaults are SD2.1's own VAE (84 M parameters)."""

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    pixel_shuffle: bool = (
        False  # upsample by sub-pixel convolution; SD repeats pixels, from which small models learn late
    )
    scale: float = 0.18215  # model latents = scale · encoder mean

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text tower. The defaults are SD2.1's OpenCLIP ViT-H (354 M parameters), read at its penultimate layer."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    vocabulary_size: int = 49408
    max_tokens: int = 77
    skip_last: int = 1  # layers left out at the end; the final norm still applies
    projection: bool = True
    tokenizer: str | None = None  # a `tokenizers` JSON for models with a vocabulary of their own


@dataclass(frozen=True)
class NetworkConfig:
    """The image&text-to-video UNet. The defaults are the paper's base model: SD2.1's UNet, inflated (2.0 B)."""

    latent_channels: int = 4
    model_channels: int = 320
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)  # levels with transformers; level 0 is the full latent resolution
    head_channels: int = 64
    norm_groups: int = 32
    context_dim: int | None = 1024  # None: a network that never sees text
    temporal_conv_depth: int = 1
    temporal_attentions: Literal[1, 2] = 1  # per temporal transformer, one after the other; 2 as in ModelScope's model
    temporal_positions: bool = True  # the frames' places are told to the attention
    frames: int = 9  # the clip length it is trained at; others run
    condition: Literal["centre", "ends"] = "centre"
    scale_shift_norm: bool = False  # the time embedding scales and shifts, instead of only shifting as in SD
    residual_std: float | None = None  # v only: the layers predict what differs from the condition; its size in latents
    motion_embedding: bool = False  # adds τ·A(text) + τ²·B(text) to the time embedding, τ = signed frame offset
    # With residual_std: what differs from the condition, moved along paths told by the text; the model's autoencoder
    # stands between its latents and the pixels that move, four to a cell or more in each direction.
    forward_warp: AutoencoderConfig | None = None
    amplitude_std: float | None = None  # with a forward warp told by text: how far motion may differ from what is told


@dataclass(frozen=True)
class ModelConfig:
    """A network with all it takes to run it, and the settings it is meant to be run with."""

    name: str
    network: NetworkConfig = field(default_factory=NetworkConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig | None = field(default_factory=TextConfig)
    parameterization: Literal["eps", "v"] = "eps"
    width: int = 320
    height: int = 320
    fps: float = 2.0
    steps: int = 50
    cfg: float = 7.5
    lambda_: float = LAMBDA  # prior strength the model was trained with
    gamma: float = 0.02  # added to it when sampling

    def __post_init__(self):
        if self.network.residual_std is not None and self.parameterization != "v":
            raise ValueError("residual_std needs parameterization v")
        if self.network.forward_warp and self.network.residual_std is None:
            raise ValueError("forward_warp needs residual_std")
        if self.network.amplitude_std is not None and not (self.network.forward_warp and self.network.context_dim):
            raise ValueError("amplitude_std needs forward_warp and a text")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types it may compute in, by torch's names, the preferred one first. A forward warp overflows half
        precision (docs/performance.md), and such a model is small."""
        return ("float32",) if self.network.forward_warp else ("float16", "bfloat16", "float32")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Raises ValueError naming a field that is unknown, missing or of the wrong type."""
        return _build(cls, data, "configuration")


def _build(cls, data, where):
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not an object")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"{where} has unknown fields: {', '.join(unknown)}")
    values = {}
    for key, value in data.items():
        nested = next((t for t in (hints[key], *getattr(hints[key], "__args__", ())) if is_dataclass(t)), None)
        if nested and value is not None:
            value = _build(nested, value, key)
        elif isinstance(value, list):
            value = tuple(value)
        if not fits(value, hints[key]):
            raise ValueError(f"{where} cannot have {key} = {value!r}")
        values[key] = value
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON or TOML, lists as tuples, is of a field's type. A whole number may be a float."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return value in choices
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(item, choices[0]) for item in value)
    if choices:  # a union
        return any(fits(value, choice) for choice in choices)
    return type(value) is hint or (hint is float and type(value) is int)


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
