"""The training loop: learning rates, accumulated gradients, moving averages (EMA), exact resume, log.

The trainer names no model. It minimises an objective, a module whose forward pass turns a batch into a loss, over
batches that depend only on the seed and the step: so a run that was killed and resumed computes the same steps as an
uninterrupted one, and a run of several processes those of a single one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..errors import MicroCinemaError
from ..files import make_folder
from .config import RunConfig
from .distributed import Processes, distributed, gradients_are_synchronised, whole_weights
from .ema import Ema
from .monitor import Monitor
from .signals import on_stop_signal
from .states import allocate_moments, check_state, load_state, save_state, set_rate, state_tensors

Figures = dict[str, float]
# The batches of this process: an iterator over the steps from a first one on, each a list of micro-batches.
Batches = Callable[[int], Iterator[list[Any]]]
# Writes samples of the averaged model to a folder, under names with a given stem; returns figures for the log.
Show = Callable[[Path, str], Figures]


class Objective(nn.Module):
    """What is minimised: `forward(step, batch)` returns the mean loss of a micro-batch, and figures for the log."""

    skips_parameters = False  # whether a step may leave parameters without a gradient

    def forward(self, step: int, batch: Any) -> tuple[torch.Tensor, Figures]:
        """The mean loss of a micro-batch, and figures for the log, each a mean over those clips that have it."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters in groups for the optimiser; `factor` multiplies the learning rate of a group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "factor": 1.0}]


Trained = TypeVar("Trained", bound=Objective)


class Trainer(Generic[Trained]):
    """Minimises an objective for the steps of the configuration, with its states and log in `folder`.

    A run whose state is in the folder is resumed. `data` identifies the training data, which must not change then.
    """

    def __init__(self, objective: Trained, config: RunConfig, folder: Path, world: Processes, data: str = ""):
        self.objective, self.config, self.folder, self.world = objective.to(world.device), config, folder, world
        self.identity = config.identity() | {"data": data}
        c = config.train
        self.share = self.micro_batches, self.micro_batch = c.share(world.count)
        make_folder(folder)
        # The first process's word, as another machine may see a shared folder later than it changes:
        self.step = world.share(check_state(folder, c.steps, self.identity))
        self.wrapped = distributed(objective, c, world, objective.skips_parameters)
        # After the parameters may have been divided between the processes:
        self.averages = [Ema(objective, std=std) for std in c.ema_std] or [Ema(objective, c.ema)]
        self.optimizer = _optimizer(objective, config)
        self.monitor = Monitor(folder, c.steps, self.step, world)
        if self.step:
            allocate_moments(self.optimizer)
            load_state(folder, self.step, self.averages, self.optimizer)
            self.monitor.note(f"resumed at step {self.step}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: within its phase a linear warm-up, a constant part, a cosine decay to zero."""
        c = self.config.train
        first, end = self.config.phase(step)
        step, steps = step - first, end - first
        decay = max(0.0, (step / steps - c.cosine_from) / max(1 - c.cosine_from, 1e-9))
        return c.learning_rate * min(1.0, (step + 1) / c.warmup) * 0.5 * (1 + math.cos(math.pi * min(decay, 1.0)))

    def rehearse(self, batch: Any) -> None:
        """Compute a step of the largest batches that will come, which changes nothing: memory runs out now or never.

        Raises MicroCinemaError where it does.
        """
        try:
            if not self.step:  # from the second step on they are there beside the activations
                allocate_moments(self.optimizer)
            for number in range(self.micro_batches):
                self._backward(self.step, batch, last=number == self.micro_batches - 1)
        except torch.OutOfMemoryError as error:
            raise MicroCinemaError(
                f"a step of {self.micro_batch} clips does not fit into the memory of {self.world.device}: give a lower "
                "micro_batch, gradient_checkpointing = true, optimizer = 'adamw8bit', or fewer trained parts"
            ) from error
        self.optimizer.zero_grad(set_to_none=True)
        if not self.step:
            self.optimizer.state.clear()
        self.monitor.sums.clear()

    def run(self, batches: Batches, show: Show | None = None) -> Trained:
        """Train to the last step and return the objective with the averaged weights.

        A SIGTERM or SIGINT ends the run after its step: the state is saved, and KeyboardInterrupt raised. Raises
        MicroCinemaError for a loss that is not finite.
        """
        c, signals, stop = self.config.train, [], False
        steps = batches(self.step) if self.step < c.steps else iter(())
        with on_stop_signal(lambda: signals.append(True)), self.monitor, _closing(steps):
            while self.step < c.steps and not stop:
                with self.monitor.waiting():
                    micro_batches = next(steps)
                stop = self._take_step(micro_batches, bool(signals))
                last = self.step == c.steps
                if last or self.step % c.log_every == 0:
                    self.monitor.log(self.step, self.learning_rate(self.step - 1))
                if show and (last or self.step % c.sample_every == 0):
                    self._show(show)
                if last or stop or self.step % c.save_every == 0:
                    self.save()
                if stop:
                    self.monitor.note(f"stopped at step {self.step}; run the same command to go on")
        if stop:
            raise KeyboardInterrupt
        self.averages[0].exchange()
        return self.objective

    def _take_step(self, micro_batches: list[Any], signalled: bool) -> bool:
        """Take one step of the optimiser. Returns whether any process has got a signal."""
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            set_rate(group, rate * group["factor"])
        losses = []
        for number, batch in enumerate(micro_batches, 1):
            losses.append(self._backward(self.step, batch, last=number == len(micro_batches)))
        norm = nn.utils.clip_grad_norm_(self.averages[0].parameters.values(), self.config.train.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore[reportAttributeAccessIssue]
        if not torch.isfinite(norm):
            raise MicroCinemaError(f"the loss is not finite at step {self.step}; lower learning_rate and resume")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        for ema in self.averages:
            ema.update(self.step)
        stopped, loss = self.world.total(float(signalled), sum(losses))
        self.monitor.count({"loss": loss / self.world.count, "grad_norm": norm.item()}, self.config.train.batch_size)
        return stopped > 0

    def _backward(self, step: int, batch: Any, last: bool) -> float:
        """Add the gradient of a micro-batch. Returns its part of the mean loss of the step in this process."""
        device, bfloat16 = self.world.device.type, self.config.train.dtype == "bfloat16"
        with gradients_are_synchronised(self.wrapped, last):
            # A weight is used once in a step: kept copies of it in bfloat16 would be of no use, and take 4 GB.
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
                loss, figures = self.wrapped(step, on_device(batch, self.world.device))
            part = loss / self.micro_batches
            part.backward()
        self.monitor.details(figures)
        return part.item()

    def _show(self, show: Show) -> None:
        """Write samples of the averaged weights, in all processes at once, since each may hold a part of them."""
        with self.averages[0].applied(), whole_weights(self.wrapped), torch.no_grad():
            figures = show(self.folder, f"samples-{self.step:06d}")
        self.monitor.figures(self.step, figures)

    def save(self) -> None:
        """Write the state of the run: weights, averages, moments, step and settings."""
        tensors = dict(state_tensors(self.averages, self.optimizer))
        save_state(self.folder, self.step, self.identity, tensors, self.world, self.config.train.keep)


@contextmanager
def _closing(steps: Iterator[Any]) -> Iterator[None]:
    """Close the batches at the end, whose workers would outlive an exception; an iterator may have nothing to close."""
    try:
        yield
    finally:
        getattr(steps, "close", lambda: None)()


def on_device(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch on a device: one, a tuple of them, or a dataclass that has some."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple):
        return tuple(on_device(part, device) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: on_device(getattr(batch, field.name), device) for field in fields(batch)})
    return batch


def _optimizer(objective: Objective, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW for the groups of the objective, fused; or torchao's, whose moments have 8 bits."""
    c, groups = config.train, objective.parameter_groups()
    options = {"lr": c.learning_rate, "betas": c.betas, "weight_decay": c.weight_decay}
    if c.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **options)
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MicroCinemaError("optimizer 'adamw8bit' needs torchao: pip install torchao, or give 'adamw'") from error
    return AdamW8bit(groups, **options)
