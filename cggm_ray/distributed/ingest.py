"""Conversion of raw shards with Ray Data: one block a shard, transformed and written by a task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data

from cggm_ray.data.shards import RawShard, Shard, write_shard
from cggm_ray.distributed.cluster import connect, own_error

_SPLIT, _NUMBER = "__split", "__number"


def write_shards_with_ray(
    transform: Callable[[pa.Table], pa.Table], raw: Sequence[RawShard], folder: Path
) -> list[Shard]:
    """Writes all shards with Ray Data tasks, into a folder that all nodes mount.

    Raises:
        DataError: from a transform, or because the folder cannot be written.
    """
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def convert(block: pa.Table) -> pa.Table:
        shard = RawShard(
            split=block.column(_SPLIT)[0].as_py(),
            number=block.column(_NUMBER)[0].as_py(),
            table=block.drop_columns([_SPLIT, _NUMBER]),
        )
        return pa.Table.from_pylist([asdict(write_shard(transform, shard, folder))])

    try:
        dataset = ray.data.from_arrow([_labelled(shard) for shard in raw])
        rows = dataset.map_batches(convert, batch_size=None, batch_format="pyarrow").take_all()
    except Exception as error:
        raise own_error(error) or error from error
    written = {row["file"]: Shard(**row) for row in rows}
    return [written[shard.file] for shard in raw]


def _labelled(shard: RawShard) -> pa.Table:
    rows = shard.table.num_rows
    table = shard.table.append_column(_SPLIT, pa.array([shard.split] * rows))
    return table.append_column(_NUMBER, pa.array(np.full(rows, shard.number)))
