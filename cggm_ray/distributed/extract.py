"""The stages of a conversion as Ray Data operators: tasks for plain work, a pool of actors for what holds a model.

Decoding runs in tasks of half a CPU each, several shards ahead of the actors; the actors hold the encoders, on a GPU each
if the cluster has any, and write what they computed, so features do not travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from cggm_ray.data.shards import RawShard, Stage, Transform, write_shard

SPLIT, NUMBER = "__split", "__number"
MOST_CPU_ACTORS = 4
TASK_CPUS = 0.5


class Work:
    """A stage as Ray Data calls it: the block of a shard to the same, or to what was written.

    Args:
        make: of the stage; called here.
        folder: the shard is written into it; None for the stages before the last.
    """

    def __init__(self, make: Callable[[], Transform], folder: Path | None) -> None:
        self._transform = make()
        self._folder = folder

    def __call__(self, block: pa.Table) -> pa.Table:
        """Of one block."""
        split, number = block.column(SPLIT)[0], block.column(NUMBER)[0]
        table = block.drop_columns([SPLIT, NUMBER])
        if self._folder is not None:
            raw = RawShard(split=split.as_py(), number=number.as_py(), table=table)
            return pa.Table.from_pylist([asdict(write_shard(self._transform, raw, self._folder))])
        table = self._transform(table)
        table = table.append_column(SPLIT, pa.array([split.as_py()] * table.num_rows))
        return table.append_column(NUMBER, pa.array([number.as_py()] * table.num_rows))


def add_stage(dataset: ray.data.Dataset, stage: Stage, folder: Path | None) -> ray.data.Dataset:
    """The dataset with a stage more; with a folder the stage writes its shards."""
    if not stage.pooled:
        make = stage.make
        return dataset.map_batches(
            lambda block: Work(make, folder)(block), batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS
        )
    return dataset.map_batches(
        Work, fn_constructor_args=(stage.make, folder), batch_size=None, batch_format="pyarrow", **actor_pool()
    )


def actor_pool() -> dict[str, Any]:
    """How many actors hold the model, and on what: one per GPU, else one per two CPUs, up to 4."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    size = gpus or max(1, min(MOST_CPU_ACTORS, cpus // 2))
    # Other arguments than those of the tasks keep Ray Data from running the tasks inside the actors. A single CPU is
    # left to the tasks, without which the actors would wait for ever.
    return {
        "compute": ray.data.ActorPoolStrategy(size=size),
        "num_gpus": 1 if gpus else 0,
        "num_cpus": 1 if cpus > 1 else 0,
    }
