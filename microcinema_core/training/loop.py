"""What every training run shares: settings from a TOML file, the optimiser's course, EMA, exact resume, and a log.

Randomness is derived from (seed, step), so a run that was killed and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import torch
import torch.distributed as dist
from safetensors.torch import load_file, safe_open, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import fits
from ..errors import MicroCinemaError

STATE = "state.safetensors"
_KINDS = {bool: "true or false", int: "a whole number above 0", float: "a number", str: "a text in quotes"}


@dataclass(frozen=True)
class TrainingConfig:
    task: str  # "autoencoder" or "diffusion"
    model: str  # the configuration that is trained, a name in config.CONFIGS
    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    cosine_from: float = 0.5  # share of the run after which the learning rate falls to zero
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.998
    seed: int = 0
    shards: int = 4  # of drawn scenes, 250 clips each
    autoencoder: str = ""  # diffusion: the run folder or model file that holds the autoencoder
    text_steps: int = 600  # diffusion: of the text tower, before all others
    flow_steps: int = 0  # diffusion with a forward warp: at first it alone learns the drawn scenes' motion
    flow_shards: int = 4  # of scenes for that, behind the others
    flow_bfloat16: bool = False  # its convolutions and products in bfloat16, on a processor that has it in hardware
    text_drop: float = 0.1
    # diffusion: t = 1000·u^power; below 1 the noisy end is seen more often. It goes from the first to the second
    # evenly: what moves is decided by the noisy end, and is to be learned first.
    time_power: tuple[float, float] = (1.0, 1.0)
    kl_weight: float = 1e-4
    crop: int = 64  # autoencoder: side of the training crops
    log_every: int = 20
    sheet_every: int = 500
    save_every: int = 250
    threads: int = 1  # of each process
    processes: int = 1  # that share a batch; two of one thread each beat one of two
    workers: int = 2  # that draw scenes and encode them

    @classmethod
    def read(cls, path: Path, overrides: dict[str, str] | None = None) -> TrainingConfig:
        """Read a TOML file; `overrides` are values in TOML syntax. Raises MicroCinemaError on what it cannot read."""
        try:
            values = tomllib.loads(Path(path).read_text())
            for key, value in (overrides or {}).items():
                values |= tomllib.loads(f"{key} = {value}")
        except OSError as error:
            raise MicroCinemaError(f"cannot read {path}: {error.strerror}; give a file from configs/") from error
        except ValueError as error:  # no TOML, or no text at all
            raise MicroCinemaError(f"{path} or a --set value is not valid TOML ({error})") from error
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise MicroCinemaError(f"unknown setting {unknown[0]}; known are {', '.join(sorted(known))}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        for key, value in values.items():
            kind = get_type_hints(cls)[key]
            if not fits(value, kind) or (kind is int and value < 1 and key not in ("seed", "flow_steps")):
                raise MicroCinemaError(f"{key} cannot be {value!r}: give {_KINDS.get(kind, 'a list of numbers')}")
        try:
            return cls(**values)
        except TypeError as error:
            raise MicroCinemaError(f"{path} is incomplete: {error}") from error


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first of several processes runs the block alone, the others after it and find its files."""
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()


class Trainer:
    """Runs `loss(step, generator)` to the end of the configuration, saving and resuming in `folder`."""

    def __init__(self, model: nn.Module, config: TrainingConfig, folder: Path):
        self.model, self.config, self.folder = model, config, folder
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.state_path.exists():
            self._resume()

    @property
    def state_path(self) -> Path:
        return self.folder / STATE

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def learning_rate(self, step: int) -> float:
        """Of the steps of motion alone and of the others, each as of a run of their own."""
        c = self.config
        first, end = (0, c.flow_steps) if step < c.flow_steps else (c.flow_steps, c.steps)
        step, steps = step - first, end - first
        fall = max(0.0, (step / steps - c.cosine_from) / max(1 - c.cosine_from, 1e-9))
        return c.learning_rate * min(1.0, (step + 1) / c.warmup) * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0)))

    @property
    def batch_size(self) -> int:
        """This process's share of the batch."""
        return max(1, self.config.batch_size // self.world)

    def generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) * 1009 + self.rank)

    def _average(self, stop: bool) -> bool:
        """Average the gradients over the processes; true in all of them if one was asked to stop."""
        if self.world == 1:
            return stop
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        shared = torch.cat([g.flatten() for g in gradients] + [torch.tensor([float(stop)])])
        dist.all_reduce(shared)
        for gradient, part in zip(gradients, shared.split([g.numel() for g in gradients] + [1]), strict=False):
            gradient.copy_(part.view_as(gradient)).div_(self.world)
        return bool(shared[-1] > 0)

    def run(
        self,
        loss: Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]],
        sheet: Callable[[nn.Module, Path], dict[str, float]] | None = None,
    ) -> nn.Module:
        """Train to the end and return the EMA model. A SIGTERM or Ctrl-C saves the state first."""
        config, started, window = self.config, time.monotonic(), []
        asked, stop = [], False
        previous = {s: signal.signal(s, lambda *_: asked.append(True)) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.step < config.steps and not stop:
                rate = self.learning_rate(self.step)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                value, details = loss(self.step, self.generator(self.step))
                self.model.zero_grad(set_to_none=True)
                value.backward()
                stop = self._average(bool(asked))
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
                if not torch.isfinite(norm):
                    raise MicroCinemaError(
                        f"the loss is not finite at step {self.step}; lower learning_rate and resume"
                    )
                self.optimizer.step()
                self.ema.update_parameters(self.model)
                self.step += 1
                if self.rank:
                    continue
                window.append({"loss": value.item(), "grad_norm": norm.item(), **details})
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._log(window, rate, time.monotonic() - started)
                    window, started = [], time.monotonic()
                if sheet and (self.step % config.sheet_every == 0 or self.step == config.steps):
                    figures = sheet(self.ema.module, self.folder / f"sheet-{self.step:06d}.png")
                    self._write({"step": self.step, **figures})
                if self.step % config.save_every == 0:
                    self.save()
                if stop:
                    print(f"stopped at step {self.step}; run the same command to go on", flush=True)
            if self.rank == 0:
                self.save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if stop:
            raise KeyboardInterrupt
        return self.ema.module

    def _log(self, window, rate, seconds):
        keys = sorted({key for row in window for key in row})
        means = {}
        for key in keys:
            values = [row[key] for row in window if key in row]
            means[key] = round(sum(values) / len(values), 6)
        row = {"step": self.step, **means, "learning_rate": rate, "seconds_per_step": round(seconds / len(window), 4)}
        self._write(row)
        print(" ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)

    def _write(self, row):
        with self.log_path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    # --- exact resume ---

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in (("model", self.model), ("ema", self.ema)):
            for name, tensor in module.state_dict().items():
                yield f"{prefix}.{name}", tensor
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{key}.{name}", tensor

    def save(self) -> None:
        part = self.state_path.with_suffix(".part")
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors()}
        save_file(tensors, part, {"step": str(self.step)})
        part.replace(self.state_path)

    def _resume(self) -> None:
        try:
            with safe_open(self.state_path, "pt") as file:
                self.step = int(file.metadata()["step"])
            tensors = load_file(self.state_path)
            for prefix, module in (("model.", self.model), ("ema.", self.ema)):
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        except Exception as error:
            problem = str(error).splitlines()[-1].strip()
            raise MicroCinemaError(
                f"{self.state_path} does not fit this run ({problem}); delete the folder or choose another with --out"
            ) from error
        for name, parameter in self.model.named_parameters():
            keys = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if keys["step"] in tensors:
                self.optimizer.state[parameter] = {key: tensors[saved] for key, saved in keys.items()}
                for key in ("exp_avg", "exp_avg_sq"):  # the fused optimiser wants them laid out as the parameter is
                    laid_out = torch.empty_like(parameter).copy_(tensors[keys[key]])
                    self.optimizer.state[parameter][key] = laid_out.detach()
        if self.rank == 0 and self.log_path.exists():  # what a killed run had logged after its last save comes again
            rows = self.log_path.read_text().splitlines(keepends=True)
            self.log_path.write_text("".join(row for row in rows if _step_of(row) <= self.step))
        print(f"resumed at step {self.step}", flush=True)


def _step_of(row: str) -> float:
    """The step of a line of the log; a line that a kill cut short belongs nowhere."""
    try:
        return json.loads(row)["step"]
    except ValueError:
        return math.inf
