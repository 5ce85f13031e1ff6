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
from cggm_ray.errors import DataError

_SPLIT, _NUMBER, _PROBLEM = "__split", "__number", "__problem"


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
        # An error of the data comes back as a row: Ray Data wraps what a task raises, and its cause is lost on the way.
        try:
            done, problem = write_shard(transform, shard, folder), ""
        except DataError as error:
            done, problem = Shard(file=shard.file, rows=0, bytes=0, sha256=""), str(error)
        return pa.Table.from_pylist([{**asdict(done), _PROBLEM: problem}])

    written = {}
    try:
        dataset = ray.data.from_arrow([_labelled(shard) for shard in raw])
        for row in dataset.map_batches(convert, batch_size=None, batch_format="pyarrow").iter_rows():
            problem = row.pop(_PROBLEM)
            if problem:
                raise DataError(problem)
            written[row["file"]] = Shard(**row)
    except DataError:
        raise
    except Exception as error:
        raise own_error(error) or error from error
    return [written[shard.file] for shard in raw]


def _labelled(shard: RawShard) -> pa.Table:
    rows = shard.table.num_rows
    table = shard.table.append_column(_SPLIT, pa.array([shard.split] * rows))
    return table.append_column(_NUMBER, pa.array(np.full(rows, shard.number)))
