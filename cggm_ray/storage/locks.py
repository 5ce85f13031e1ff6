"""Locks between processes: a file that is locked for as long as a block runs, or until its process dies.

The lock is the operating system's (`flock`), so nothing has to be cleaned up after a killed process. Network file systems that
know no locks are taken as they are: there nobody is kept apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks say."""
PERIOD = 0.5


@contextmanager
def holding(path: Path, busy: Callable[[str], None]) -> Iterator[bool]:
    """Holds the lock of a file, which is made, and removed afterwards; whether there is a lock is given to the block.

    Args:
        path: of the file, in a folder that exists.
        busy: called with the holder, such as 'process 7 on host', while another one holds the lock. It may raise; where
            it returns, the lock is asked for again a little later.

    Raises:
        OSError: the file cannot be made.
    """
    handle = _acquire(path, busy)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            # Removed while it is held: who waits for it sees that it is no longer the file of that name.
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def _acquire(path: Path, busy: Callable[[str], None]) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
            os.close(handle)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace")
            os.close(handle)
            busy(holder or "another process")
            time.sleep(PERIOD)
        except OSError as error:
            os.close(handle)
            if error.errno not in UNKNOWN:
                raise
            return None


def _is(path: Path, handle: int) -> bool:
    """Whether the file of that name is still the one that was opened."""
    try:
        there, opened = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
