"""The raw files that a set is made from, and the name that follows from them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cggm_ray.core.errors import DataError, reason
from cggm_ray.data.shards.shards import FORMAT, Source
from cggm_ray.storage.base import is_url
from cggm_ray.storage.cache import cache_folder
from cggm_ray.storage.digests import file_digests
from cggm_ray.storage.places import is_local
from cggm_ray.storage.urls import UrlPath


def describe_sources(paths: Sequence[Path], folder: Path) -> tuple[Source, ...]:
    """Returns the size and checksum of every raw file, or of a file in a store its version.

    Args:
        paths: of the files.
        folder: of all sets, where checksums are kept for the next run.

    Raises:
        DataError: a file cannot be read.
    """
    local = [path for path in paths if is_local(path)]
    try:
        for path in paths:
            # A device or a pipe may have no end.
            if path.exists() and not path.is_file():
                raise DataError(f"{path}: found no regular file; expected a file")
        digests = dict(zip(local, file_digests(local, folder if is_local(folder) else cache_folder()), strict=True))
        return tuple(_described(path, digests.get(path)) for path in paths)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {reason(error)}") from None


def _described(path: Path, digest: str | None) -> Source:
    if digest is not None:
        return Source(path=str(path), bytes=path.stat().st_size, sha256=digest)
    size, version = file_version(path)
    return Source(path=str(path), bytes=size, sha256=f"version {version}")


def file_version(path: Path) -> tuple[int, str]:
    """Returns the size of a file, and a text that changes when it is replaced; its content is not read.

    That is the time of change, or in a store the version (the etag).

    Raises:
        OSError: there is no such file, or it cannot be reached.
    """
    if not isinstance(path, UrlPath):
        stat = path.stat()
        return stat.st_size, str(stat.st_mtime_ns)
    entry = path.entry()
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    return entry.size, entry.version


def fingerprint(dataset: str, converter: int, options: Mapping[str, Any], sources: Sequence[Source]) -> str:
    """Returns the name of the set that these sources make.

    It changes with any byte of them, with their places below the folder that holds them all, the options and the converter.
    """
    # A URL counts as an absolute path below its scheme.
    paths = [PurePosixPath("/" * is_url(source.path) + source.path) for source in sources]
    root = os.path.commonpath([path.parent for path in paths])
    content = [(path.relative_to(root).as_posix(), source.sha256) for path, source in zip(paths, sources, strict=True)]
    key = json.dumps([FORMAT, dataset, converter, options, content], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]
