"""Locks between processes: a file that is locked for as long as a block runs, or until its process dies.

The lock is `filelock`'s, which is the operating system's (`flock`), so nothing has to be cleaned up after a killed process.
Network file systems that know no locks are taken as they are: there nobody is kept apart.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cggm_ray.storage.leases import leasing
from cggm_ray.storage.urls import UrlPath

UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks say."""
PERIOD = 0.5


@contextmanager
def holding(path: Path, busy: Callable[[str], None]) -> Iterator[bool]:
    """Holds the lock of a file, which is made, and removed afterwards; whether there is a lock is given to the block.

    Args:
        path: of the file, in a folder that exists.
        busy: called with the holder, such as 'process 7 on host', while another one holds the lock. It may raise; where
            it returns, the lock is requested again a little later.

    Raises:
        OSError: the file cannot be made.
    """
    if isinstance(path, UrlPath):
        with leasing(path.storage, path.key, busy):
            yield True
        return
    lock = FileLock(path, mode=0o644, fallback_to_soft=False)
    try:
        yield _acquire(lock, path, busy)
    finally:
        if lock.is_locked:
            # Removed while it is held: `filelock` locks no file that has lost its name, so whoever waits tries again.
            with suppress(OSError):
                path.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path, busy: Callable[[str], None]) -> bool:
    while True:
        try:
            lock.acquire(blocking=False)
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            return True
        except Timeout:
            with suppress(FileNotFoundError):  # released a moment ago
                holder = path.read_text(errors="replace")
                busy(holder or "another process")
                time.sleep(PERIOD)
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
            return False
