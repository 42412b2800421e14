"""Trains a bundled video model on drawn clips: first the forward warp by their flow, then by the paper's objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
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
from ..model.text import word_tokenizer
from ..pipeline import Pipeline
from ..training.objective import Objective, VideoModel
from ..training.trainer import STATE, Trainer, first_process_first
from .captions import COLOURS, all_words, reverse
from .config import DemoModelConfig
from .network import DemoUNet, pooled
from .scenes import REFERENCE_SIZE, SPEED_PIXELS
from .shards import draw_pool, load, load_captions, open_shards
from .text import train_text
from .warp import WEIGHT_SCALE, ForwardWarp

if TYPE_CHECKING:
    from .recipes import DemoTrainingConfig

BANDS = 4  # the log contains the loss for each of so many ranges of noise levels
MOTION_CLIPS = 4  # the factor of the batch size in steps that train the forward warp: at about the same cost per step
CAMERA_SHARE = 0.2  # the frequency of a camera move in these steps, relative to a clip of things: it is learned sooner
PIXEL_WEIGHT = 2.0  # of the error of colours, from 0 to 1, relative to that of the flow in pixels
HELD_OUT = 16  # the last clips, which are not trained on, for samples and validation losses


class DemoVideoModel(VideoModel):
    """A VideoModel whose network may have a forward warp."""

    network: DemoUNet

    def warp(self, condition: Tensor, pixels: Tensor, tokens: Tensor | None, index: int) -> tuple[Tensor, Tensor]:
        """Run the forward warp of the network on the latents (b, k, C, h, w) of a condition and their pixels
        (b, k, 3, H, W).

        Returns the flow (b, k, 2, H, W), in pixels per frame, and frame `index` of the clip, (b, 3, H, W).
        """
        network, frames = self.network, self.network.config.frames
        text = pooled(self.text(tokens)) if self.text else None
        features = network.appearance(condition.flatten(0, 1))[-1].unflatten(0, condition.shape[:2])
        motion = network.forward_warp.estimate(network.forward_warp.encode(condition, features, pixels), text)
        times = network.time_since_key_frame(network.tau(torch.arange(frames) - (frames - 1) / 2))[:, [index]]
        rendered, _ = network.forward_warp.render(pixels, motion, text, times)
        return network.forward_warp.flow(motion, text) / ((frames - 1) / 2), rendered[:, 0]


class MotionObjective(Objective):
    """The paper's objective, and the losses of the forward warp."""

    def motion_losses(
        self, model: DemoVideoModel, condition: Tensor, pixels: Tensor, flow: Tensor, frame: Tensor,
        tokens: Tensor | None, index: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The mean errors of each clip, (b,): the end-point error of the flow in pixels, given the true `flow`
        (b, k, 2, H, W), and the error of the rendered frame `index`, given the true `frame` (b, 3, H, W).

        The errors are not squared, because the minimum of a squared error is a mean: where the region of a thing is
        uncertain, all of it would move by a part of the motion.
        """
        predicted, rendered = model.warp(condition, pixels, tokens, index)
        flow_error, pixel_error = (predicted - flow).square().sum(2), (rendered - frame).square().sum(1)
        return (flow_error + 0.01).sqrt().mean((1, 2, 3)), (pixel_error + 0.001).sqrt().mean((1, 2))


def train_video(
    config: DemoTrainingConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, folder: Path, scenes: Path
) -> LoadedModel:
    """Train a video model, or resume the run in `folder`. Returns the EMA model with the given autoencoder.

    The clips are drawn into the folder `scenes`. Raises MicroCinemaError as Trainer does.
    """
    objective = MotionObjective(model_config)
    data = _prepare_data(config, model_config, objective, autoencoder, scenes)
    if model_config.text:
        model_config = replace(model_config, text=replace(model_config.text, tokenizer=word_tokenizer(all_words())))
    model = _initial_model(config, model_config, autoencoder, is_new=not (folder / STATE).exists())
    training = _VideoTraining(config, model_config, objective, data, model, autoencoder, folder)
    ema = training.trainer.run(training.loss, training.show)
    return LoadedModel(model_config, ema.network, autoencoder, ema.text)


@dataclass
class _Data:
    """The training data. The forward warp has clips of its own, with one tensor for each shard."""

    identity: str  # for Trainer
    latents: Tensor  # (n, t, C, h, w) in float16
    captions: list[str]
    flow_captions: list[str]
    frames: list[Tensor]  # (n, t, 3, H, W) in uint8
    flow: list[Tensor]  # (n, k, 2, H, W) in float16, pixels per frame
    conditions: list[Tensor]  # (n, k, C, h, w) in float16, the latents of the condition
    pixels: list[Tensor]  # (n, k, 3, H, W) in uint8, decoded from the latents


def _prepare_data(
    config: DemoTrainingConfig,
    model_config: DemoModelConfig,
    objective: MotionObjective,
    autoencoder: Autoencoder,
    scenes: Path,
) -> _Data:
    """Draw and encode the clips, unless their files exist."""
    interpolation, frames = model_config.network.condition == "ends", model_config.network.frames
    shards = config.shards + (config.flow_shards if config.flow_steps else 0)
    with first_process_first(), locked(scenes, wait=True):
        paths = draw_pool(scenes, shards, frames, model_config.width, interpolation, config.workers)
        paths, flow_paths = paths[: config.shards], paths[config.shards :]
        key_frames = objective.condition(torch.arange(frames)[None])[0]
        with ThreadPoolExecutor(config.workers) as workers:
            encoded = list(workers.map(lambda path: encode_shard(path, autoencoder), paths))
            decoded = list(workers.map(lambda path: decode_shard(path, autoencoder, key_frames), flow_paths))
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
    config: DemoTrainingConfig, model_config: DemoModelConfig, autoencoder: Autoencoder, *, is_new: bool
) -> DemoVideoModel:
    """The model at the start of a run. The text tower is trained here, unless the run is resumed, and frozen."""
    torch.manual_seed(config.seed)
    model = channels_last(DemoVideoModel(model_config))
    has_warp = model_config.network.forward_warp is not None
    if model.text:
        if is_new:
            meanings_of = train_text(model.text, config.text_steps, config.seed)
            if has_warp:
                initialise_colours(model.network.forward_warp, meanings_of, model_config)
        model.text.requires_grad_(False)
    if has_warp:
        model.network.forward_warp.autoencoder.load_state_dict(autoencoder.state_dict())
    return model


class _VideoTraining:
    """The loss of a training step, and samples of the model, for Trainer."""

    def __init__(
        self,
        config: DemoTrainingConfig,
        model_config: DemoModelConfig,
        objective: MotionObjective,
        data: _Data,
        model: DemoVideoModel,
        autoencoder: Autoencoder,
        folder: Path,
    ):
        self.config, self.model_config, self.objective, self.data = config, model_config, objective, data
        self.model, self.autoencoder = model, autoencoder
        self.trainer = Trainer(model, config, folder, data=data.identity)
        self.count = len(data.latents) - HELD_OUT
        cameras = [bool(model.text) and not COLOURS.keys() & caption.split() for caption in data.flow_captions]
        # The relative frequencies of the clips in steps that train the forward warp.
        self.flow_weights = torch.where(torch.tensor(cameras, dtype=torch.bool), CAMERA_SHARE, 1.0)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and figures for the log."""
        if step < self.config.flow_steps:
            return self._flow_loss(generator)
        if self.config.flow_steps:  # the forward warp and the features that it uses are frozen after these steps
            self.model.network.appearance.requires_grad_(False)
            self.model.network.forward_warp.requires_grad_(False)
        return self._denoising_loss(step, generator)

    def _flow_loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        data, batch_size = self.data, MOTION_CLIPS * self.trainer.batch_size
        rows = self.flow_weights.multinomial(batch_size, replacement=True, generator=generator)
        index = int(torch.randint(self.model_config.network.frames, (1,), generator=generator))
        places = [divmod(row, len(data.frames[0])) for row in rows.tolist()]
        frame = torch.stack([data.frames[shard][clip, index] for shard, clip in places])
        condition, pixels, flow = (
            torch.stack([shards[shard][clip] for shard, clip in places]).float()
            for shards in (data.conditions, data.pixels, data.flow)
        )
        tokens = self._tokenize([data.flow_captions[row] for row in rows.tolist()])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.flow_bfloat16):
            flow_error, pixel_error = self.objective.motion_losses(
                self.model, condition, pixels / 255, flow, frame / 255, tokens, index
            )
        flow_error, pixel_error = flow_error.mean(), pixel_error.mean()
        return flow_error + PIXEL_WEIGHT * pixel_error, {"flow": flow_error.item(), "rendered": pixel_error.item()}

    def _denoising_loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        # Every clip is used twice, forwards and backwards, with the same noise: in the gradient of what depends on the
        # direction, everything else cancels.
        config, data = self.config, self.data
        half = max(1, self.trainer.batch_size // 2)
        rows = torch.randint(self.count, (half,), generator=generator)
        first, last = config.time_power
        power = first + (last - first) * (step - config.flow_steps) / (config.steps - config.flow_steps)
        timesteps = (torch.rand(half, generator=generator) ** power * 1000).long().clamp(max=999).repeat(2)
        batch, noise = data.latents[rows].float(), torch.randn(half, *data.latents.shape[1:], generator=generator)
        batch, noise = (torch.cat((x, x.flip(1))) for x in (batch, noise))
        keep = (torch.rand(half, generator=generator) >= config.text_drop).tolist()
        prompts = [data.captions[row] if kept else "" for row, kept in zip(rows.tolist(), keep, strict=True)]
        prompts += [reverse(prompt) for prompt in prompts]
        losses = self.objective.losses(self.model, batch, timesteps, noise, self._tokenize(prompts))
        bands = timesteps * BANDS // 1000
        details = {
            f"loss_band{band}": losses[bands == band].mean().item() for band in range(BANDS) if (bands == band).any()
        }
        return losses.mean(), details

    @torch.no_grad()
    def show(self, ema: DemoVideoModel, path: Path) -> dict[str, float]:
        """Write an image of samples, each below its true clip. Returns the losses of the held-out clips at a high noise
        level, with the true captions and with opposite directions."""
        objective, model_config = self.objective, self.model_config
        batch, prompts = self.data.latents[self.count :].float(), self.data.captions[self.count :]
        noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.full((len(batch),), 900)
        tokens = self._tokenize(prompts)
        figures = {"held_out": objective.losses(ema, batch, timesteps, noise, tokens).mean().item()}
        if ema.text:
            swapped = self._tokenize([reverse(prompt) for prompt in prompts])
            figures["held_out_swapped"] = objective.losses(ema, batch, timesteps, noise, swapped).mean().item()
        pipeline = Pipeline(LoadedModel(model_config, ema.network, self.autoencoder, ema.text))
        clips, cfg = batch[:4], model_config.cfg if ema.text else 1.0
        context = ema.text.encode([""] * len(clips) * (cfg != 1) + prompts[: len(clips)]) if ema.text else None
        sampled = pipeline.sample(
            objective.condition(clips), context, frames=batch.shape[1], cfg=cfg, seeds=list(range(len(clips)))
        )
        rows = [pipeline.decode(clip) for pair in zip(clips, sampled, strict=True) for clip in pair]
        images.contact_sheet(torch.cat(rows, -2), path)
        return figures

    def _tokenize(self, prompts: list[str]) -> Tensor | None:
        return self.model.text.tokenizer(prompts) if self.model.text else None


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
        return {"latents": _encoded(load([shard], "frames"), autoencoder)}

    return _cached(shard, "latents", autoencoder, tensors)


@torch.no_grad()
def decode_shard(shard: Path, autoencoder: Autoencoder, key_frames: Tensor) -> Path:
    """Write the inputs of a forward warp for all clips of a shard to a file beside it, unless the file exists.

    The file contains the scaled `latents` (n, k, C, h, w) of the `key_frames` in float16, and the `pixels`
    (n, k, 3, H, W) in uint8 that the autoencoder decodes from them. Returns its path.
    """

    def tensors() -> dict[str, Tensor]:
        latents = _encoded(load([shard], "frames")[:, key_frames], autoencoder)
        pixels = [autoencoder.decode(part.float()) for part in latents.flatten(0, 1).split(8)]
        pixels = (torch.cat(pixels).clamp(0, 1) * 255).round().to(torch.uint8)
        return {"latents": latents, "pixels": pixels.unflatten(0, latents.shape[:2]).contiguous()}

    return _cached(shard, "seen", autoencoder, tensors)


def _encoded(clips: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Clips (n, t, 3, H, W) in uint8 to scaled latents (n, t, C, h, w) in float16."""
    parts = [part.to(memory_format=torch.channels_last).float() / 255 for part in clips.flatten(0, 1).split(8)]
    latents = torch.cat([autoencoder.encode(part).half() for part in parts])
    return latents.contiguous().unflatten(0, clips.shape[:2])


def _cached(shard: Path, name: str, autoencoder: Autoencoder, tensors: Callable[[], dict[str, Tensor]]) -> Path:
    """The file of this name, shard and autoencoder. It contains the result of `tensors()`, called if it is missing."""
    weights = b"".join(value.numpy().tobytes() for value in autoencoder.state_dict().values())
    digest = hashlib.sha256(weights + json.dumps(asdict(autoencoder.config)).encode()).hexdigest()[:12]
    path = shard.with_name(f"{shard.stem}-{name}-{digest}.safetensors")
    if not path.exists():
        with whole_file(path) as part:
            save_file(tensors(), part)
    return path
