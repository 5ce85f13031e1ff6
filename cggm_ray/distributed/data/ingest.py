"""Conversion of raw shards with Ray Data: one block a shard, taken through the stages and written by the last of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data

from cggm_ray.core.errors import DataError
from cggm_ray.data.shards.shards import RawShard, Shard, Stage
from cggm_ray.distributed.cluster import connect, own_error
from cggm_ray.distributed.data.extract import ERROR, NUMBER, SPLIT, add_stage


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
        dataset: ray.data.Dataset = ray.data.from_arrow([_labelled(shard) for shard in raw])
        for number, stage in enumerate(stages, start=1):
            dataset = add_stage(dataset, stage, folder if number == len(stages) else None)
        for row in dataset.iter_rows():
            # The first error stops what still runs.
            error = row.pop(ERROR)
            if error is not None:
                raise DataError(error)
            written[row["file"]] = Shard(**row)
    except Exception as failure:
        raise own_error(failure) or failure from failure
    return [written[shard.file] for shard in raw]


def _labelled(shard: RawShard) -> pa.Table:
    rows = shard.table.num_rows
    table = shard.table.append_column(SPLIT, pa.array([shard.split] * rows))
    return table.append_column(NUMBER, pa.array(np.full(rows, shard.number)))
