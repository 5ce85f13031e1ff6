"""The runtime of the loop on a Ray Train worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray.train
import ray.train.torch

from cggm_ray.distributed.metrics import Gauges
from cggm_ray.engine.runtime import GroupRuntime, Record, RunConfig
from cggm_ray.engine.stopping import Notice
from cggm_ray.storage.mirror import mirror_of

STOP = ".stop"
"""File in the folder of a run through which the driver tells the workers to save and stop."""
PERIOD = 2.0
"""Seconds between two queries about preemption. Each query is a barrier through an actor of Ray Train."""
# Ray has it from 2.58 on.
_preemption = getattr(ray.train, "get_preemption_info", lambda: None)


class RayRuntime(GroupRuntime):
    """Runs the loop on a worker of a TorchTrainer. It implements `cggm_ray.engine.runtime.Runtime`.

    Checkpoints lie in the folder of the run, which all nodes share, as they do without Ray. Ray Train gets the metrics: its
    own record of checkpoints is a file that it rewrites in place, and a crash in the middle of that would end the run.

    Args:
        folder: of the run.
        config: says how many checkpoints are kept.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        context = ray.train.get_context()
        self._mirror = mirror_of(folder)
        self._gauges = Gauges(folder.name, context.get_world_rank())
        device = ray.train.torch.get_device()
        super().__init__(context.get_world_rank(), context.get_world_size(), device, folder, config, PERIOD)

    measures = True

    def measure(self, values: Mapping[str, float]) -> None:
        """Sets the gauges of this worker."""
        self._gauges.set(values)

    def publish(self, record: Record) -> None:
        """Reports the metrics of an epoch to Ray Train, from the thread that trains."""
        ray.train.report(record)

    def local_notice(self) -> Notice:
        """Returns the notice of this worker only.

        While a node is about to be removed, every check returns SAVE; Ray Train starts the workers again afterwards. Before
        Ray 2.58 a run is not told about that, and goes on from its last checkpoint.
        """
        # Ray Train makes this a broadcast: it returns when every worker has called it.
        preempted = _preemption() is not None
        if self.rank == 0 and self.stop_requested():
            return Notice.STOP
        return Notice.SAVE if preempted else Notice.NONE

    def stop_requested(self) -> bool:
        """Returns whether the driver has asked the run to stop."""
        return self._mirror.flag(STOP)
