"""The loop's surroundings on a Ray Train worker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import ray.train
import ray.train.torch
from ray.train import Checkpoint
from torch import Tensor, nn

from cggm_ray.modulation.base import alone
from cggm_ray.runtime import Record, all_reduce, data_parallel


class RayRuntime:
    """A worker of a TorchTrainer; see `cggm_ray.runtime.Runtime`."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()

    def reduce(self) -> Callable[[Tensor], Tensor]:
        """See `Runtime`."""
        return all_reduce if self.world_size > 1 else alone

    def wrap(self, module: nn.Module) -> nn.Module:
        """See `Runtime`."""
        return data_parallel(module, self.device) if self.world_size > 1 else module

    def report(self, record: Record, write: Callable[[Path], None]) -> None:
        """See `Runtime`. Ray keeps the newest checkpoint and the one with the largest 'best_score'."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                write(Path(folder))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(record, checkpoint=checkpoint)

    def latest_checkpoint(self) -> Path | None:
        """See `Runtime`."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.path)

    def checkpoint_of(self, epoch: int) -> Path | None:
        """See `Runtime`."""
        for reported in ray.train.get_all_reported_checkpoints():
            if reported.metrics["epoch"] == epoch:
                return Path(reported.checkpoint.path)
        return None
