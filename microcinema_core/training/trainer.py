"""The training loop: learning rate schedule, exponential moving average (EMA), exact resume, log.

Random numbers depend only on the seed and the step, so a run that was killed and resumed computes the same steps as an
uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import MicroCinemaError
from ..files import cannot_write, make_folder, whole_file
from .config import TrainingConfig
from .signals import on_stop_signal

STATE = "state.safetensors"
Model = TypeVar("Model", bound=nn.Module)
# The loss of a step, and figures for the log; drawn from the generator.
Loss = Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in the first of several processes, then in the others, which can use the files that it wrote."""
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()


class Trainer(Generic[Model]):
    """Minimises `loss(step, generator)` for the steps of the configuration, with its state and log in `folder`.

    A run whose state is in the folder is resumed. `data` identifies the training data, which must not change then.
    """

    def __init__(self, model: Model, config: TrainingConfig, folder: Path, data: str = ""):
        self.model, self.config, self.folder = model, config, folder
        self.identity = config.identity() | {"data": data}
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
        """The file from which a run is resumed."""
        return self.folder / STATE

    @property
    def log_path(self) -> Path:
        """The log, one JSON object per line."""
        return self.folder / "log.jsonl"

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: within its phase a linear warm-up, a constant part, a cosine decay to zero."""
        c = self.config
        first, end = c.phase(step)
        step, steps = step - first, end - first
        decay = max(0.0, (step / steps - c.cosine_from) / max(1 - c.cosine_from, 1e-9))
        return c.learning_rate * min(1.0, (step + 1) / c.warmup) * 0.5 * (1 + math.cos(math.pi * min(decay, 1.0)))

    @property
    def batch_size(self) -> int:
        """The part of the batch that this process computes."""
        return max(1, self.config.batch_size // self.world)

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of a step in this process."""
        return torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) * 1009 + self.rank)

    def _average(self, stop: bool) -> bool:
        """Average the gradients over the processes. Returns true in all of them if `stop` is true in one."""
        if self.world == 1:
            return stop
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        shared = torch.cat([g.flatten() for g in gradients] + [torch.tensor([float(stop)])])
        dist.all_reduce(shared)
        for gradient, part in zip(gradients, shared.split([g.numel() for g in gradients] + [1]), strict=False):
            gradient.copy_(part.view_as(gradient)).div_(self.world)
        return bool(shared[-1] > 0)

    @property
    def averaged(self) -> Model:
        """The model with the moving average of the weights."""
        return cast(Model, self.ema.module)

    def run(self, loss: Loss, show: Callable[[Model, Path], dict[str, float]] | None = None) -> Model:
        """Train to the last step and return the EMA model.

        `show(model, path)` writes samples of the EMA model to an image file and returns figures for the log. A SIGTERM
        or SIGINT ends the run after its step: the state is saved, and KeyboardInterrupt raised. Raises MicroCinemaError
        for a loss that is not finite.
        """
        config, started, window = self.config, time.monotonic(), []
        signals, stop = [], False
        with on_stop_signal(lambda: signals.append(True)):
            while self.step < config.steps and not stop:
                figures, stop = self._take_step(loss, signals)
                if self.rank:
                    continue
                window.append(figures)
                last = self.step == config.steps
                if last or self.step % config.log_every == 0:
                    self._log(window, time.monotonic() - started)
                    window, started = [], time.monotonic()
                if show and (last or self.step % config.sample_every == 0):
                    figures = show(self.averaged, self.folder / f"samples-{self.step:06d}.png")
                    self._write({"step": self.step, **figures})
                if self.step % config.save_every == 0:
                    self.save()
                if stop:
                    print(f"stopped at step {self.step}; run the same command to go on", flush=True)
            if self.rank == 0:
                self.save()
        if stop:
            raise KeyboardInterrupt
        return self.averaged

    def _take_step(self, loss: Loss, signals: list[bool]) -> tuple[dict[str, float], bool]:
        """Take one step of the optimiser. Returns its figures for the log, and whether any process has got a signal."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        value, details = loss(self.step, self.generator(self.step))
        self.model.zero_grad(set_to_none=True)
        value.backward()
        stop = self._average(bool(signals))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise MicroCinemaError(f"the loss is not finite at step {self.step}; lower learning_rate and resume")
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return {"loss": value.item(), "grad_norm": norm.item(), **details}, stop

    def _log(self, window: list[dict[str, float]], seconds: float) -> None:
        """Log the mean figures of a window of steps, which took `seconds`."""
        rate = self.optimizer.param_groups[0]["lr"]
        keys = sorted({key for row in window for key in row})
        means = {}
        for key in keys:
            values = [row[key] for row in window if key in row]
            means[key] = round(sum(values) / len(values), 6)
        row = {"step": self.step, **means, "learning_rate": rate, "seconds_per_step": round(seconds / len(window), 4)}
        self._write(row)
        print(" ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)

    def _write(self, row: dict[str, float]) -> None:
        try:
            with self.log_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def _cut_log(self) -> None:
        """Remove what a killed run had logged after its last save: the resumed run logs it again."""
        try:
            rows = self.log_path.read_text(errors="replace").splitlines(keepends=True)
            kept = [row for row in rows if _step_of(row) <= self.step]
            if len(kept) < len(rows):
                with whole_file(self.log_path) as part:
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
        """Write the state of the run: model, EMA, optimiser, step and settings."""
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors()}
        metadata = {"step": str(self.step), "settings": json.dumps(self.identity)}
        with whole_file(self.state_path) as part:
            save_file(tensors, part, metadata)

    def _resume(self) -> None:
        self.step = check_state(self.folder, self.config.steps, self.identity)
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
                for key in ("exp_avg", "exp_avg_sq"):  # the fused optimiser needs the strides of the parameter
                    moment = torch.empty_like(parameter).copy_(tensors[keys[key]])
                    self.optimizer.state[parameter][key] = moment.detach()
        if self.rank == 0 and self.log_path.exists():
            self._cut_log()
        print(f"resumed at step {self.step}", flush=True)


def check_state(folder: Path, steps: int, identity: dict[str, Any]) -> int:
    """The step at which the run in a folder continues, 0 where there is none.

    Raises MicroCinemaError where a run of `steps` with the settings `identity` cannot continue it. The states of
    release 0.1 do not contain their settings, which are not compared then.
    """
    path = folder / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        step, before = int(metadata["step"]), json.loads(metadata.get("settings", "{}"))
        changed = {
            name: before[name] for name in before.keys() & identity.keys() if before[name] != _plain(identity[name])
        }
    except Exception as error:  # a damaged file raises errors of any type
        raise _does_not_fit(path, error) from error
    if changed:
        old = ", ".join(f"{name} {json.dumps(changed[name])}" for name in sorted(changed))
        new = ", ".join(json.dumps(identity[name]) for name in sorted(changed))
        raise MicroCinemaError(
            f"{path} is of a run with {old}, not {new}: go on with the same, or choose another folder with --out"
        )
    if step > steps:
        raise MicroCinemaError(
            f"{path} is at step {step} already: give steps of at least {step}, or choose another folder with --out"
        )
    return step


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # converts tuples to lists


def _does_not_fit(path: Path, error: Exception) -> MicroCinemaError:
    problem = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
    return MicroCinemaError(f"{path} does not fit this run ({problem}); delete the folder or choose another with --out")


def _step_of(row: str) -> float:
    """The step of a line of the log; infinity for an incomplete line of a killed run."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
