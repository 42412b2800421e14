"""Supports the patches by which other nodes change a UNet of the host (FreeU, PAG, SAG, HyperTile, ToMe, NAG, …).

A patch that is not supported, or that finds no layer to change, raises an error with its name; if it were ignored, the
user would assume that it works. docs/comfyui.md lists the nodes.
"""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor
from typing_extensions import override

from ..microcinema_core.errors import MicroCinemaError
from ..microcinema_core.model.layers import Attention, SpatialTransformer, TransformerBlock
from ..microcinema_core.model.spatial import Patches

HONOURED = {"attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "output_block_patch"}
REPLACED = {"attn1", "attn2"}


class HostPatches(Patches):
    """The hooks of one call of the network, which run the host's patches.

    `options` are the host's `transformer_options`. The position of the current layer is stored there, as by the host's
    UNet. Raises MicroCinemaError for a patch that is not supported.
    """

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
        """Raise MicroCinemaError, after the first call of a run, for a patch that has changed nothing."""
        sigmas, current = self.options.get("sample_sigmas"), self.options.get("sigmas")
        if sigmas is None or current is None or float(current[0]) < float(sigmas[0]):
            return
        if idle := sorted((self.patches.keys() | self.replaced.keys()) - self.acted):
            raise MicroCinemaError(
                f"The patch '{idle[0]}' finds no layer of this model to change at this size: take the node that makes "
                "it out of the MODEL's way (FreeU, HyperTile, ToMe Patch Model, …), or raise its depth."
            )

    @override
    def enter(self, place: str, index: int) -> None:
        self.options["block"] = (place, index)

    def skip(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Run the patches of output blocks (FreeU)."""
        for patch in self.patches.get("output_block_patch", ()):
            before = skip
            h, skip = patch(h, skip, self.options)
            if skip is not before:
                self.acted.add("output_block_patch")
        return h, skip

    def transform(self, layer: SpatialTransformer, h: Tensor, context: Tensor | None) -> Tensor:
        """Run a spatial transformer with the host's attention and its patches."""
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
        patches, output_patches = self.patches.get(f"{name}_patch", ()), self.patches.get(f"{name}_output_patch", ())
        replaced = self.replaced.get(name, {})
        place = self.options["block"]
        replace = replaced.get((*place, 0), replaced.get(place))
        extra = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        extra |= {"n_heads": layer.heads, "dim_head": layer.to_q.out_features // layer.heads}
        extra["attn_precision"] = torch.float32  # as in the host for SD2.1, whose logits overflow in half precision
        shape = x.shape
        if context is None:
            context = x
        elif patches or output_patches or replace:
            context = context.repeat_interleave(x.shape[0] // context.shape[0], dim=0)
        else:  # one query for all frames of a clip, so that keys and values are computed once per clip
            x = x.reshape(context.shape[0], -1, x.shape[2])
        value = context
        for patch in patches:
            before = x
            x, context, value = patch(x, context, value, extra)
            if not (x is before and context is value):
                self.acted.add(f"{name}_patch")
        q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(value)
        if replace is not None:
            out = replace(q, k, v, extra)
            self.acted.add(name)
        else:
            options = {"attn_precision": extra["attn_precision"], "transformer_options": self.options}
            out = optimized_attention(q, k, v, layer.heads, **options)
        out = layer.to_out(out)
        for patch in output_patches:
            out = patch(out, extra)
            self.acted.add(f"{name}_output_patch")
        return out.reshape(shape)
