"""A folder of this node that holds copies of files of object stores, bounded in size.

`CGGM_CACHE` names the folder, `CGGM_CACHE_GIB` its size. What was used least recently is removed first. Files that were used in
the last `GRACE` seconds stay, because somebody may be about to open them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from cggm_ray.core.errors import UsageError, short_repr

FOLDER, SIZE = "CGGM_CACHE", "CGGM_CACHE_GIB"
DEFAULT_GIB = 64.0
GRACE = 30.0
LEFT_OVER = 24 * 3600.0
"""Seconds after which a part that nobody finished is removed."""
STRIPES = 64
"""Number of files for the locks, one of which a copy is made under."""


def cache_folder() -> Path:
    """Returns the folder of the cache, which is made."""
    given = os.environ.get(FOLDER)
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "cggm_ray"
    folder = Path(given).expanduser().absolute() if given else usual
    for part in ("files", "parts", "locks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


def cache_bytes() -> float:
    """Returns the size that the cache may have.

    Raises:
        UsageError: the variable holds something else than a positive number.
    """
    text = os.environ.get(SIZE, "")
    try:
        size = float(text) if text else DEFAULT_GIB
        if not size > 0:
            raise ValueError
    except ValueError:
        raise UsageError(f"{SIZE}: found {short_repr(text)}; expected a positive number of GiB") from None
    return size * 2**30


@contextmanager
def part_file(name: str) -> Iterator[Path]:
    """Gives the block the path of a new file in the cache's folder, which is removed afterwards.

    Args:
        name: its last part, for writers that depend on the suffix.
    """
    with tempfile.TemporaryDirectory(dir=cache_folder() / "parts") as folder:
        yield Path(folder) / name


def cached(url: str, version: str, size: int, download: Callable[[Path], None]) -> Path:
    """Returns a local copy of a file, which is made unless this node has one of that version.

    Of several processes that need it at once, one makes it.

    Args:
        url: of the file.
        version: changes when the file changes.
        size: bytes.
        download: writes a copy to a path.

    Raises:
        OSError: the copy cannot be made, or has another size.
    """
    folder = cache_folder()
    mark = hashlib.sha256(f"{url}\0{version}\0{size}".encode()).hexdigest()[:32]
    path = folder / "files" / mark[:2] / mark / url.rpartition("/")[2]
    if _use(path):
        return path
    with FileLock(folder / "locks" / str(int(mark[:8], 16) % STRIPES)):
        if _use(path):
            return path
        with part_file(path.name) as part:
            download(part)
            found = part.stat().st_size
            if found != size:
                raise OSError(5, f"found {found} bytes; expected {size}", url)
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
    _Bound.added(folder, size)
    return path


def _use(path: Path) -> bool:
    """Returns whether there is a copy, and marks it as used."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


class _Bound:
    """Keeps the cache within its size; looking at all of its files each time would take too long."""

    since = float("inf")
    """Bytes that this process added since it looked."""

    @classmethod
    def added(cls, folder: Path, size: int) -> None:
        cls.since += size
        limit = cache_bytes()
        if cls.since < 0.05 * limit:
            return
        cls.since = 0
        shrink(folder, 0.9 * limit)


def shrink(folder: Path, most: float) -> None:
    """Removes the files of a cache that were used least recently, until it has at most `most` bytes.

    Args:
        folder: of the cache.
        most: bytes that may stay.
    """
    now = time.time()
    found = []
    for path in (folder / "files").glob("*/*/*"):
        with suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if total <= most or used > now - GRACE:
            break
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()
        total -= size
    for left in (folder / "parts").iterdir():
        with suppress(OSError):
            if left.stat().st_mtime < now - LEFT_OVER:
                shutil.rmtree(left, ignore_errors=True)
