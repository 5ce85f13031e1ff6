"""The seam between the loop and where it runs: one process, several under torchrun, or Ray Train workers."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cggm_ray.config import RunConfig
from cggm_ray.errors import UsageError
from cggm_ray.modulation.base import alone
from cggm_ray.state import write_folder

CHECKPOINTS = "checkpoints"
BUCKETS = 4
"""Messages that the gradients of a small model are sent in."""
LARGEST_BUCKET = 25.0
"""MiB of gradients in one message, torch's own choice for large models."""
Record = dict[str, float]
"""Metrics of an epoch: plain numbers by name. 'epoch' and 'best_epoch' count from 1."""


class Runtime(Protocol):
    """What the loop needs from its surroundings."""

    rank: int
    world_size: int
    device: torch.device

    def reduce(self) -> Callable[[Tensor], Tensor]:
        """The function that sums a detached tensor over all workers; the identity `alone` for one worker."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, made to average its gradients over the workers."""
        ...

    def report(self, record: Record, write: Callable[[Path], None]) -> None:
        """Keeps the metrics of an epoch with a checkpoint, which `write` fills on rank 0. All workers call it.

        The newest checkpoint and that of the best epoch are kept.
        """
        ...

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint of this run."""
        ...

    def checkpoint_of(self, epoch: int) -> Path | None:
        """The checkpoint of an epoch, if it was kept."""
        ...


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over all workers of the default process group; the argument is left as it is."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module under DistributedDataParallel.

    Buffers are not broadcast: every worker computes the same values from the same sums. The gradients of a small model go
    in several messages too, so that the first travel while the backward pass still computes.
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


class LocalRuntime:
    """This process, or the processes that torchrun started.

    Args:
        folder: of the run; checkpoints go to `checkpoints/epoch-NNNNN` in it.
        config: says whether a GPU may be used, and the number of threads.

    Raises:
        UsageError: a GPU was asked for and there is none.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        if config.use_gpu and not torch.cuda.is_available():
            raise UsageError("use_gpu: torch sees no GPU on this machine; leave the flag out")
        if torch.cuda.is_available() and not config.no_cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        if config.cpus_per_worker is not None:
            torch.set_num_threads(config.cpus_per_worker)
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        self._checkpoints = folder / CHECKPOINTS

    def reduce(self) -> Callable[[Tensor], Tensor]:
        """See `Runtime`."""
        return all_reduce if self.world_size > 1 else alone

    def wrap(self, module: nn.Module) -> nn.Module:
        """See `Runtime`."""
        return data_parallel(module, self.device) if self.world_size > 1 else module

    def report(self, record: Record, write: Callable[[Path], None]) -> None:
        """See `Runtime`."""
        epoch = int(record["epoch"])
        if self.rank == 0:
            write_folder(self._folder(epoch), write)
            for old in self._finished():
                if old not in (self._folder(epoch), self._folder(int(record["best_epoch"]))):
                    shutil.rmtree(old)
        if self.world_size > 1:
            dist.barrier()

    def latest_checkpoint(self) -> Path | None:
        """See `Runtime`."""
        return max(self._finished(), default=None)

    def checkpoint_of(self, epoch: int) -> Path | None:
        """See `Runtime`."""
        folder = self._folder(epoch)
        return folder if folder.exists() else None

    def close(self) -> None:
        """Leaves the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _folder(self, epoch: int) -> Path:
        return self._checkpoints / checkpoint_name(epoch)

    def _finished(self) -> list[Path]:
        return list(self._checkpoints.glob("epoch-*"))


def checkpoint_name(epoch: int) -> str:
    """Folder of an epoch's checkpoint, in `CHECKPOINTS` of a run without Ray Train."""
    return f"epoch-{epoch:05d}"


def numbers(values: Mapping[str, float]) -> Record:
    """The values as plain floats, in the same order: what Ray's reports and JSON take."""
    return {name: float(value) for name, value in values.items()}
