"""The interface between the loop and its surroundings: one process, several under torchrun, or Ray Train workers."""

from __future__ import annotations

import gc
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import Reduction
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.run_settings import RunConfig as RunConfig
from cggm_ray.engine.saving import Saves
from cggm_ray.engine.state import Content, Position
from cggm_ray.engine.stopping import Agreement, Notice, StopRequest

BUCKETS = 4
"""Number of messages for the gradients of a small model."""
LARGEST_BUCKET = 25.0
"""MiB of gradients in one message, torch's own choice for large models."""
Record = dict[str, float]
"""Metrics of an epoch: plain numbers by name. 'epoch' and 'best_epoch' count from 1."""


class Runtime(Protocol):
    """Services that the loop needs from its surroundings."""

    rank: int
    world_size: int
    device: torch.device

    def reduce(self) -> Reduction:
        """Returns the function that sums a detached tensor over all workers; it is the identity `alone` for one worker."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns the module, changed so that its gradients are averaged over the workers."""
        ...

    def reserve(self, content: Callable[[], Content]) -> None:
        """Prepares for saves of that size beside training, so that the first one takes no longer than others."""
        ...

    def save(self, position: Position, content: Callable[[], Content]) -> None:
        """Begins to save a checkpoint; rank 0 copies what it holds by calling `content`. All workers call it.

        Raises:
            StorageError: on all workers, where rank 0 could not write the checkpoint before.
        """
        ...

    def report(self, record: Record, content: Callable[[], Content]) -> None:
        """Begins to save the checkpoint of a finished epoch, and reports its metrics when that is whole.

        All workers call it.

        Raises:
            StorageError: on all workers, where rank 0 could not write the checkpoint before.
        """
        ...

    def settle(self) -> None:
        """Waits until no save is in flight, and reports what it was begun for. All workers call it.

        Raises:
            StorageError: on all workers, where rank 0 could not write the checkpoint.
        """
        ...

    def wait(self) -> None:
        """Waits for what this worker writes; a single worker may call it, where an error ends the run."""
        ...

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of this run, after waiting for what this worker writes."""
        ...

    def notice(self, now: bool = False) -> Notice:
        """Returns whether to save or to stop now, the same on all workers. All workers call it after every step.

        Args:
            now: between two epochs, where waiting costs nothing.

        Raises:
            StorageError: on all workers, where rank 0 could not write the last checkpoint.
        """
        ...

    def stop_requested(self) -> bool:
        """Returns whether a stop was requested, as far as this worker knows. A single worker may call it at any time."""
        ...

    measures: bool
    """Whether somebody looks at what `measure` receives."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Takes numbers of this worker about the running epoch, by name; those of modalities are 'name/modality'."""
        ...


def all_reduce(tensor: Tensor) -> Tensor:
    """Returns the sum over all workers of the default process group; the argument does not change."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wraps the module in DistributedDataParallel.

    Buffers are not broadcast, because every worker computes the same values from the same sums. The gradients of a small
    model are sent in several messages too, so that communication overlaps with the backward pass.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    with warnings.catch_warnings():
        # torch 2.13 renames the argument; older releases know this name only.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            bucket_cap_mb=min(LARGEST_BUCKET, size / 2**20 / BUCKETS),
            gradient_as_bucket_view=True,
        )


class GroupRuntime(ABC):
    """Base of the runtimes of one process, or of one process in the default process group.

    Args:
        rank: of this worker.
        world_size: workers.
        device: of this worker.
        folder: of the run, which all workers share.
        config: says how many checkpoints are kept.
        period: seconds between two comparisons of the workers' notices.
    """

    measures = False

    def __init__(
        self, rank: int, world_size: int, device: torch.device, folder: Path, config: RunConfig, period: float
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._saves = Saves(Checkpoints(folder, config.keep_checkpoints), rank, self.reduce(), device)
        self._agreement = Agreement(self._own_notice, world_size, self.reduce(), device, period)

    @abstractmethod
    def local_notice(self) -> Notice:
        """Returns the notice of this worker only. All workers call it, as they call `notice`."""

    @abstractmethod
    def stop_requested(self) -> bool:
        """Returns whether a stop was requested, as far as this worker knows. A single worker may call it at any time."""

    def reduce(self) -> Reduction:
        """Returns `all_reduce`, or the identity in a single process."""
        return Reduction(all_reduce, self.world_size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wraps the module in DistributedDataParallel if there are several processes."""
        return data_parallel(module, self.device) if self.world_size > 1 else module

    @abstractmethod
    def publish(self, record: Record) -> None:
        """Passes on the metrics of an epoch whose checkpoint is whole. All workers call it, in the thread that trains."""

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of this run, after waiting for what this worker writes."""
        return self._saves.checkpoints

    def measure(self, values: Mapping[str, float]) -> None:  # noqa: B027 (most runtimes have nobody who looks)
        """Does nothing: the metrics of a run are in its own files."""

    def reserve(self, content: Callable[[], Content]) -> None:
        """Prepares the memory of the first copy beside training."""
        self._saves.reserve(content)

    def save(self, position: Position, content: Callable[[], Content]) -> None:
        """Begins to save a checkpoint, which rank 0 writes beside training."""
        self._saves.begin(position, content)

    def report(self, record: Record, content: Callable[[], Content]) -> None:
        """Begins to save the checkpoint of a finished epoch, and calls `publish` when that is whole."""
        self._saves.begin(Position(int(record["epoch"])), content, partial(self.publish, record))

    def settle(self) -> None:
        """Waits until no save is in flight, and reports what it was begun for."""
        self._saves.settle()

    def wait(self) -> None:
        """Waits for what this worker writes."""
        self._saves.wait()

    def notice(self, now: bool = False) -> Notice:
        """Returns the notice on which all processes agree, after settling a save that has ended."""
        found = self._agreement(now)
        if found is not Notice.SAVED:
            return found
        self.settle()
        return Notice.NONE

    def _own_notice(self) -> Notice:
        return max(self.local_notice(), Notice.SAVED if self._saves.ended else Notice.NONE)


class LocalRuntime(GroupRuntime):
    """Runs the loop in this process, or in the processes that torchrun started.

    Args:
        folder: of the run.
        config: says whether a GPU may be used, the number of threads, and how long workers wait for one another.
        stop_request: records a signal; a new one by default.

    Raises:
        UsageError: `use_gpu` is set and there is no GPU.
    """

    def __init__(self, folder: Path, config: RunConfig, stop_request: StopRequest | None = None) -> None:
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        if config.use_gpu and not torch.cuda.is_available():
            raise UsageError("use_gpu: torch sees no GPU on this machine; leave the flag out")
        device = torch.device("cpu")
        if torch.cuda.is_available() and not config.no_cuda:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if device.index > 0 and device.index >= torch.cuda.device_count():
                raise UsageError(
                    f"LOCAL_RANK: found {device.index} and {torch.cuda.device_count()} GPUs on this machine; expected at most "
                    "one process per GPU, or --no_cuda"
                )
            torch.cuda.set_device(device)
        if config.cpus_per_worker is not None:
            torch.set_num_threads(config.cpus_per_worker)
        if world_size > 1 and not dist.is_initialized():
            # NCCL opens its connections at once where it knows the device, and not within the first step.
            on_gpu = device.type == "cuda"
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                timeout=timedelta(seconds=config.collective_timeout),
                device_id=device if on_gpu else None,
            )
        self.stop_request = stop_request or StopRequest()
        # A single process checks its flag after every step; several processes compare theirs about once a second.
        period = 1.0 if world_size > 1 else 0.0
        super().__init__(int(os.environ.get("RANK", 0)), world_size, device, folder, config, period)

    def local_notice(self) -> Notice:
        """Returns the notice of this process only."""
        return self.stop_request.notice()

    def publish(self, record: Record) -> None:
        """Does nothing: the run has its metrics in its own files."""

    def stop_requested(self) -> bool:
        """Returns whether this process was told to stop."""
        return self.stop_request.notice() is Notice.STOP

    def close(self) -> None:
        """Leaves the process group, whose threads end here.

        DistributedDataParallel holds the group and is part of reference cycles. A thread of gloo that outlives this call may
        still have to let go of the last all-reduce's tensors when the interpreter ends, which aborts the process.
        """
        if self.world_size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()


def numbers(values: Mapping[str, float]) -> Record:
    """Returns the values as plain floats, in the same order, because Ray's reports and JSON take nothing else."""
    return {name: float(value) for name, value in values.items()}
