"""Trains the bundled base model on drawn clips: first the forward warp, then by the paper's objective."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
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
from .captions import all_words, reverse
from .config import DemoModelConfig
from .network import WarpUNet, pooled
from .scenes import REFERENCE_SIZE, SPEED_PIXELS, SPEED_ROLL, SPEED_ZOOM
from .shards import draw_pool, load, load_captions, open_shards
from .text import CAMERA, VELOCITIES, trained_text
from .warp import ForwardWarp

if TYPE_CHECKING:
    from .recipes import DemoRunConfig

WARP_PICTURES = 4  # the factor of the batch size in steps that train the forward warp
HELD_OUT = 16  # the last clips, which are not trained on, for samples and validation losses


class WarpVideoModel(VideoModel):
    """A VideoModel with a WarpUNet and a text encoder."""

    network: WarpUNet
    text: TextEncoder


def train_video(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, folder: Path, scenes: Path,
    world: Processes,
) -> LoadedModel:  # fmt: skip
    """Train the base model, or resume the run in `folder`. Returns the EMA model with the given autoencoder.

    The clips are drawn into the folder `scenes`. Raises MicroCinemaError as Trainer does.
    """
    losses = DiffusionLoss(model_config)
    data = _prepare_data(config, model_config, autoencoder, scenes, world)
    assert model_config.text is not None
    model_config = replace(model_config, text=replace(model_config.text, tokenizer=word_tokenizer(all_words())))
    with world.first_goes_first():
        model = _initial_model(config, model_config, autoencoder, folder / "text.safetensors")
    objective = DemoObjective(config, losses, model)
    trainer = Trainer(objective, config, folder, world, data=data.identity)
    batches = _Batches(config, model_config, data, model, world)
    trainer.run(batches, _Samples(model_config, losses, data, model, autoencoder.to(world.device), world).show)
    return LoadedModel(model_config, model.network, autoencoder, model.text)


@dataclass
class _Data:
    """The training data. The forward warp has pictures of its own, with one tensor for each shard."""

    identity: str  # for Trainer
    latents: Tensor  # (n, t, C, h, w) in float16
    captions: list[str]
    picture_captions: list[str]
    pictures: list[Tensor]  # (n, 3, H, W) in uint8, encoded and decoded
    flow: list[Tensor]  # (n, 2, H, W) in float16, pixels per frame


def _prepare_data(
    config: DemoRunConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, scenes: Path, world: Processes
) -> _Data:
    """Draw and encode the clips, unless their files exist."""
    table, count, size = config.demo, max(1, config.train.workers), model_config.width
    with world.first_goes_first(), locked(scenes, wait=True):
        paths = draw_pool(scenes, table.shards, model_config.network.frames, size, count)
        picture_paths = draw_pool(scenes, table.warp_shards if table.warp_steps else 0, 1, size, count, things=True)
        with ThreadPoolExecutor(count) as workers:
            encoded = list(workers.map(lambda path: encode_shard(path, autoencoder), paths))
            decoded = list(workers.map(lambda path: decode_shard(path, autoencoder), picture_paths))
    return _Data(
        identity=" ".join(path.stem for path in (*encoded[:1], *decoded[:1])),
        latents=load(encoded, "latents"),
        captions=load_captions(paths),
        picture_captions=load_captions(picture_paths),
        pictures=open_shards(decoded, "pictures"),
        flow=open_shards(picture_paths, "flow"),
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
    set_velocities(warp, trained_text(text, config.demo.text_steps, config.train.seed, text_file), model_config)
    text.requires_grad_(False)
    warp.autoencoder.load_state_dict(autoencoder.state_dict())
    return model


@dataclass
class WarpBatch:
    """Pictures (b, 3, H, W) in uint8, tokens, and the velocities (b, 2, H, W) that these say, in pixels per frame."""

    pictures: Tensor
    tokens: Tensor
    flow: Tensor


@dataclass
class ClipBatch:
    """Clips for the paper's objective: scaled latents and noise (b, t, C, h, w), timesteps (b,), tokens."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tensor


class DemoObjective(Objective):
    """The likelihood of the forward warp's velocities in the first steps, then the paper's objective without it."""

    skips_parameters = True

    def __init__(self, config: DemoRunConfig, losses: DiffusionLoss, model: WarpVideoModel):
        super().__init__()
        self.warp_steps, self.losses, self.model = config.demo.warp_steps, losses, model

    def forward(self, step: int, batch: WarpBatch | ClipBatch) -> tuple[Tensor, Figures]:
        """The mean loss of a batch, and figures for the log: the probability of the true velocity where it is not 0, or
        the losses by noise level."""
        if isinstance(batch, WarpBatch):
            network = self.model.network
            text = pooled(self.model.text(batch.tokens))[:, 0]
            velocities = batch.flow.float() * frames_per_tau(network.config.frames)
            likelihood = network.forward_warp.log_likelihood(batch.pictures.float() / 255, text, velocities)
            moving = likelihood.detach()[velocities.any(dim=1)]
            return -likelihood.mean(), {"moving": moving.exp().mean().item()} if len(moving) else {}
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

    def __call__(self, first: int) -> Iterator[list[WarpBatch | ClipBatch]]:
        """Yield the batch of each step from `first` on."""
        for step in itertools.count(first):
            generator = torch.Generator().manual_seed(sample_seed(self.config.train.seed, step, 0))
            warp = step < self.config.demo.warp_steps
            yield [self._warp_batch(generator) if warp else self._clip_batch(step, generator)]

    def _part(self, values: Tensor) -> Tensor:
        """This process's part of the rows of a batch."""
        return values.tensor_split(self.world.count)[self.world.rank]

    def _warp_batch(self, generator: torch.Generator) -> WarpBatch:
        data, batch_size = self.data, WARP_PICTURES * self.config.train.batch_size
        rows = torch.randint(len(data.picture_captions), (batch_size,), generator=generator)
        rows = self._part(rows).tolist()
        places = [divmod(row, len(data.pictures[0])) for row in rows]
        pictures, flow = (
            torch.stack([shards[shard][row] for shard, row in places]) for shards in (data.pictures, data.flow)
        )
        if torch.rand((), generator=generator) < 0.5:  # mirrored, each pixel still goes where the text says
            pictures, flow = pictures.flip(-1), flow.flip(-1)
        return WarpBatch(pictures, tokenize(self.model, [data.picture_captions[row] for row in rows]), flow)

    def _clip_batch(self, step: int, generator: torch.Generator) -> ClipBatch:
        # Every clip is used twice, forwards and backwards, with the same noise: in the gradient of what depends on the
        # direction, everything else cancels.
        c, table, data = self.config.train, self.config.demo, self.data
        half = max(self.world.count, c.batch_size // 2)
        rows = torch.randint(self.count, (half,), generator=generator)
        first, last = table.time_power
        power = first + (last - first) * (step - table.warp_steps) / (c.steps - table.warp_steps)
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
        self, model_config: DemoModelConfig, losses: DiffusionLoss, data: _Data, model: WarpVideoModel,
        autoencoder: Autoencoder, world: Processes,
    ):  # fmt: skip
        self.model_config, self.losses, self.data, self.model = model_config, losses, data, model
        self.autoencoder, self.world = autoencoder, world

    @torch.no_grad()
    def show(self, folder: Path, stem: str) -> Figures:
        """Write an image of samples, each below its true clip. Returns the losses of the held-out clips at a high noise
        level, with the true captions and with opposite directions."""
        losses, model, model_config = self.losses, self.model, self.model_config
        device, prompts = self.world.device, self.data.captions[-HELD_OUT:]
        batch = self.data.latents[-HELD_OUT:].to(device, torch.float32)
        noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1)).to(device)
        timesteps = torch.full((len(batch),), 900, device=device)
        told = tokenize(model, prompts).to(device), tokenize(model, [reverse(prompt) for prompt in prompts]).to(device)
        held_out, swapped = (losses.losses(model, batch, timesteps, noise, tokens).mean().item() for tokens in told)
        figures = {"held_out": held_out, "held_out_swapped": swapped}
        pipeline = Pipeline(LoadedModel(model_config, model.network, self.autoencoder, model.text), device)
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


def frames_per_tau(frames: int) -> float:
    """The number of frames from the centre frame to the end of a clip, τ = 1."""
    return (frames - 1) / 2


@torch.no_grad()
def set_velocities(warp: ForwardWarp, meanings_of: Tensor, config: DemoModelConfig) -> None:
    """Set the layers of a forward warp that tell the velocities in a text, in place, from the result of train_text."""
    count = frames_per_tau(config.network.frames)
    pixels = SPEED_PIXELS[""] * config.width / REFERENCE_SIZE * count
    zoom, roll = math.log(SPEED_ZOOM[""]) * count, math.radians(SPEED_ROLL[""]) * count
    # What the picture does is the opposite of what the camera does, except in a zoom.
    axes = torch.tensor(
        [[0, 0, -pixels, 0, 0, 0], [0, 0, 0, 0, 0, -pixels], [zoom, 0, 0, 0, zoom, 0], [0, roll, 0, -roll, 0, 0]]
    )
    warp.camera.weight.copy_(axes.T @ meanings_of[CAMERA])
    warp.colour_velocities.weight.copy_(pixels * meanings_of[VELOCITIES])


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
    """Write the `pictures` (n, 3, H, W) in uint8 that the autoencoder makes of the centre frames of a shard to a file
    beside it, unless the file exists. Returns its path."""

    def tensors() -> dict[str, Tensor]:
        frames = load([shard], "frames")
        latents = _encoded(frames[:, frames.shape[1] // 2], autoencoder)
        pixels = torch.cat([autoencoder.decode(part.float()) for part in latents.split(8)])
        return {"pictures": (pixels.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()}

    return _cached(shard, "decoded", autoencoder, tensors)


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
