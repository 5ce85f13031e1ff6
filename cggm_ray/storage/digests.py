"""Checksums of raw files, cached between runs so that an unchanged file is not read again.

The cache is one file beside the sets of shards. If it is missing, damaged or not writable, files are read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cggm_ray.storage.files import file_digest, write_text

FILE = ".digests"
SETTLED_NS = 2 * 10**9
"""A file that changed less than this ago is read again next time.

Clocks of file systems are coarse, so it could change once more within one tick without a trace.
"""

Entry = tuple[tuple[int, ...], str]
"""State of a file, as `file_state` returns it, and its sha256."""


def file_state(path: Path) -> tuple[int, ...]:
    """Returns size, time of change, inode, and the time when any of these changed, which no program can set back."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def file_digests(paths: Sequence[Path], folder: Path) -> list[str]:
    """Returns the sha256 of files, reading only files that are new or changed since they were read last.

    Args:
        paths: of the files.
        folder: where the cache lies.

    Raises:
        OSError: a file cannot be read.
    """
    known = load_digests(folder)
    found: dict[str, Entry] = {}
    digests = []
    try:
        for path in paths:
            name, before = os.path.abspath(path), file_state(path)
            remembered = known.get(name)
            if remembered is not None and remembered[0] == before:
                digests.append(remembered[1])
                continue
            digests.append(file_digest(path))
            if before == file_state(path) and time.time_ns() - before[-1] > SETTLED_NS:
                found[name] = before, digests[-1]
    finally:
        # Digests that were computed before an error or an interrupt are kept too.
        if found:
            keep_digests(folder, found)
    return digests


def load_digests(folder: Path) -> dict[str, Entry]:
    """Returns the entries by absolute path; the dict is empty if the cache is missing or damaged."""
    try:
        checksum, _, text = (folder / FILE).read_text(encoding="utf-8").partition("\n")
        if checksum != _checksum(text):
            return {}
        content: dict[str, Any] = json.loads(text)
        return {name: (tuple(state), digest) for name, (state, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def keep_digests(folder: Path, found: dict[str, Entry]) -> None:
    """Adds entries to the cache.

    The file is replaced as a whole, so readers see the old or the new one. Of two runs that write at the same moment one may
    lose its entries, which costs that it reads its files once more.
    """
    # Where the disk is full or write-protected, that is said when a set is to be written.
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(load_digests(folder) | found)
        write_text(folder / FILE, f"{_checksum(text)}\n{text}")


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
