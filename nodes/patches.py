"""What other nodes put into a UNet of the host (FreeU, PAG, SAG, HyperTile, ToMe, NAG, …), honoured by ours.

A patch that has no place here, or finds no layer that it fits, is refused by name: ignored, it would let a person
believe that it works. The table in docs/comfyui.md says which nodes are which.
"""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.model.layers import Attention, SpatialTransformer, TransformerBlock
from ..microcinema_core.model.spatial import Patches

HONOURED = {"attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "output_block_patch"}
REPLACED = {"attn1", "attn2"}


class HostPatches(Patches):
    """The patches of one call of the network, as its layers ask for them. `options` are the host's
    `transformer_options`, into which it writes where a layer is, as the host's UNet does."""

    def __init__(self, options: dict, x: Tensor):
        self.options = options
        self.patches = {name: patches for name, patches in options.get("patches", {}).items() if patches}
        self.replaced = {name: patches for name, patches in options.get("patches_replace", {}).items() if patches}
        self.acted: set[str] = set()
        if foreign := sorted((self.patches.keys() - HONOURED) | (self.replaced.keys() - REPLACED)):
            raise MicroCinemaError(
                f"MicroCinema's network has no place for the patch '{foreign[0]}': take the node that makes it "
                "out of the MODEL's way (Kohya Deep Shrink, Skip Layer Guidance and others for other networks)."
            )
        options |= {"original_shape": list(x.shape), "transformer_index": 0}

    def check(self) -> None:
        """After a run's first call: every patch has found something to change."""
        steps, now = self.options.get("sample_sigmas"), self.options.get("sigmas")
        if steps is None or now is None or float(now[0]) < float(steps[0]):
            return
        if idle := sorted((self.patches.keys() | self.replaced.keys()) - self.acted):
            raise MicroCinemaError(
                f"The patch '{idle[0]}' finds no layer of this model to change at this size: take the node that makes "
                "it out of the MODEL's way (FreeU, HyperTile, ToMe Patch Model, …), or raise its depth."
            )

    def enter(self, place: str, index: int) -> None:
        self.options["block"] = (place, index)

    def skip(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Before the two meet in an output block (FreeU)."""
        for patch in self.patches.get("output_block_patch", ()):
            given = skip
            h, skip = patch(h, skip, self.options)
            if skip is not given:
                self.acted.add("output_block_patch")
        return h, skip

    def transform(self, layer: SpatialTransformer, h: Tensor, context: Tensor | None) -> Tensor:
        """A spatial transformer, with the host's attention."""
        self.options["activations_shape"] = list(h.shape)
        h = layer(h, context, self._block)
        self.options["transformer_index"] += 1
        return h

    def _block(self, block: TransformerBlock, x: Tensor, context: Tensor | None) -> Tensor:
        self.options["block_index"] = 0
        x = x + self._attend("attn1", block.attn1, block.norm1(x), None)
        if block.attn2 is not None:
            x = x + self._attend("attn2", block.attn2, block.norm2(x), context)
        return x + block.ff(block.norm3(x))

    def _attend(self, name: str, layer: Attention, x: Tensor, context: Tensor | None) -> Tensor:
        patches, after = self.patches.get(f"{name}_patch", ()), self.patches.get(f"{name}_output_patch", ())
        replaced = self.replaced.get(name, {})
        place = self.options["block"]
        replace = replaced.get((*place, 0), replaced.get(place))
        extra = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        extra |= {"n_heads": layer.heads, "dim_head": layer.to_q.out_features // layer.heads}
        extra["attn_precision"] = torch.float32  # as the host has it for SD2.1, whose logits are beyond half precision
        shape = x.shape
        if context is None:
            context = x
        elif patches or after or replace:
            context = context.repeat_interleave(x.shape[0] // context.shape[0], dim=0)
        else:  # one long query for all frames of a clip, so that keys and values are not made per frame
            x = x.reshape(context.shape[0], -1, x.shape[2])
        value = context
        for patch in patches:
            given = x
            x, context, value = patch(x, context, value, extra)
            if not (x is given and context is value):
                self.acted.add(f"{name}_patch")
        q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(value)
        if replace is not None:
            out = replace(q, k, v, extra)
            self.acted.add(name)
        else:
            options = {"attn_precision": extra["attn_precision"], "transformer_options": self.options}
            out = optimized_attention(q, k, v, layer.heads, **options)
        out = layer.to_out(out)
        for patch in after:
            out = patch(out, extra)
            self.acted.add(f"{name}_output_patch")
        return out.reshape(shape)
