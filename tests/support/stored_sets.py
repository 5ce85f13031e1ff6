"""Sets in their stored form, written by the product from arrays that a test knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from cggm_ray.data.shards.shards import INDEX, TARGET, Manifest, RawShard, tensor_column, write_shard
from cggm_ray.data.shards.specs import described, table_specs


def stored(folder: Path, columns: Mapping[str, np.ndarray], shards: int) -> Manifest:
    """Writes the split train in that many shards; its manifest.

    Args:
        folder: of the set, which is made.
        columns: [samples, ...] by name of the column.
        shards: files, of about the same number of samples.
    """
    folder.mkdir(parents=True)
    samples = len(next(iter(columns.values())))
    whole = {INDEX: np.arange(samples), TARGET: np.zeros((samples, 1), np.float32), **columns}
    written, table = [], pa.table({})
    for number, rows in enumerate(np.array_split(np.arange(samples), shards)):
        table = pa.table({name: tensor_column(values[rows]) for name, values in whole.items()})
        raw = RawShard(split="train", number=number, table=table)
        written.append(write_shard(lambda table: table, raw, folder))
    return Manifest(
        dataset="features",
        converter=1,
        options={},
        sources=(),
        splits={"train": tuple(written)},
        **described(table_specs(table)),
    )
