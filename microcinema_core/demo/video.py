"""Trains the bundled base model on drawn clips: first the forward warp by their flow, then by the paper's objective."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import images
from ..checkpoint import LoadedModel
from ..files import locked, whole_file
from ..model.autoencoder import Autoencoder
from ..model.layers import channels_last
from ..model.text import TextEncoder, word_tokenizer
from ..pipeline import Pipeline
from ..training.data.order import sample_seed
from ..training.distributed import Processes
from ..training.objective import DiffusionLoss, VideoModel, by_band
from ..training.trainer import Figures, Objective, Trainer
from .captions import COLOURS, all_words, reverse
from .config import DemoModelConfig
from .network import WarpUNet, pooled
from .scenes import REFERENCE_SIZE, SPEED_PIXELS
from .shards import draw_pool, load, load_captions, open_shards
from .text import trained_text
from .warp import WEIGHT_SCALE, ForwardWarp

if TYPE_CHECKING:
    from .recipes import DemoRunConfig

MOTION_CLIPS = 4  # the factor of the batch size in steps that train the forward warp: at about the same cost per step
CAMERA_SHARE = 0.2  # the frequency of a camera move in these steps, relative to a clip of things: it is learned sooner
PIXEL_WEIGHT = 2.0  # of the error of colours, from 0 to 1, relative to that of the flow in pixels
HELD_OUT = 16  # the last clips, which are not trained on, for samples and validation losses


class WarpVideoModel(VideoModel):
    """A VideoModel with a WarpUNet and a text encoder."""

    network: WarpUNet
    text: TextEncoder

    def warp(self, condition: Tensor, pixels: Tensor, tokens: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Run the forward warp on pictures, given their latents (b, C, h, w) and pixels (b, 3, H, W).

        Returns the flow (b, 2, H, W), in pixels per frame, and frame `index` of the clip, (b, 3, H, W).
        """
        network, warp, frames = self.network, self.network.forward_warp, self.network.config.frames
        text = pooled(self.text(tokens))[:, 0]
        motion = warp.estimate(warp.encode(condition, network.appearance(condition)[-1], pixels), text)
        rendered, _ = warp.render(pixels, motion, text, network.tau(torch.tensor([index - frames // 2])))
        return warp.flow(motion, text) / ((frames - 1) / 2), rendered[:, 0]


class MotionLoss(DiffusionLoss):
    """The paper's objective, and the losses of the forward warp."""

    def motion_losses(
        self, model: WarpVideoModel, condition: Tensor, pixels: Tensor, flow: Tensor, frame: Tensor, tokens: Tensor,
        index: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The mean errors of each clip, (b,): the end-point error of the flow in pixels, given the true `flow`
        (b, 2, H, W), and the error of the rendered frame `index`, given the true `frame` (b, 3, H, W).

        The errors are not squared, because the minimum of a squared error is a mean: where the region of a thing is
        uncertain, all of it would move by a part of the motion.
        """
        predicted, rendered = model.warp(condition, pixels, tokens, index)
        flow_error, pixel_error = (predicted - flow).square().sum(1), (rendered - frame).square().sum(1)
        return (flow_error + 0.01).sqrt().mean((1, 2)), (pixel_error + 0.001).sqrt().mean((1, 2))


def train_video(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, folder: Path, scenes: Path,
    world: Processes,
) -> LoadedModel:  # fmt: skip
    """Train the base model, or resume the run in `folder`. Returns the EMA model with the given autoencoder.

    The clips are drawn into the folder `scenes`. Raises MicroCinemaError as Trainer does.
    """
    losses = MotionLoss(model_config)
    data = _prepare_data(config, model_config, autoencoder, scenes, world)
    assert model_config.text is not None
    model_config = replace(model_config, text=replace(model_config.text, tokenizer=word_tokenizer(all_words())))
    with world.first_goes_first():
        model = _initial_model(config, model_config, autoencoder, folder / "text.safetensors")
    objective = DemoObjective(config, losses, model)
    trainer = Trainer(objective, config, folder, world, data=data.identity)
    batches = _Batches(config, model_config, data, model, world)
    trainer.run(batches, _Samples(model_config, losses, data, model, autoencoder, world).show)
    return LoadedModel(model_config, model.network, autoencoder, model.text)


@dataclass
class _Data:
    """The training data. The forward warp has clips of its own, with one tensor for each shard."""

    identity: str  # for Trainer
    latents: Tensor  # (n, t, C, h, w) in float16
    captions: list[str]
    flow_captions: list[str]
    frames: list[Tensor]  # (n, t, 3, H, W) in uint8
    flow: list[Tensor]  # (n, 2, H, W) in float16, of the centre frame, pixels per frame
    conditions: list[Tensor]  # (n, C, h, w) in float16, the latents of the centre frame
    pixels: list[Tensor]  # (n, 3, H, W) in uint8, decoded from the latents


def _prepare_data(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, scenes: Path, world: Processes
) -> _Data:
    """Draw and encode the clips, unless their files exist."""
    table, count = config.demo, max(1, config.train.workers)
    shards = table.shards + (table.flow_shards if table.flow_steps else 0)
    with world.first_goes_first(), locked(scenes, wait=True):
        paths = draw_pool(scenes, shards, model_config.network.frames, model_config.width, count)
        paths, flow_paths = paths[: table.shards], paths[table.shards :]
        with ThreadPoolExecutor(count) as workers:
            encoded = list(workers.map(lambda path: encode_shard(path, autoencoder), paths))
            decoded = list(workers.map(lambda path: decode_shard(path, autoencoder), flow_paths))
    return _Data(
        identity=" ".join(path.stem for path in (*encoded[:1], *decoded[:1])),
        latents=load(encoded, "latents"),
        captions=load_captions(paths),
        flow_captions=load_captions(flow_paths),
        frames=open_shards(flow_paths, "frames"),
        flow=open_shards(flow_paths, "flow"),
        conditions=open_shards(decoded, "latents"),
        pixels=open_shards(decoded, "pixels"),
    )


def _initial_model(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, text_file: Path
) -> WarpVideoModel:
    """The model at the start of a run. The text tower is trained here, unless its file exists, and frozen."""
    torch.manual_seed(config.train.seed)
    assert model_config.text is not None
    text = TextEncoder(model_config.text)
    model = channels_last(WarpVideoModel(model_config, text=text))
    warp = model.network.forward_warp
    initialise_colours(warp, trained_text(text, config.demo.text_steps, config.train.seed, text_file), model_config)
    text.requires_grad_(False)
    warp.autoencoder.load_state_dict(autoencoder.state_dict())
    return model


@dataclass
class FlowBatch:
    """Clips for the forward warp, with frame number `index` as the true one; see MotionLoss.motion_losses."""

    index: int
    condition: Tensor
    pixels: Tensor  # in uint8
    flow: Tensor
    frame: Tensor  # in uint8
    tokens: Tensor


@dataclass
class ClipBatch:
    """Clips for the paper's objective: scaled latents and noise (b, t, C, h, w), timesteps (b,), tokens."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tensor


class DemoObjective(Objective):
    """The loss of the forward warp in the first steps, then the paper's objective with the warp frozen."""

    skips_parameters = True

    def __init__(self, config: DemoRunConfig, losses: MotionLoss, model: WarpVideoModel):
        super().__init__()
        self.flow_steps, self.flow_bfloat16 = config.demo.flow_steps, config.demo.flow_bfloat16
        self.losses, self.model = losses, model

    def forward(self, step: int, batch: FlowBatch | ClipBatch) -> tuple[Tensor, Figures]:
        """The mean loss of a batch, and its parts."""
        if isinstance(batch, FlowBatch):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.flow_bfloat16):
                flow_error, pixel_error = self.losses.motion_losses(
                    self.model, batch.condition.float(), batch.pixels.float() / 255, batch.flow.float(),
                    batch.frame.float() / 255, batch.tokens, batch.index,
                )  # fmt: skip
            flow_error, pixel_error = flow_error.mean(), pixel_error.mean()
            figures = {"flow": flow_error.item(), "rendered": pixel_error.item()}
            return flow_error + PIXEL_WEIGHT * pixel_error, figures
        if self.flow_steps:  # the forward warp and the features that it uses are frozen after these steps
            self.model.network.appearance.requires_grad_(False)
            self.model.network.forward_warp.requires_grad_(False)
        losses = self.losses.losses(self.model, batch.latents, batch.timesteps, batch.noise, batch.tokens)
        return losses.mean(), by_band(losses.detach(), batch.timesteps)


class _Batches:
    """The batches of one process, callable as Trainer's `batches`. They depend on the seed and the step alone."""

    def __init__(
        self, config: DemoRunConfig, model_config: DemoModelConfig, data: _Data, model: WarpVideoModel, world: Processes
    ):
        self.config, self.model_config, self.data, self.model, self.world = config, model_config, data, model, world
        self.count = len(data.latents) - HELD_OUT
        cameras = [not COLOURS.keys() & caption.split() for caption in data.flow_captions]
        # The relative frequencies of the clips in steps that train the forward warp.
        self.flow_weights = torch.where(torch.tensor(cameras, dtype=torch.bool), CAMERA_SHARE, 1.0)

    def __call__(self, first: int) -> Iterator[list[FlowBatch | ClipBatch]]:
        """Yield the batch of each step from `first` on."""
        for step in itertools.count(first):
            generator = torch.Generator().manual_seed(sample_seed(self.config.train.seed, step, 0))
            flow = step < self.config.demo.flow_steps
            yield [self._flow_batch(generator) if flow else self._clip_batch(step, generator)]

    def _part(self, values: Tensor) -> Tensor:
        """This process's part of the rows of a batch."""
        return values.tensor_split(self.world.count)[self.world.rank]

    def _flow_batch(self, generator: torch.Generator) -> FlowBatch:
        data, batch_size = self.data, MOTION_CLIPS * self.config.train.batch_size
        rows = self._part(self.flow_weights.multinomial(batch_size, replacement=True, generator=generator))
        index = int(torch.randint(self.model_config.network.frames, (1,), generator=generator))
        places = [divmod(row, len(data.frames[0])) for row in rows.tolist()]
        frame = torch.stack([data.frames[shard][clip, index] for shard, clip in places])
        condition, pixels, flow = (
            torch.stack([shards[shard][clip] for shard, clip in places])
            for shards in (data.conditions, data.pixels, data.flow)
        )
        tokens = tokenize(self.model, [data.flow_captions[row] for row in rows.tolist()])
        return FlowBatch(index, condition, pixels, flow, frame, tokens)

    def _clip_batch(self, step: int, generator: torch.Generator) -> ClipBatch:
        # Every clip is used twice, forwards and backwards, with the same noise: in the gradient of what depends on the
        # direction, everything else cancels.
        c, table, data = self.config.train, self.config.demo, self.data
        half = max(self.world.count, c.batch_size // 2)
        rows = torch.randint(self.count, (half,), generator=generator)
        first, last = table.time_power
        power = first + (last - first) * (step - table.flow_steps) / (c.steps - table.flow_steps)
        timesteps = (torch.rand(half, generator=generator) ** power * 1000).long().clamp(max=999)
        noise = torch.randn(half, *data.latents.shape[1:], generator=generator)
        keep = torch.rand(half, generator=generator) >= table.text_drop
        rows, timesteps, noise, keep = map(self._part, (rows, timesteps, noise, keep))
        latents, noise = (torch.cat((x, x.flip(1))) for x in (data.latents[rows].float(), noise))
        prompts = [data.captions[row] if kept else "" for row, kept in zip(rows.tolist(), keep.tolist(), strict=True)]
        prompts += [reverse(prompt) for prompt in prompts]
        return ClipBatch(latents, noise, timesteps.repeat(2), tokenize(self.model, prompts))


class _Samples:
    """Samples and losses of held-out clips, for Trainer."""

    def __init__(
        self, model_config: DemoModelConfig, losses: MotionLoss, data: _Data, model: WarpVideoModel,
        autoencoder: Autoencoder, world: Processes,
    ):  # fmt: skip
        self.model_config, self.losses, self.data, self.model = model_config, losses, data, model
        self.autoencoder, self.world = autoencoder, world

    @torch.no_grad()
    def show(self, folder: Path, stem: str) -> Figures:
        """Write an image of samples, each below its true clip. Returns the losses of the held-out clips at a high noise
        level, with the true captions and with opposite directions."""
        losses, model, model_config = self.losses, self.model, self.model_config
        batch, prompts = self.data.latents[-HELD_OUT:].float(), self.data.captions[-HELD_OUT:]
        noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.full((len(batch),), 900)
        figures = {"held_out": losses.losses(model, batch, timesteps, noise, tokenize(model, prompts)).mean().item()}
        swapped = tokenize(model, [reverse(prompt) for prompt in prompts])
        figures["held_out_swapped"] = losses.losses(model, batch, timesteps, noise, swapped).mean().item()
        pipeline = Pipeline(LoadedModel(model_config, model.network, self.autoencoder, model.text))
        clips, cfg = batch[:4], model_config.cfg
        context = model.text.encode([""] * len(clips) * (cfg != 1) + prompts[: len(clips)])
        sampled = pipeline.sample(
            losses.condition(clips), context, frames=batch.shape[1], cfg=cfg, seeds=list(range(len(clips)))
        )
        rows = [pipeline.decode(clip) for pair in zip(clips, sampled, strict=True) for clip in pair]
        if self.world.first:
            images.contact_sheet(torch.cat(rows, -2), folder / f"{stem}.png")
        return figures


def tokenize(model: WarpVideoModel, prompts: list[str]) -> Tensor:
    """The token ids (b, max_tokens) of prompts."""
    return model.text.tokenizer(prompts)


@torch.no_grad()
def initialise_colours(warp: ForwardWarp, meanings_of: Tensor, config: DemoModelConfig) -> None:
    """Give each colour a region whose velocity is that of the thing of this colour in the text, in place.

    `meanings_of` is the result of train_text. Then only the masks of the regions have to be learned. Learned together,
    both are found late, since neither the masks nor the velocities have an effect without the other.
    """
    clip = SPEED_PIXELS[""] * config.width / REFERENCE_SIZE * (config.network.frames - 1) / 2  # pixels per τ
    warp.colour_velocities.weight.copy_(clip / warp.unit * meanings_of[6 : 6 + 2 * len(COLOURS)])
    warp.region_velocities.weight[: 2 * len(COLOURS)] = warp.colour_velocities.weight / WEIGHT_SCALE


@torch.no_grad()
def encode_shard(shard: Path, autoencoder: Autoencoder) -> Path:
    """Write the scaled `latents` (n, t, C, h, w) of all frames of a shard, in float16, to a file beside it, unless the
    file exists. Returns its path."""

    def tensors() -> dict[str, Tensor]:
        frames = load([shard], "frames")
        return {"latents": _encoded(frames.flatten(0, 1), autoencoder).unflatten(0, frames.shape[:2])}

    return _cached(shard, "latents", autoencoder, tensors)


@torch.no_grad()
def decode_shard(shard: Path, autoencoder: Autoencoder) -> Path:
    """Write the inputs of a forward warp for all clips of a shard to a file beside it, unless the file exists.

    The file contains the scaled `latents` (n, C, h, w) of the centre frames in float16, and the `pixels` (n, 3, H, W)
    in uint8 that the autoencoder decodes from them. Returns its path.
    """

    def tensors() -> dict[str, Tensor]:
        frames = load([shard], "frames")
        latents = _encoded(frames[:, frames.shape[1] // 2], autoencoder)
        pixels = torch.cat([autoencoder.decode(part.float()) for part in latents.split(8)])
        return {"latents": latents, "pixels": (pixels.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()}

    return _cached(shard, "seen", autoencoder, tensors)


def _encoded(pictures: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Pictures (n, 3, H, W) in uint8 to scaled latents (n, C, h, w) in float16."""
    parts = [part.to(memory_format=torch.channels_last).float() / 255 for part in pictures.split(8)]
    return torch.cat([autoencoder.encode(part).half() for part in parts]).contiguous()


def _cached(shard: Path, name: str, autoencoder: Autoencoder, tensors: Callable[[], dict[str, Tensor]]) -> Path:
    """The file of this name, shard and autoencoder. It contains the result of `tensors()`, called if it is missing."""
    weights = b"".join(value.numpy().tobytes() for value in autoencoder.state_dict().values())
    digest = hashlib.sha256(weights + json.dumps(asdict(autoencoder.config)).encode()).hexdigest()[:12]
    path = shard.with_name(f"{shard.stem}-{name}-{digest}.safetensors")
    if not path.exists():
        with whole_file(path) as part:
            save_file(tensors(), part)
    return path
