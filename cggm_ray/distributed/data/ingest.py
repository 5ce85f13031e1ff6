"""Conversion of raw shards with Ray Data: a block has a shard, or several that one task reads one after the other. Blocks are
taken through the stages, and the last stage writes the shards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data

from cggm_ray.core.errors import DataError
from cggm_ray.data.shards.progress import Progress
from cggm_ray.data.shards.shards import RawShard, Shard, Stage, Transform
from cggm_ray.distributed.cluster import connect, own_error
from cggm_ray.distributed.data.extract import ERROR, NUMBER, SPLIT, TASK_CPUS, add_stage
from cggm_ray.distributed.waiting import Arrivals


def write_shards_with_ray(stages: Sequence[Stage], raw: Sequence[RawShard], folder: Path) -> list[Shard]:
    """Writes all shards with Ray Data, into a folder that all nodes mount.

    Raises:
        DataError: from a stage, or because the folder cannot be written.
    """
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    written: dict[str, Shard] = {}
    try:
        blocks = [pa.concat_tables(map(_labelled, shards)) for shards in _together(raw)]
        steps = list(_fused(stages))
        # More tasks than CPUs take more memory and no less time.
        cpus = TASK_CPUS if any(stage.pooled for stage in steps) else 1
        progress, arrivals = Progress(len(raw)), Arrivals("shards", len(raw))
        with arrivals.beating():
            # This waits for a task of Ray's own.
            dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
            for number, stage in enumerate(steps, start=1):
                dataset = add_stage(dataset, stage, folder if number == len(steps) else None, cpus)
            for row in dataset.iter_rows():
                # The first error stops what still runs.
                error = row.pop(ERROR)
                if error is not None:
                    raise DataError(error)
                written[row["file"]] = progress.after(Shard(**row))
                arrivals.arrived()
    except Exception as failure:
        raise own_error(failure) or failure from failure
    return [written[shard.file] for shard in raw]


def _together(raw: Sequence[RawShard]) -> Iterator[list[RawShard]]:
    """Yields shards that one task makes; a shard that names no others is alone."""
    for together, shards in groupby(raw, lambda shard: shard.together):
        if together:
            yield list(shards)
        else:
            yield from ([shard] for shard in shards)


def _fused(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Yields stages in which those without a pool that follow each other are one, so that a task hands nothing to another."""
    for pooled, some in groupby(stages, lambda stage: stage.pooled):
        if pooled:
            yield from some
        else:
            yield Stage(make=partial(_one_after_the_other, [stage.make for stage in some]))


def _one_after_the_other(makes: Sequence[Callable[[], Transform]]) -> Transform:
    transforms = [make() for make in makes]
    return lambda table: reduce(lambda done, transform: transform(done), transforms, table)


def _labelled(shard: RawShard) -> pa.Table:
    rows = shard.table.num_rows
    table = shard.table.append_column(SPLIT, pa.array([shard.split] * rows))
    return table.append_column(NUMBER, pa.array(np.full(rows, shard.number)))
