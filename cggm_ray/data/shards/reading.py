"""Opens shards for reading by position, in a folder or in a store."""

from __future__ import annotations

import functools
from pathlib import Path

import pyarrow.parquet as pq

from cggm_ray.storage.urls import UrlPath


def open_shard(path: Path) -> pq.ParquetFile:
    """Opens a shard. In a store only what is read of it is fetched, and its footer once in a process.

    Raises:
        OSError, ValueError, pa.ArrowException: it cannot be read.
    """
    if not isinstance(path, UrlPath):
        return pq.ParquetFile(path)
    files, root = path.storage.filesystem()
    return pq.ParquetFile(f"{root}/{path.key}", filesystem=files, metadata=_footer(path))


@functools.lru_cache(maxsize=4096)
def _footer(path: UrlPath) -> pq.FileMetaData:
    """Returns the footer of a shard, which does not change once its set is published."""
    files, root = path.storage.filesystem()
    return pq.read_metadata(f"{root}/{path.key}", filesystem=files)
