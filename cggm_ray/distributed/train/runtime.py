"""The loop's surroundings on a Ray Train worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ray.train
import ray.train.torch
from torch import nn

from cggm_ray.core.reduction import Reduction
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.runtime import Record, all_reduce, data_parallel, save_on_rank_0
from cggm_ray.engine.state import Position
from cggm_ray.engine.stopping import Agreement, Notice

STOP = ".stop"
"""File in the folder of a run, by which its driver tells the workers to save and stop."""
PERIOD = 2.0
"""Seconds between two questions about preemption: each is a barrier through an actor of Ray Train."""


class RayRuntime:
    """A worker of a TorchTrainer; see `cggm_ray.engine.runtime.Runtime`.

    Checkpoints lie in the folder of the run, which all nodes share, as they do without Ray. Ray Train gets the metrics: its
    own record of checkpoints is a file that it rewrites in place, and a crash in the middle of that would end the run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.checkpoints = Checkpoints(folder)
        self._stop = folder / STOP
        self._agreement = Agreement(self.wish, self.world_size, self.reduce(), self.device, PERIOD)

    def reduce(self) -> Reduction:
        """See `Runtime`."""
        return Reduction(all_reduce, self.world_size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See `Runtime`."""
        return data_parallel(module, self.device) if self.world_size > 1 else module

    def save(self, position: Position, write: Callable[[Path], None]) -> None:
        """See `Runtime`."""
        save_on_rank_0(self, position, write)

    def report(self, record: Record, write: Callable[[Path], None]) -> None:
        """See `Runtime`."""
        self.save(Position(int(record["epoch"])), write)
        ray.train.report(record)

    def notice(self, now: bool = False) -> Notice:
        """See `Runtime`."""
        return self._agreement(now)

    def wish(self) -> Notice:
        """See `Runtime`.

        A node that is about to be taken away has the loop save at every look; Ray Train starts the workers again then.
        """
        preempted = ray.train.get_preemption_info() is not None
        if self.rank == 0 and self._stop.exists():
            return Notice.STOP
        return Notice.SAVE if preempted else Notice.NONE
