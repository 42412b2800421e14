"""The configurations of the two bundled models: the paper's network with extensions for a size of 8 M parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from ..config import AUTOENCODER, NETWORK, AutoencoderConfig, ModelConfig, NetworkConfig, T, TextConfig
from ..errors import MicroCinemaError
from ..validated import Range, validated

LatentSize = Annotated[float, Range(0, 1000, "in latents", 0.2, above=True)]
# The autoencoders of the warps equal the file's own, which is stored only once.
WARP_AUTOENCODERS = {name: f"{NETWORK}{name}.autoencoder." for name in ("forward_warp", "flow_warp")}
FLOW_PARAMETERS = 6 * 10**5  # of a flow network, at least


@validated
class DemoNetworkConfig(NetworkConfig):
    """The paper's network with up to four extensions; network.py describes them."""

    # With v-prediction only: the layers estimate the residual between the clip and a prediction. This is the standard
    # deviation of the residual.
    residual_std: LatentSize | None = None
    # With residual_std and a text: the prediction is a forward warp of the centre frame, along paths that depend on the
    # text. This is the configuration of the model's autoencoder, which converts between latents and the pixels that are
    # warped; it has four or more pixels per latent cell in each direction.
    forward_warp: AutoencoderConfig | None = None
    # With residual_std, between end frames: the prediction is made by a flow network (flow.py) of the moved pixels
    # of both. This is the configuration of the model's autoencoder, which converts the result to latents.
    flow_warp: AutoencoderConfig | None = None
    # With a forward warp: the standard deviation of the motion's amplitude, relative to that of the text.
    amplitude_std: LatentSize | None = None

    PARTS: ClassVar[dict[str, str]] = NetworkConfig.PARTS | {
        "forward_warp": "forward warp",
        "flow_warp": "flow network",
        "prediction_in": "prediction",
    }

    def __post_init__(self):
        NetworkConfig.__post_init__(self)
        if self.forward_warp and self.residual_std is None:
            raise ValueError("forward_warp needs residual_std")
        if self.forward_warp and (self.condition != "centre" or self.context_dim is None):
            raise ValueError(
                'forward_warp needs condition "centre" and a text; interpolation models of releases before 0.2 cannot '
                "be read, train them again with configs/demo-interpolation.toml"
            )
        if self.amplitude_std is not None and not self.forward_warp:
            raise ValueError("amplitude_std needs forward_warp")
        if self.flow_warp and (self.residual_std is None or self.condition != "ends"):
            raise ValueError('flow_warp needs residual_std and condition "ends"')
        for name in ("forward_warp", "flow_warp"):
            if (autoencoder := getattr(self, name)) and autoencoder.latent_channels != self.latent_channels:
                raise ValueError(f"{name}.latent_channels must be the network's own ({self.latent_channels})")
        if self.forward_warp:
            self._check_warp(self.forward_warp)

    @property
    def minimum_parameters(self) -> int:
        """As NetworkConfig's, with those of the flow network."""
        return super().minimum_parameters + FLOW_PARAMETERS * (self.flow_warp is not None)

    def _check_warp(self, autoencoder: AutoencoderConfig) -> None:
        """Raise ValueError where the forward warp's autoencoder does not fit the network."""
        if autoencoder.factor < 4:
            raise ValueError("forward_warp cannot have fewer than 3 channel_multipliers: give 4 pixels a cell or more")
        if 24 % self.norm_groups:  # the channels inside the forward warp are multiples of it
            raise ValueError(f"norm_groups cannot be {self.norm_groups} with forward_warp: give a divisor of 24")


@validated
class DemoModelConfig(ModelConfig):
    """A model with a DemoNetworkConfig."""

    network: DemoNetworkConfig = DemoNetworkConfig()

    def __post_init__(self):
        ModelConfig.__post_init__(self)
        if self.network.residual_std is not None and self.parameterization != "v":
            raise ValueError("residual_std needs parameterization v")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Only float32 with a warp: interpolation can end in NaN in float16 (docs/performance.md, Activations)."""
        return ("float32",) if self._warp_autoencoder else super().dtypes

    @property
    def _warp_autoencoder(self) -> str | None:
        """The prefix of the tensors of the warp's autoencoder, if there is a warp."""
        return next((prefix for name, prefix in WARP_AUTOENCODERS.items() if getattr(self.network, name)), None)

    @property
    def moves_pixels(self) -> bool:
        """With a forward warp."""
        return self.network.forward_warp is not None

    def from_file(self, tensors: dict[str, T]) -> dict[str, T]:
        """Add the tensors of the warp's autoencoder, which are the model's own."""
        if not (prefix := self._warp_autoencoder):
            return tensors
        autoencoder = {key: value for key, value in tensors.items() if key.startswith(AUTOENCODER)}
        return {key.replace(AUTOENCODER, prefix): value for key, value in autoencoder.items()} | tensors

    def to_file(self, tensors: dict[str, T]) -> dict[str, T]:
        """Leave out the warp's autoencoder where the file contains the model's own, which is the same."""
        prefix = self._warp_autoencoder
        if not prefix or not any(key.startswith(AUTOENCODER) for key in tensors):
            return tensors
        return {key: value for key, value in tensors.items() if not key.startswith(prefix)}


def model_class(network: dict[str, Any]) -> type[DemoModelConfig]:
    """The class of the configuration of a header with this `network`. Raises MicroCinemaError for a base model of an
    earlier release."""
    if "motion_embedding" in network:
        raise MicroCinemaError(
            "base models of a release before 0.2 cannot be read: take this release's demo-base, or train it again "
            "with configs/demo-base.toml"
        )
    return DemoModelConfig


_AUTOENCODER = AutoencoderConfig(
    channels=16, channel_multipliers=(1, 2, 4, 4), res_blocks=1, latent_channels=16, norm_groups=1, pixel_shuffle=True
)
_NETWORK = DemoNetworkConfig(
    latent_channels=16, model_channels=64, channel_multipliers=(1, 1, 1), res_blocks=1, attention_levels=(1, 2),
    head_channels=32, norm_groups=4, context_dim=128, scale_shift_norm=True, residual_std=0.2,
    forward_warp=_AUTOENCODER, amplitude_std=0.05,
)  # fmt: skip
DEMO_BASE = DemoModelConfig(
    name="demo-base", network=_NETWORK, autoencoder=_AUTOENCODER,
    text=TextConfig(width=128, layers=2, heads=4, vocabulary_size=128, max_tokens=24, skip_last=0, projection=False),
    parameterization="v", width=96, height=96, steps=1, cfg=1.0,
)  # fmt: skip
DEMO_INTERPOLATION = replace(
    DEMO_BASE, name="demo-interpolation", text=None, fps=8.0,
    network=replace(
        _NETWORK, model_channels=24, head_channels=12, channel_multipliers=(1, 1), attention_levels=(1,),
        context_dim=None, frames=5, condition="ends", amplitude_std=None, forward_warp=None,
        flow_warp=_AUTOENCODER, residual_std=0.4,
    ),
)  # fmt: skip
