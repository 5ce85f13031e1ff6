"""Text files that are compressed as a whole, such as train.csv.gz."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from cggm_ray.data.formats.untrusted import check_size

_OPENED: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: pa.CompressedInputStream(file, "zstd"),
}
"""By suffix, what unpacks a file that is open."""
_READ_BYTES = 2**22


def is_packed(path: Path) -> bool:
    """Returns whether a file is compressed as a whole, by its name."""
    return path.suffix.lower() in _OPENED


def suffix_of(path: Path) -> str:
    """Returns the suffix that says the format, in small letters: .csv of train.csv and of train.csv.gz."""
    return PurePath(path.stem).suffix.lower() if is_packed(path) else path.suffix.lower()


def read_unpacked(path: Path) -> bytes:
    """Returns the content of a file, unpacked if it is compressed.

    Raises:
        DataError: it unfolds to far more than its own size.
        Exception: what the library of the format raises for a damaged file.
    """
    if not is_packed(path):
        return path.read_bytes()
    held, parts, size = path.stat().st_size, [], 0
    with path.open("rb") as packed, _OPENED[path.suffix.lower()](packed) as file:
        while part := file.read(_READ_BYTES):
            size += len(part)
            check_size(size, held, str(path), "unpack it first")
            parts.append(part)
    return b"".join(parts)
