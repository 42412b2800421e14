"""The paper's networks, and the one place that builds a network from its configuration."""

from typing import Any

from torch import nn

from ..config import NetworkConfig, demo_module
from .clips import Condition
from .spatial import SpatialUNet
from .unet import MicroCinemaUNet

__all__ = ["Condition", "MicroCinemaUNet", "SpatialUNet", "build", "network_class"]


def network_class(config: NetworkConfig) -> type[MicroCinemaUNet]:
    """The paper's network, or the subclass of it for a configuration of the bundled models."""
    if type(config) is NetworkConfig:
        return MicroCinemaUNet
    return demo_module("network").network_class(config)


def build(config: NetworkConfig, *, operations: Any = nn, dtype=None, device=None) -> MicroCinemaUNet:
    """Build the network of a configuration with initial weights. operations: a namespace with torch.nn's layers."""
    return network_class(config)(config, operations=operations, dtype=dtype, device=device)
