"""How large a model is, part by part, without allocating it."""

from __future__ import annotations

from ..config import ModelConfig
from .unet import MicroCinemaUNet

_PARTS = {
    "appearance": "appearance network",
    "appearance_injections": "appearance injection",
    "condition_in": "condition input",
    "motion_first": "motion embedding",
    "motion_second": "motion embedding",
    "temporal_convs": "temporal convolutions",
    "temporal_transformers": "temporal transformers",
}


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part of the network ("spatial" is what SD has too), and of all of it as "network"."""
    table = dict.fromkeys(["spatial", "temporal convolutions", "temporal transformers", "appearance network"], 0)
    table |= dict.fromkeys(["appearance injection", "condition input"], 0)
    for name, parameter in MicroCinemaUNet(config.network, device="meta").named_parameters():
        part = _PARTS.get(name.partition(".")[0], "spatial")
        table[part] = table.get(part, 0) + parameter.numel()
    return table | {"network": sum(table.values())}
