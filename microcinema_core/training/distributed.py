"""The processes of a run: one, or those that `torchrun` starts on one machine or many, which share every batch.

`torchrun` is torch's own launcher: it tells each process its rank in the environment, forwards signals, and ends all
processes when one has ended with an error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import MicroCinemaError
from ..files import locked
from ..model.layers import ResBlock, SpatialTransformer
from ..model.temporal import TemporalConv, TemporalTransformer
from .config import TrainConfig

TIMEOUT = timedelta(minutes=30)  # the longest time between two steps of a process that are waited for by the others
PATIENCE = timedelta(days=7)  # the longest time that the first process may take to find and probe the videos
SHARDED = (ResBlock, SpatialTransformer, TemporalConv, TemporalTransformer)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def first_goes_first(self):
        """A context that runs a block in the first process, then in the others, which can use the files it wrote."""
        return _first_goes_first(self.rank, self.count) if self.count > 1 else nullcontext()

    def share(self, value: Any) -> Any:
        """The first process's `value`, in all processes."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self._messages)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in all processes."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def total(self, *values: float) -> list[float]:
        """Each value, added up over the processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    @property
    def _messages(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")


_turns = itertools.count()  # in which the first process has gone first; the same in all


@contextmanager
def _first_goes_first(rank: int, processes: int) -> Iterator[None]:
    """All leave the block together. They wait in the store that torchrun has made, as barriers of NCCL and gloo give up
    after TIMEOUT."""
    store, turn = dist.distributed_c10d._get_default_store(), next(_turns)
    if rank:
        store.wait([f"turn {turn} of 0"], PATIENCE)
    yield
    store.set(f"turn {turn} of {rank}", "")
    store.wait([f"turn {turn} of {other}" for other in range(processes)], PATIENCE)


@contextmanager
def processes(config: TrainConfig, folder: Path) -> Iterator[Processes]:
    """The processes that torchrun has started, or this one alone, with the folder locked by the first.

    Raises MicroCinemaError where another run works in the folder, or the device cannot be used.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = training_device(config.device)
    torch.set_num_threads(config.threads)
    if count > 1:
        # Optimisers import it. Unless it is imported before the group is made, gloo's threads outlive the group, and
        # one of them may abort the process when the interpreter ends.
        from torch import _dynamo  # noqa: F401

        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        with locked(folder) if rank == 0 else nullcontext():
            yield Processes(rank, count, device)
    finally:
        if count > 1:
            dist.destroy_process_group()


def training_device(name: str) -> torch.device:
    """The device of this process: "auto" is the GPU of its local rank where there is one, else the CPU.

    Raises MicroCinemaError for a device that cannot be used here.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", local if device.index is None else device.index)
        torch.ones(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:  # unknown, or absent
        raise MicroCinemaError(f"train.device cannot be '{name}' here: give auto, cpu or cuda") from error
    return device


def distributed(objective: nn.Module, config: TrainConfig, world: Processes, unused: bool = False) -> nn.Module:
    """The objective with its gradients averaged over the processes: DDP's wrapper, or itself after FSDP2's fully_shard.

    unused: whether a step may leave parameters without a gradient, which DDP must know. The weights of all processes
    become those of the first.
    """
    if config.strategy == "fsdp2":
        return _sharded(objective, config, world)
    if world.count == 1:
        return objective
    ids = [world.device.index] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        objective, device_ids=ids, find_unused_parameters=unused, gradient_as_bucket_view=True
    )


def _sharded(objective: nn.Module, config: TrainConfig, world: Processes) -> nn.Module:
    """Each process keeps a part of every parameter, gradient and moment; a layer is collected when it is used."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if world.count == 1:
        raise MicroCinemaError("strategy cannot be 'fsdp2' with one process: give 'ddp', or start more with torchrun")
    for parameter in objective.parameters():  # FSDP2 needs contiguous parameters
        parameter.data = parameter.data.contiguous()
        dist.broadcast(parameter.data, src=0)
    mesh = init_device_mesh(world.device.type, (world.count,))
    layers = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if config.dtype == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast does it
    )
    for module in objective.modules():
        if isinstance(module, SHARDED):
            fully_shard(module, mesh=mesh, mp_policy=layers)
    fully_shard(objective, mesh=mesh)  # it changes the module's class
    return objective


@contextmanager
def gradients_are_synchronised(wrapped: nn.Module, when: bool) -> Iterator[None]:
    """Average the gradients of the block over the processes, or only add them up in each where more will follow."""
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        with nullcontext() if when else wrapped.no_sync():
            yield
        return
    if hasattr(wrapped, "set_requires_gradient_sync"):
        wrapped.set_requires_gradient_sync(when)  # pyright: ignore[reportCallIssue]  # FSDP2's
    yield


@contextmanager
def whole_weights(wrapped: nn.Module) -> Iterator[None]:
    """Collect the parameters that belong to no layer, so that parts of the module can be called by themselves."""
    if not hasattr(wrapped, "unshard"):
        yield
        return
    wrapped.unshard()  # pyright: ignore[reportCallIssue]  # FSDP2's
    try:
        yield
    finally:
        wrapped.reshard()  # pyright: ignore[reportCallIssue]
