"""Stable Diffusion 2.1's UNet, with the keys of its checkpoints and by default its 865,910,724 parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import NetworkConfig
from .layers import Downsample, ResBlock, SpatialTransformer, Upsample, sinusoids, zero

# A ControlNet's residuals by stage ("input", "middle", "output"), in lists from which the network pops the last ones.
Control = dict[str, list[Tensor | None]]


class Patches:
    """Hooks by which a host can change activations inside the network; these change nothing."""

    def enter(self, place: str, index: int) -> None:
        """Called before each block: the index-th of the stage `place`, "input", "middle" or "output"."""

    def skip(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Called with the two inputs of an output block, the previous output and the skip connection; returns both."""
        return h, skip

    def transform(self, layer: SpatialTransformer, h: Tensor, context: Tensor | None) -> Tensor:
        """Called for each spatial transformer; returns its output."""
        return layer(h, context)


class SpatialUNet(nn.Module):
    """The picture network.

    `res_channels` and `transformer_channels` list the output channels of its ResBlocks and transformers in the order of
    execution. The `index` of such a layer is its position there, by which a subclass finds the layer's counterpart.
    """

    config: NetworkConfig
    gradient_checkpointing = False  # in training, keep the outputs of blocks alone and compute the rest again

    def __init__(self, config: NetworkConfig, *, head=True, operations: Any = nn, dtype=None, device=None):
        """head=False leaves out `out`, the layers that turn features into latents."""
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        plain = {"dtype": dtype, "device": device}
        self.config = config
        self.res_channels: list[int] = []
        self.transformer_channels: list[int] = []

        width, emb_dim = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(
            operations.Linear(width, emb_dim, **plain), nn.SiLU(), operations.Linear(emb_dim, emb_dim, **plain)
        )

        channels, skips = width, [width]
        first = operations.Conv2d(config.latent_channels, width, 3, padding=1, **plain)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        for level, multiplier in enumerate(config.channel_multipliers):
            for _ in range(config.res_blocks):
                block = nn.ModuleList([self._res_block(channels, width * multiplier, **kw)])
                channels = width * multiplier
                if level in config.attention_levels:
                    block.append(self._transformer(channels, **kw))
                self.input_blocks.append(block)
                skips.append(channels)
            if level < len(config.channel_multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels, **kw)]))
                skips.append(channels)

        self.middle_block = nn.ModuleList(
            [
                self._res_block(channels, channels, **kw),
                self._transformer(channels, **kw),
                self._res_block(channels, channels, **kw),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            for i in range(config.res_blocks + 1):
                block = nn.ModuleList([self._res_block(channels + skips.pop(), width * multiplier, **kw)])
                channels = width * multiplier
                if level in config.attention_levels:
                    block.append(self._transformer(channels, **kw))
                if level and i == config.res_blocks:
                    block.append(Upsample(channels, **kw))
                self.output_blocks.append(block)

        if head:
            self.out = nn.Sequential(
                operations.GroupNorm(config.norm_groups, channels, **plain),
                nn.SiLU(),
                zero(operations.Conv2d(channels, config.latent_channels, 3, padding=1, **plain)),
            )

    def _res_block(self, channels: int, out_channels: int, **kw) -> ResBlock:
        """The next ResBlock in the order of execution."""
        config = self.config
        emb_dim = 4 * config.model_channels
        layer = ResBlock(channels, emb_dim, out_channels, config.norm_groups, config.scale_shift_norm, **kw)
        layer.index = len(self.res_channels)
        self.res_channels.append(out_channels)
        return layer

    def _transformer(self, channels: int, **kw) -> SpatialTransformer:
        """The next spatial transformer in the order of execution."""
        config = self.config
        layer = SpatialTransformer(channels, heads_of(channels, config), config.norm_groups, config.context_dim, **kw)
        layer.index = len(self.transformer_channels)
        self.transformer_channels.append(channels)
        return layer

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """x (rows, C, h, w), timesteps (rows,) in 0 … 999, context (n, L, D) with n a divisor of rows: each text is for
        rows / n consecutive pictures. Returns the raw output, in the shape of x."""
        return self.out(self.forward_blocks(self.first_conv(x), self.embed_time(timesteps, x.dtype), context))

    def first_conv(self, x: Tensor) -> Tensor:
        """The convolution `input_blocks.0.0`: latents (rows, C, h, w) to features (rows, model_channels, h, w)."""
        block = self.input_blocks[0]
        assert isinstance(block, nn.ModuleList)
        return block[0](x)

    def embed_time(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedding (rows, 4 · model_channels) of timesteps (rows,)."""
        return self.time_embed(sinusoids(timesteps, self.config.model_channels).to(dtype))

    def forward_blocks(
        self,
        h: Tensor,
        emb: Tensor,
        context: Tensor | None = None,
        state: Any = None,
        control: Control | None = None,
        patches: Patches | None = None,
    ) -> Tensor:
        """From the first convolution's output to the input of `out`. `state` is passed to the two methods below."""
        patches = patches or Patches()
        skips = [h := _controlled(h, control, "input")]
        for index, block in enumerate(self.input_blocks[1:], 1):
            patches.enter("input", index)
            h = _controlled(self._block(block, h, emb, context, state, patches), control, "input")
            skips.append(h)
        patches.enter("middle", 0)
        h = _controlled(self._block(self.middle_block, h, emb, context, state, patches), control, "middle")
        for index, block in enumerate(self.output_blocks):
            patches.enter("output", index)
            h = torch.cat(patches.skip(h, _controlled(skips.pop(), control, "output")), dim=1)
            size = skips[-1].shape[2:] if skips else None
            h = self._block(block, h, emb, context, state, patches, size)
        return h

    def run_res(self, layer: ResBlock, h: Tensor, emb: Tensor, state: Any) -> Tensor:
        """Run one ResBlock; subclasses add to it."""
        return layer(h, emb)

    def run_transformer(
        self, layer: SpatialTransformer, h: Tensor, context: Tensor | None, state: Any, patches: Patches
    ) -> Tensor:
        """Run one spatial transformer; subclasses add to it."""
        return patches.transform(layer, h, context)

    def _block(self, block, h, emb, context, state, patches, size=None):
        arguments = (block, h, emb, context, state, patches, size)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layers, *arguments, use_reentrant=False)
        return self._layers(*arguments)

    def _layers(self, block, h, emb, context, state, patches, size):
        for layer in block:
            if isinstance(layer, ResBlock):
                h = self.run_res(layer, h, emb, state)
            elif isinstance(layer, SpatialTransformer):
                h = self.run_transformer(layer, h, context, state, patches)
            elif isinstance(layer, Upsample):
                h = layer(h, size)
            else:
                h = layer(h)
        return h


def _controlled(h: Tensor, control: Control | None, place: str) -> Tensor:
    """Add the next residual of the ControlNet for this stage, if there is one."""
    if not control or not control.get(place):
        return h
    residual = control[place].pop()
    return h if residual is None else h + residual


def heads_of(channels: int, config: NetworkConfig) -> int:
    """The number of attention heads of a layer with so many channels."""
    return max(1, channels // config.head_channels)
