"""A LoRA of random weights for a model's spatial transformers, under the key names that SD LoRAs have."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from microcinema_core.pipeline import Pipeline


def kohya_names(config, keys) -> dict[str, str]:
    """Keys of the spatial transformers' linear layers by the names that SD LoRAs have for them: diffusers' places."""
    blocks, last = config.res_blocks, len(config.channel_multipliers) - 1
    places = {"middle_block.1.": "mid_block_attentions_0"}
    for level in config.attention_levels:
        for i in range(blocks):
            places[f"input_blocks.{1 + (blocks + 1) * level + i}.1."] = f"down_blocks_{level}_attentions_{i}"
        for i in range(blocks + 1):
            up = last - level
            places[f"output_blocks.{(blocks + 1) * up + i}.1."] = f"up_blocks_{up}_attentions_{i}"
    names = {}
    for key in keys:
        place = next((place for place in places if key.startswith(place)), None)
        layer = key.removesuffix(".weight")
        if place and layer.endswith(("proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "proj", "net.2")):
            names[f"lora_unet_{places[place]}_{layer.removeprefix(place).replace('.', '_')}"] = key
    return names


def random_lora(pipeline: Pipeline, path: Path) -> None:
    """Write it, and merge it at full strength into the pipeline's network."""
    weights = dict(pipeline.network.named_parameters())
    rank, alpha, random = 4, 2.0, torch.Generator().manual_seed(0)
    tensors = {}
    with torch.no_grad():
        for name, key in kohya_names(pipeline.config.network, weights).items():
            up = 0.4 * torch.randn(weights[key].shape[0], rank, generator=random)
            down = 0.4 * torch.randn(rank, weights[key].shape[1], generator=random)
            weights[key] += alpha / rank * up @ down
            tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
