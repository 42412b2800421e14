"""Which parameters of a model are trained, in which precision they are kept, and with which learning rate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import MicroCinemaError

# The first part of the names of the layers that Stable Diffusion lacks; AppearNet counts as spatial, as in the paper.
NEW = ("temporal_convs", "temporal_transformers", "temporal_input", "appearance_injections", "condition_in")
LORA_TARGETS = r"(appearance\.)?(input_blocks|middle_block|output_blocks)\..*(to_q|to_k|to_v|to_out\.0|ff\.net\.2|proj)"


def is_new(name: str) -> bool:
    """Whether a parameter of a network belongs to a layer that Stable Diffusion lacks."""
    return name.partition(".")[0] in NEW


def select(network: nn.Module, trained: str, lora_rank: int = 16) -> None:
    """Choose, in place, what of a network is trained: "all"; "new", the layers that Stable Diffusion lacks; or "lora",
    these and low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of the spatial transformers' linear layers.

    What is not trained is kept in bfloat16. Raises MicroCinemaError where peft, which makes the adapters, is missing.
    """
    if trained == "all":
        return
    for name, parameter in network.named_parameters():
        if not is_new(name):
            parameter.requires_grad_(False)
            parameter.data = parameter.data.bfloat16()
    if trained == "lora":
        try:
            from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MicroCinemaError("trained 'lora' needs peft: pip install peft, or give 'new' or 'all'") from error
        new = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        config = LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=LORA_TARGETS)
        inject_adapter_in_model(config, network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in new or "lora_" in name)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def merged(network: nn.Module, keep: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The weights of a network by their plain names, each as `keep` returns it, with low-rank adapters added to the
    layers that they change."""
    weights = {name: keep(tensor) for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight"):
            weights[f"{name}.base_layer.weight"] = (
                weights[f"{name}.base_layer.weight"].float() + module.get_delta_weight("default")  # pyright: ignore
            )
    return {re.sub(r"\.base_layer\.", ".", name): tensor for name, tensor in weights.items() if "lora_" not in name}


def whole(tensor: Tensor) -> Tensor:
    """A parameter of which each process holds a part, collected from all, which call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def parameter_groups(model: nn.Module, spatial_factor: float) -> list[dict[str, Any]]:
    """The trained parameters of a VideoModel: the new layers and a text encoder, and those that Stable Diffusion has,
    whose learning rate is multiplied by `spatial_factor` (supplement Table 3: one tenth)."""
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.removeprefix("network.")
            spatial = name != part and not is_new(part) and "lora_" not in part
            groups.setdefault(spatial_factor if spatial else 1.0, []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


@dataclass(frozen=True)
class Memory:
    """The bytes that a model in training takes in one process, without activations; and numbers of parameters."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    averages: int

    def __str__(self) -> str:
        parts = ("weights", "gradients", "moments", "averages")
        sizes = [getattr(self, part) for part in parts]
        listed = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in zip(parts, sizes, strict=True))
        counts = f"{self.parameters / 1e6:,.1f} M parameters, {self.trained / 1e6:,.1f} M trained"
        return f"{counts}: {listed}, together {sum(sizes) / 1e9:.2f} GB before activations"


def memory(model: nn.Module, optimizer: str = "adamw", averages: int = 1) -> Memory:
    """What a model takes in this process: gradients and averages in float32, both moments in float32 or, with the
    optimiser "adamw8bit", in one byte each (and a scale for 256 of them)."""
    moments = 2 * (1 + 4 / 256) if optimizer == "adamw8bit" else 8
    parameters = list(model.parameters())
    held = {id(p): p.to_local() if hasattr(p, "to_local") else p for p in parameters}  # pyright: ignore
    trained = sum(held[id(p)].numel() for p in parameters if p.requires_grad)
    return Memory(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() * p.element_size() for p in held.values()),
        4 * trained,
        int(moments * trained),
        4 * trained * averages,
    )
