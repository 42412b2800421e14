"""What every training run shares: the optimiser's course, EMA, exact resume, and a log.

Randomness is derived from (seed, step), so a run that was killed and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, safe_open
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import MicroCinemaError
from .config import TrainingConfig
from .files import cannot_write, make_folder, save_tensors, whole

STATE = "state.safetensors"


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first of several processes runs the block alone, the others after it and find its files."""
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()


class Trainer:
    """Runs `loss(step, generator)` to the end of the configuration, saving and resuming in `folder`.

    `data` tells what is learned from: with another than it began with, a run does not go on.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, folder: Path, data: str = ""):
        self.model, self.config, self.folder = model, config, folder
        self.shape = config.shape() | {"data": data}
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
        make_folder(folder)
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
        try:
            with self.log_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def _cut_log(self) -> None:
        """What a killed run had logged after its last save comes again."""
        try:
            rows = self.log_path.read_text(errors="replace").splitlines(keepends=True)
            kept = [row for row in rows if _step_of(row) <= self.step]
            if len(kept) < len(rows):
                with whole(self.log_path) as part:
                    part.write_text("".join(kept))
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    # --- exact resume ---

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in (("model", self.model), ("ema", self.ema)):
            for name, tensor in module.state_dict().items():
                yield f"{prefix}.{name}", tensor
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{key}.{name}", tensor

    def save(self) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors()}
        save_tensors(self.state_path, tensors, {"step": str(self.step), "settings": json.dumps(self.shape)})

    def _resume(self) -> None:
        self.step = check_state(self.folder, self.config.steps, self.shape)
        try:
            tensors = load_file(self.state_path)
            for prefix, module in (("model.", self.model), ("ema.", self.ema)):
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        except Exception as error:
            raise _does_not_fit(self.state_path, error) from error
        for name, parameter in self.model.named_parameters():
            keys = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if keys["step"] in tensors:
                self.optimizer.state[parameter] = {key: tensors[saved] for key, saved in keys.items()}
                for key in ("exp_avg", "exp_avg_sq"):  # the fused optimiser wants them laid out as the parameter is
                    laid_out = torch.empty_like(parameter).copy_(tensors[keys[key]])
                    self.optimizer.state[parameter][key] = laid_out.detach()
        if self.rank == 0 and self.log_path.exists():
            self._cut_log()
        print(f"resumed at step {self.step}", flush=True)


def check_state(folder: Path, steps: int, shape: dict[str, Any]) -> int:
    """The step of the run in a folder, 0 where there is none. Raises MicroCinemaError where a run of `steps` that these
    settings shape cannot go on from it; the states of release 0.1 do not tell theirs."""
    path = folder / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        step, before = int(metadata["step"]), json.loads(metadata.get("settings", "{}"))
        changed = {name: before[name] for name in before.keys() & shape.keys() if before[name] != _plain(shape[name])}
    except Exception as error:  # whatever a damaged file holds
        raise _does_not_fit(path, error) from error
    if changed:
        was = ", ".join(f"{name} {json.dumps(changed[name])}" for name in sorted(changed))
        now = ", ".join(json.dumps(shape[name]) for name in sorted(changed))
        raise MicroCinemaError(
            f"{path} is of a run with {was}, not {now}: go on with the same, or choose another folder with --out"
        )
    if step > steps:
        raise MicroCinemaError(
            f"{path} is at step {step} already: give steps of at least {step}, or choose another folder with --out"
        )
    return step


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # lists for tuples


def _does_not_fit(path: Path, error: Exception) -> MicroCinemaError:
    problem = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
    return MicroCinemaError(f"{path} does not fit this run ({problem}); delete the folder or choose another with --out")


def _step_of(row: str) -> float:
    """The step of a line of the log; a line that a kill cut short belongs nowhere."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
