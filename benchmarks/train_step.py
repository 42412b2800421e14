"""Steps of the full-size model through the real trainer, on random latents: memory, time, TFLOP/s, loss.

    python benchmarks/train_step.py --device cuda                                     # the paper's: all 2.0 B, one clip
    python benchmarks/train_step.py --device cuda --trained new --optimizer adamw8bit --checkpointing
    torchrun --nproc-per-node 2 benchmarks/train_step.py --device cuda --strategy fsdp2
    python benchmarks/train_step.py --trained new --size 8 --checkpointing            # what a CPU of 16 GB can do

A rehearsal, as every run begins with, then --steps steps of --micro-batch clips. The weights are drawn, and the last
layers zero as in a new model, so the first loss is the variance of the target, 1 + λ². Memory on a GPU is torch's peak,
on a CPU the process's; the encoders are not in it, and the text is random states.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.config import BASE, AutoencoderConfig, ModelConfig
from microcinema_core.model import build
from microcinema_core.model.autoencoder import Autoencoder
from microcinema_core.training import recipe
from microcinema_core.training.distributed import Processes, processes
from microcinema_core.training.objective import Batch, VideoModel, VideoObjective
from microcinema_core.training.parameters import memory
from microcinema_core.training.settings import DataTable, VideoRunConfig, VideoTrainConfig
from microcinema_core.training.trainer import Trainer

TOKENS = 77


def model_of(o: argparse.Namespace) -> ModelConfig:
    """The base model at the given clip."""
    network, side = replace(BASE.network, frames=o.frames, model_channels=o.width), 8 * o.size
    return replace(BASE, network=network, width=side, height=side, autoencoder=AutoencoderConfig(channels=32))


def run_of(o: argparse.Namespace, processes: int) -> VideoRunConfig:
    """The settings of a run, each with one micro-batch in each process."""
    train = VideoTrainConfig(
        steps=10**6, batch_size=o.micro_batch * processes, learning_rate=2e-5, warmup=1, betas=(0.9, 0.999),
        optimizer=o.optimizer, trained=o.trained, dtype=o.dtype, device=o.device, threads=o.threads,
        gradient_checkpointing=o.checkpointing, strategy=o.strategy, spatial_factor=0.1, compile=o.compile,
    )  # fmt: skip
    return VideoRunConfig(train=train, data=DataTable(scenes=1))


def batch_of(model: ModelConfig, clips: int, device: torch.device | str = "cpu", seed: int = 0) -> Batch:
    """A micro-batch of random moments, noise and text states."""
    random = None if str(device) == "meta" else torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=None if random else device)

    side, width = model.width // 8, model.network.context_dim or 1
    shape = (clips, model.network.frames, model.network.latent_channels, side, side)
    timesteps = torch.full((clips,), 500, device=None if random else device)
    return Batch(
        drawn(*shape), timesteps, drawn(*shape), drawn(clips, TOKENS, width), None, drawn(*shape), drawn(*shape)
    )


def tera_flops(model: ModelConfig) -> float:
    """The forward and the backward pass for one clip, where all is trained; counted without any arithmetic."""
    network = VideoModel(model, build(model.network, device="meta"))
    b = batch_of(model, 1, "meta")
    with FlopCounterMode(display=False) as counter:
        network(b.noise, b.timesteps, b.noise[:, :1], b.text).sum().backward()
    return counter.get_total_flops() / 1e12


def gigabytes(world: Processes) -> str:
    """The memory of this process now and its peak, in GB."""
    if world.device.type == "cuda":
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now, peak = pages * resource.getpagesize(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{now / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB"


def measure(o: argparse.Namespace, folder: Path) -> None:
    """Print one line for each phase, and the table's row."""
    model = model_of(o)
    flops = tera_flops(model)
    config = run_of(o, 1)
    with processes(config.train, folder) as world:
        config, started = run_of(o, world.count), time.monotonic()

        def note(text: str) -> None:
            if world.first:
                print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

        note(f"{flops:.2f} TFLOP a clip of {o.frames} frames of {o.size}x{o.size} latents, forward and backward")
        loaded = LoadedModel(model, build(model.network, device=world.device), Autoencoder(model.autoencoder), None)
        note(f"built: {gigabytes(world)}")
        objective: VideoObjective = recipe.prepare(config, loaded, world).objective
        trainer = Trainer(objective, config, folder, world)
        note(str(memory(objective, o.optimizer, len(trainer.averages))))
        note(f"prepared: {gigabytes(world)}")
        trainer.rehearse(batch_of(model, o.micro_batch))
        note(f"rehearsed: {gigabytes(world)}")
        times, losses = [], []
        for step in range(o.steps):
            before = time.monotonic()
            trainer._take_step([batch_of(model, o.micro_batch, seed=1 + step * world.count + world.rank)], False)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - before)
            losses.append(trainer.monitor.sums.pop("loss")[0])
            note(f"step {step + 1}: {times[-1]:.2f} s, loss {losses[-1]:.4f}, {gigabytes(world)}")
        best = min(times)
        setting = f"{o.trained} {o.optimizer} {o.dtype} {o.strategy}" + o.checkpointing * " checkpointing"
        speed = f"{best:.3g} s a step of {o.micro_batch} clips, {flops * o.micro_batch / best:.3g} TFLOP/s"
        note(f"{setting}: {speed}, loss {losses[-1]:.4f}, {gigabytes(world)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--trained", default="all", choices=("all", "new", "lora"))
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "adamw8bit"))
    parser.add_argument("--strategy", default="ddp", choices=("ddp", "fsdp2"))
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=40, help="of the latents, a side")
    parser.add_argument(
        "--width", type=int, default=320, help="channels of the highest resolution; less is another model"
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
