"""Opens h5 files that may be damaged, and checks their arrays before memory is allocated for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import DataError
from cggm_ray.core.optional import require
from cggm_ray.data.formats.untrusted import check_size, reading
from cggm_ray.storage.places import is_local

PROBE = Path(__file__).with_name("h5_probe.py")
TOGETHER = 16
"""Number of files of a store that the other process looks at."""
PATIENCE_S = 120
"""Time limit of the other process in seconds, in addition to one second per file."""


@contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """Opens an h5 file for reading.

    Raises:
        DataError: the file is none, or its library finds it damaged while it is open.
    """
    h5py = require("h5py", extra="h5", purpose="h5 files")

    with reading(path, "h5 file"), h5py.File(path, "r") as file:
        yield file


def probe(paths: Sequence[Path]) -> None:
    """Reads the structure of files in another process first, because the library crashes on some damaged files.

    Raises:
        DataError: the library crashes on a file, or never comes back.
    """
    # Copies of files of a store may make room for others, so a few are looked at together.
    together = len(paths) if all(map(is_local, paths)) else TOGETHER
    for start in range(0, len(paths), max(1, together)):
        _probe(paths[start : start + together])


def _probe(paths: Sequence[Path]) -> None:
    lines = "".join(json.dumps(os.fspath(path)) + "\n" for path in paths)
    command = [sys.executable, str(PROBE)]
    try:
        done = subprocess.run(
            command, input=lines.encode(), capture_output=True, timeout=PATIENCE_S + len(paths), check=False
        )
        seen, ended = done.stdout.count(b"\n"), f"ends with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        seen, ended = (error.stdout or b"").count(b"\n"), "does not come back"
    if seen < len(paths):
        raise DataError(
            f"{paths[seen]}: the h5 library {ended} on this file; expected a readable h5 file (a broken copy?)"
        )


def check_dataset(file: Any, key: str, path: Path, where: str) -> None:
    """Checks that an entry of an h5 file is an array of numbers inside the file, of a size that the file can hold.

    Args:
        file: of h5py, open.
        key: of the entry.
        path: of the file.
        where: what the entry is called in messages.

    Raises:
        DataError: it is something else, or its values are to be read from other files.
    """
    try:
        dataset = file[key]
    except (KeyError, RuntimeError, OSError, ValueError):
        raise DataError(
            f"{path}: {where} cannot be opened; expected an array of numbers (a link to nothing, or a broken copy?)"
        ) from None
    if not hasattr(dataset, "shape") or dataset.shape is None or dataset.dtype.kind not in "fiu":
        found = f"an array of {dataset.dtype}" if hasattr(dataset, "dtype") else "a group"
        raise DataError(f"{path}: {where} is {found}; expected an array of numbers")
    if dataset.external or dataset.is_virtual or dataset.file.filename != os.fspath(path):
        raise DataError(f"{path}: {where} takes its values from other files; expected them in this one")
    # Values are computed with in four bytes or more.
    declared = dataset.size * max(4, dataset.dtype.itemsize)
    check_size(declared, path.stat().st_size, f"{path}: {where}, shape {dataset.shape}")
