"""Run by test_parity.py in a Python that has open_clip: prompts to the states that SD2.1 reads.

As Stability's FrozenOpenCLIPEmbedder does: all layers but the last, then the final norm; padded with token 0.
"""

import json
import sys

import open_clip
import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import load_file, save_file

source, config, prompts, output = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]
prefix = "cond_stage_model.model."
state = {key.removeprefix(prefix): value.float() for key, value in load_file(source).items() if key.startswith(prefix)}
state.pop("logit_scale")
tower = TextTransformer(
    vocab_size=config["vocabulary_size"], width=config["width"], heads=config["heads"], layers=config["layers"],
    output_dim=config["width"],
).eval()  # fmt: skip
tower.load_state_dict(state)
with torch.no_grad():
    tokens = open_clip.tokenize(prompts)
    x = tower.token_embedding(tokens) + tower.positional_embedding
    for layer in tower.transformer.resblocks[:-1]:
        x = layer(x, attn_mask=tower.attn_mask)
    save_file({"tokens": tokens, "states": tower.ln_final(x).contiguous()}, output)
