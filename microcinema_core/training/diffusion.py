"""Train the base or the interpolation model on latents of drawn clips, with the paper's objective.

Noise and target are shifted by μ = λ·[condition] (eq. 15, 22). The loss is on the network's own output: on eps as in
the paper, or on v, which is the eps loss divided by ᾱ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import images
from ..checkpoint import LoadedModel
from ..config import ModelConfig
from ..model import MicroCinemaUNet
from ..model.autoencoder import Autoencoder
from ..model.text import TextEncoder, word_tokenizer
from ..model.unet import pooled
from ..model.warp import NAMED, RATE, ForwardWarp
from ..pipeline import Pipeline
from ..prior import prior_mean, shift
from ..schedule import NoiseSchedule
from .captions import COLOURS, all_words, reverse
from .data import draw_pool, load, load_captions, open_shards
from .files import locked, save_tensors
from .loop import STATE, Trainer, TrainingConfig, first_process_first
from .scenes import REFERENCE_SIZE, SPEED_PIXELS
from .text import learn_to_read

BANDS = 4  # the log splits the loss by noise level
MOTION_CLIPS = 4  # clips of a motion step for one of a step of the whole, at about the same cost
CAMERA_SHARE = 0.2  # of camera moves told by text in them, which are learned soon, beside one of things
RENDERED = 2.0  # weight of the error of colours, 0 to 1, beside that of motion in pixels
HELD_OUT = 16  # clips at the pool's end that are never trained on: sheets and probes


class VideoModel(nn.Module):
    """The trained parts together: the network and, for a model that reads text, its encoder."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.network = MicroCinemaUNet(config.network)
        self.text = TextEncoder(config.text) if config.text else None

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, tokens: Tensor | None) -> Tensor:
        """Noisy latents (b, t, C, h, w) at integer timesteps (b,), condition (b, k, C, h, w) → raw output."""
        b, t = noisy.shape[:2]
        x = noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        encoded = self.network.encode_condition(condition)
        context = self.text(tokens) if self.text else None
        out = self.network(x, timesteps, context, condition=encoded, num_video_frames=t)
        return out.unflatten(0, (b, t))

    def warp(self, condition: Tensor, pixels: Tensor, tokens: Tensor | None, index: int):
        """What a network with a forward warp makes of condition latents (b, k, C, h, w) and their pixels: the motion
        of each pixel, (b, k, 2, H, W), in pixels a frame, and frame `index` of a clip, (b, 3, H, W)."""
        network, frames = self.network, self.network.config.frames
        text = pooled(self.text(tokens)) if self.text else None
        seen = network.look(condition, pixels)
        points = network.forward_warp.read(seen, text)
        times = network.since(network.tau(torch.arange(frames) - (frames - 1) / 2))[:, [index]]
        rendered, _ = network.forward_warp.render(pixels, points, text, times)
        return network.forward_warp.flow(points, text) / ((frames - 1) / 2), rendered[:, 0]


class Objective:
    """The loss of a batch of clean latents at given timesteps and noise."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.schedule = NoiseSchedule()

    def condition(self, latents: Tensor) -> Tensor:
        """The clean frames a clip is told from: its centre (b, 1, …) or its ends (b, 2, …)."""
        return latents[:, [latents.shape[1] // 2] if self.config.network.condition == "centre" else [0, -1]]

    def noisy(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z_t of eq. (15), and the target for the network's output."""
        condition = self.condition(latents)
        noise = shift(noise, prior_mean(condition, latents.shape[1], self.config.lambda_))
        a, s = (x.view(-1, 1, 1, 1, 1) for x in self.schedule.vp(timesteps))
        noisy = a * latents + s * noise
        return noisy, noise if self.config.parameterization == "eps" else a * noise - s * latents

    def losses(
        self, model: VideoModel, latents: Tensor, timesteps: Tensor, noise: Tensor, tokens: Tensor | None
    ) -> Tensor:
        """Mean squared error of each clip: (b,)."""
        noisy, target = self.noisy(latents, timesteps, noise)
        output = model(noisy, timesteps, self.condition(latents), tokens)
        return (output - target).square().mean((1, 2, 3, 4))

    def motion_losses(
        self, model: VideoModel, condition: Tensor, pixels: Tensor, flow: Tensor, frame: Tensor,
        tokens: Tensor | None, index: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Mean errors of each clip, (b,): how far from their place, in pixels, the warp takes each of the condition's
        pixels a frame later (b, k, 2, H, W), and of frame `index` (b, 3, H, W) as made of nothing but these pixels.
        Not squared: where the model must guess, the square's best guess is that half a thing moves half the way."""
        found, rendered = model.warp(condition, pixels, tokens, index)
        missed, wrong = (found - flow).square().sum(2), (rendered - frame).square().sum(1)
        return (missed + 0.01).sqrt().mean((1, 2, 3)), (wrong + 0.001).sqrt().mean((1, 2))


def train_diffusion(
    config: TrainingConfig, model_config: ModelConfig, autoencoder: Autoencoder, folder: Path, scenes: Path
) -> LoadedModel:
    """Train to the end, resuming where `folder` holds a state; returns the EMA model with its autoencoder."""
    interpolation, frames = model_config.network.condition == "ends", model_config.network.frames
    objective, flow_shards = Objective(model_config), config.flow_shards if config.flow_steps else 0
    with first_process_first(), locked(scenes, wait=True):
        paths = draw_pool(
            scenes, config.shards + flow_shards, frames, model_config.width, interpolation, config.workers
        )  # fmt: skip
        paths, flow_paths = paths[: config.shards], paths[config.shards :]
        shown = objective.condition(torch.arange(frames)[None])[0]
        with ThreadPoolExecutor(config.workers) as workers:
            encoded = list(workers.map(lambda path: encode_shard(path, autoencoder), paths))
            seen = list(workers.map(lambda path: see_shard(path, autoencoder, shown), flow_paths))
    latents = load(encoded, "latents")
    captions, flow_captions = load_captions(paths), load_captions(flow_paths)
    pictures, flow = open_shards(flow_paths, "frames"), open_shards(flow_paths, "flow")
    conditions, pixels = open_shards(seen, "latents"), open_shards(seen, "pixels")
    if model_config.text:
        model_config = replace(model_config, text=replace(model_config.text, tokenizer=word_tokenizer(all_words())))
    torch.manual_seed(config.seed)
    model = VideoModel(model_config).to(memory_format=torch.channels_last)
    if model.text:
        if not (folder / STATE).exists():
            meanings_of = learn_to_read(model.text, config.text_steps, config.seed)
            if model_config.network.forward_warp:
                begin_with_colours(model.network.forward_warp, meanings_of, model_config)
        model.text.requires_grad_(False)
    if model_config.network.forward_warp:
        model.network.forward_warp.autoencoder.load_state_dict(autoencoder.state_dict())
    trainer = Trainer(model, config, folder, data=" ".join(path.stem for path in (*encoded[:1], *seen[:1])))
    count = len(latents) - HELD_OUT
    cameras = [bool(model.text) and not COLOURS.keys() & caption.split() for caption in flow_captions]
    shares = torch.where(torch.tensor(cameras, dtype=torch.bool), CAMERA_SHARE, 1.0)  # of the steps of motion

    def tokenize(prompts):
        return model.text.tokenizer(prompts) if model.text else None

    def motion_loss(rows, generator):
        index = int(torch.randint(frames, (1,), generator=generator))
        places = [divmod(row, len(pictures[0])) for row in rows.tolist()]
        frame = torch.stack([pictures[shard][clip, index] for shard, clip in places])
        condition, picture, motion = (
            torch.stack([shards[shard][clip] for shard, clip in places]).float()
            for shards in (conditions, pixels, flow)
        )
        tokens = tokenize([flow_captions[row] for row in rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=config.flow_bfloat16):
            missed, wrong = objective.motion_losses(model, condition, picture / 255, motion, frame / 255, tokens, index)
        missed, wrong = missed.mean(), wrong.mean()
        return missed + RENDERED * wrong, {"flow": missed.item(), "rendered": wrong.item()}

    def loss(step, generator):
        if step < config.flow_steps:
            rows = shares.multinomial(MOTION_CLIPS * trainer.batch_size, replacement=True, generator=generator)
            return motion_loss(rows, generator)
        if config.flow_steps:  # what reads the picture stays as it has learned to see motion
            model.network.appearance.requires_grad_(False)
            model.network.forward_warp.requires_grad_(False)
        # Every clip comes twice, forwards and backwards, with the same noise: what does not depend on the direction
        # cancels in the gradient of what does.
        half = max(1, trainer.batch_size // 2)
        rows = torch.randint(count, (half,), generator=generator)
        first, last = config.time_power
        power = first + (last - first) * (step - config.flow_steps) / (config.steps - config.flow_steps)
        timesteps = (torch.rand(half, generator=generator) ** power * 1000).long().clamp(max=999).repeat(2)
        batch, noise = latents[rows].float(), torch.randn(half, *latents.shape[1:], generator=generator)
        batch, noise = (torch.cat((x, x.flip(1))) for x in (batch, noise))
        told = (torch.rand(half, generator=generator) >= config.text_drop).tolist()
        prompts = [captions[row] if tell else "" for row, tell in zip(rows, told, strict=True)]
        prompts += [reverse(prompt) for prompt in prompts]
        losses = objective.losses(model, batch, timesteps, noise, tokenize(prompts))
        bands = timesteps * BANDS // 1000
        details = {
            f"loss_band{band}": losses[bands == band].mean().item() for band in range(BANDS) if (bands == band).any()
        }
        return losses.mean(), details

    @torch.no_grad()
    def probe(ema, path):
        """Held-out losses at a high noise level, with true and with swapped directions, and a sheet of samples."""
        batch, prompts = latents[count:].float(), captions[count:]
        noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.full((len(batch),), 900)
        figures = {"held_out": objective.losses(ema, batch, timesteps, noise, tokenize(prompts)).mean().item()}
        if model.text:
            swapped = tokenize([reverse(prompt) for prompt in prompts])
            figures["held_out_swapped"] = objective.losses(ema, batch, timesteps, noise, swapped).mean().item()
        pipeline = Pipeline(LoadedModel(model_config, ema.network, autoencoder, ema.text))
        shown, cfg = batch[:4], model_config.cfg if model.text else 1.0
        context = ema.text.encode([""] * len(shown) * (cfg != 1) + prompts[: len(shown)]) if model.text else None
        sampled = pipeline.sample(
            objective.condition(shown), context, frames=batch.shape[1], cfg=cfg, seeds=list(range(len(shown)))
        )
        rows = [pipeline.decode(clip) for pair in zip(shown, sampled, strict=True) for clip in pair]
        images.sheet(torch.cat(rows, -2), path)
        return figures

    ema = trainer.run(loss, probe)
    return LoadedModel(model_config, ema.network, autoencoder, ema.text)


@torch.no_grad()
def begin_with_colours(warp: ForwardWarp, meanings_of: Tensor, config: ModelConfig) -> None:
    """A region for each colour, which moves as the text says of the thing of this colour: what remains to be learned
    is where it is. From regions without velocities and velocities without regions, both are found late."""
    clip = SPEED_PIXELS[""] * config.width / REFERENCE_SIZE * (config.network.frames - 1) / 2  # pixels in a unit of τ
    warp.named.weight.copy_(clip / warp.unit * meanings_of[6 : 6 + 2 * len(COLOURS)])
    warp.velocities.weight[: 2 * NAMED] = warp.named.weight / RATE


@torch.no_grad()
def encode_shard(shard: Path, autoencoder: Autoencoder) -> Path:
    """A file with the scaled `latents` of all frames of a shard, (n, t, C, h, w) in float16, kept beside it."""

    def tensors():
        return {"latents": _encoded(load([shard], "frames"), autoencoder)}

    return _beside(shard, "latents", autoencoder, tensors)


@torch.no_grad()
def see_shard(shard: Path, autoencoder: Autoencoder, shown: Tensor) -> Path:
    """A file with what a forward warp sees of a shard: the `latents` of the frames `shown`, (n, k, C, h, w) in float16,
    and the `pixels` that the autoencoder makes of them, (n, k, 3, H, W) uint8."""

    def tensors():
        latents = _encoded(load([shard], "frames")[:, shown], autoencoder)
        pixels = [autoencoder.decode(part.float()) for part in latents.flatten(0, 1).split(8)]
        pixels = (torch.cat(pixels).clamp(0, 1) * 255).round().to(torch.uint8)
        return {"latents": latents, "pixels": pixels.unflatten(0, latents.shape[:2]).contiguous()}

    return _beside(shard, "seen", autoencoder, tensors)


def _encoded(clips: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Clips (n, t, 3, H, W) of bytes to scaled latents (n, t, C, h, w) in float16."""
    parts = [part.to(memory_format=torch.channels_last).float() / 255 for part in clips.flatten(0, 1).split(8)]
    latents = torch.cat([autoencoder.encode(part).half() for part in parts])
    return latents.contiguous().unflatten(0, clips.shape[:2])


def _beside(shard: Path, name: str, autoencoder: Autoencoder, tensors: Callable) -> Path:
    """The file of this name for this autoencoder beside a shard, made of `tensors()` unless it is there."""
    weights = b"".join(value.numpy().tobytes() for value in autoencoder.state_dict().values())
    digest = hashlib.sha256(weights + json.dumps(asdict(autoencoder.config)).encode()).hexdigest()[:12]
    path = shard.with_name(f"{shard.stem}-{name}-{digest}.safetensors")
    if not path.exists():
        save_tensors(path, tensors())
    return path
