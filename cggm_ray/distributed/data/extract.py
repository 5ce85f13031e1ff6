"""Runs the stages of a conversion as Ray Data operators: tasks for plain work, a pool of actors for stages with a model.

Decoding runs in tasks of half a CPU each, several shards ahead of the actors, or of a whole CPU where there are no actors. The
actors hold the encoders, on a GPU each if the cluster has any, and write what they computed, so features do not travel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from cggm_ray.core.errors import CggmError, DataError
from cggm_ray.data.shards.shards import RawShard, Shard, Stage, Transform, write_shard

SPLIT, NUMBER, ERROR = "__split", "__number", "__error"
MOST_CPU_ACTORS = 4
TASK_CPUS = 0.5


class Work:
    """Adapts a stage to Ray Data: it maps the block of a shard to the next block, or writes the shard.

    It takes the shards of a block that has several one after the other.

    An error of this package travels in the blocks, in the column `ERROR`, up to the driver: on the way through Ray Data an
    exception can lose its type and its text.

    Args:
        make: of the stage; called with the first block.
        folder: the shard is written into it; None for the stages before the last.
    """

    def __init__(self, make: Callable[[], Transform], folder: Path | None) -> None:
        self._transform = functools.cache(make)
        self._folder = folder

    def __call__(self, block: pa.Table) -> pa.Table:
        """Runs the stage on one block."""
        try:
            if ERROR in block.column_names:
                raise DataError(block.column(ERROR)[0].as_py())
            return pa.concat_tables([self._one(part) for part in _shards(block)])
        except CggmError as error:
            nothing = Shard(file="", rows=0, bytes=0, sha256="")
            return written(nothing, str(error)) if self._folder is not None else pa.table({ERROR: [str(error)]})

    def _one(self, block: pa.Table) -> pa.Table:
        split, number = block.column(SPLIT)[0].as_py(), block.column(NUMBER)[0].as_py()
        table = block.drop_columns([SPLIT, NUMBER])
        if self._folder is not None:
            raw = RawShard(split=split, number=number, table=table)
            return written(write_shard(self._transform(), raw, self._folder), None)
        table = self._transform()(table)
        table = table.append_column(SPLIT, pa.array([split] * table.num_rows))
        return table.append_column(NUMBER, pa.array([number] * table.num_rows))


def _shards(block: pa.Table) -> Iterator[pa.Table]:
    """Yields the rows of each shard of a block."""
    labels = list(zip(block.column(SPLIT).to_pylist(), block.column(NUMBER).to_pylist(), strict=True))
    start = 0
    for _, rows in groupby(labels):
        count = sum(1 for _ in rows)
        # A part of the buffers of a block may count as other bytes than its own buffers, and the row groups depend on them.
        yield block if count == len(labels) else block.take(pa.array(range(start, start + count)))
        start += count


def written(shard: Shard, error: str | None) -> pa.Table:
    """Returns the single row that the last stage yields."""
    return pa.table({**{name: [v] for name, v in asdict(shard).items()}, ERROR: pa.array([error], pa.string())})


def add_stage(
    dataset: ray.data.Dataset, stage: Stage, folder: Path | None, cpus: float = TASK_CPUS
) -> ray.data.Dataset:
    """Adds a stage to the dataset; with a folder the stage writes its shards there, and `cpus` is what a task takes."""
    if not stage.pooled:
        make = stage.make
        return dataset.map_batches(
            lambda block: Work(make, folder)(block), batch_size=None, batch_format="pyarrow", num_cpus=cpus
        )
    return dataset.map_batches(
        Work, fn_constructor_args=(stage.make, folder), batch_size=None, batch_format="pyarrow", **actor_pool()
    )


def actor_pool() -> dict[str, Any]:
    """Returns the pool of actors that hold the model: up to one per GPU, or one per two CPUs, at most 4.

    It begins with one, grows while blocks wait, and shrinks when there are none.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    size = gpus or max(1, min(MOST_CPU_ACTORS, cpus // 2))
    # Other arguments than those of the tasks keep Ray Data from running the tasks inside the actors. A single CPU is
    # left to the tasks, without which the actors would wait for ever.
    return {
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=size),
        "num_gpus": 1 if gpus else 0,
        "num_cpus": 1 if cpus > 1 else 0,
    }
