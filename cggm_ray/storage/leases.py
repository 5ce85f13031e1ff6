"""Locks in a storage: a lease that its holder renews, and that others may take when it is not renewed any more.

The lease of `runs/.first.lock` is the file `.first.lock.N` with the highest number N. Whoever takes a lease creates the file of
the next number, which only one process can; all that this needs of a store is `Storage.create`. A released lease leaves its
small file, so that numbers never begin again.

Clocks of machines are not compared. A holder on another machine is alive if its file changes while one watches, and
dead if it does not change for `LEASE` seconds; for a holder on this machine the table of processes is read.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import StorageError
from cggm_ray.core.threads import beside
from cggm_ray.storage.base import Storage

LEASE = 45.0
"""Seconds without a renewal after which others may take a lease."""
RENEWAL = 5.0
"""Seconds between two renewals."""
PERIOD = 1.0
FREE = b"{}"


@contextmanager
def leasing(storage: Storage, key: str, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds a lease while the block runs.

    Args:
        storage: that has it.
        key: of the lease.
        busy: called with the holder, such as 'process 7 on host', while another one holds it. It may raise; where it returns,
            the next try follows a little later.

    Raises:
        OSError: the storage cannot be reached.
    """
    lease = _take(storage, key, busy)
    try:
        with beside(lease.renew_until):
            yield
    finally:
        lease.release()


class Fence:
    """Tells a process that writes under a lease, on whatever machine, when somebody else has taken that lease.

    Args:
        storage: that has the lease.
        key: of the lease.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._number = newest(storage, key)

    def check(self) -> None:
        """Raises a StorageError if the lease has another holder than at the beginning."""
        number = newest(self._storage, self._key)
        if number > self._number:
            holder = _content(self._storage, self._key, number).get("holder", "another process")
            raise StorageError(
                f"{self._storage.url}/{self._key} was taken by {holder}, because this run had not renewed it for "
                f"{LEASE:.0f} seconds; this run stops, and nothing more is written there"
            )


class _Lease:
    def __init__(self, storage: Storage, key: str, number: int, content: dict[str, Any]) -> None:
        self._storage, self._key, self._number, self._content = storage, key, number, content

    def renew_until(self, done: threading.Event) -> None:
        while not done.wait(RENEWAL):
            self._content["renewals"] += 1
            # Where the storage is away, it is tried again; whoever writes meanwhile says what is wrong with it.
            with suppress(OSError):
                if newest(self._storage, self._key) > self._number:
                    return
                self._storage.write(_name(self._key, self._number), _text(self._content))

    def release(self) -> None:
        with suppress(OSError):
            if newest(self._storage, self._key) == self._number:
                self._storage.write(_name(self._key, self._number), FREE)


def holder_of(storage: Storage, key: str) -> str | None:
    """Returns who holds a lease, or None where it is free. A holder that was killed on another machine is still named."""
    number = newest(storage, key)
    found = _content(storage, key, number) if number else {}
    return None if not found or _here(found) is False else str(found.get("holder", "another process"))


def newest(storage: Storage, key: str) -> int:
    """Returns the number of a lease's last holder, or 0 if there never was one."""
    ends = (name.removeprefix(f"{key}.") for name in storage.list(f"{key}."))
    return max((int(end) for end in ends if end.isdigit()), default=0)


def _take(storage: Storage, key: str, busy: Callable[[str], None]) -> _Lease:
    mine = {
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "machine": _machine(),
        "process": _process(os.getpid()),
        "token": uuid.uuid4().hex,
        "renewals": 0,
    }
    watched: tuple[int, dict[str, Any]] | None = None
    since, told = 0.0, False
    while True:
        number = newest(storage, key)
        found = _content(storage, key, number) if number else {}
        if watched != (number, found):
            alive = watched is not None and watched[0] == number and bool(found)
            watched, since = (number, found), time.monotonic()
            if alive:
                busy(found["holder"])
        if _here(found) is True:
            busy(found["holder"])
        elif not found or _here(found) is False or time.monotonic() - since > LEASE:
            text = _text(mine)
            # A repeated request may find what the first one wrote.
            if storage.create(_name(key, number + 1), text) or storage.read(_name(key, number + 1)) == text:
                _remove_older(storage, key, number + 1)
                return _Lease(storage, key, number + 1, mine)
            continue
        elif not told:
            told = True
            print(
                f"{storage.url}: waits up to {LEASE:.0f} seconds to see whether {found['holder']} still runs",
                flush=True,
            )
        time.sleep(PERIOD)


def _remove_older(storage: Storage, key: str, number: int) -> None:
    with suppress(OSError):
        for name in storage.list(f"{key}."):
            end = name.removeprefix(f"{key}.")
            if end.isdigit() and int(end) < number:
                storage.delete(name)


def _content(storage: Storage, key: str, number: int) -> dict[str, Any]:
    """The content of a lease; it is empty where the lease is free."""
    try:
        found = json.loads(storage.read(_name(key, number)))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    return found if isinstance(found, dict) and (not found or "holder" in found) else {"holder": "another process"}


def _name(key: str, number: int) -> str:
    return f"{key}.{number:06d}"


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _here(found: dict[str, Any]) -> bool | None:
    """Whether a holder runs on this machine; None if it is of another machine, or if that cannot be known."""
    if not found or found.get("machine") is None or found["machine"] != _machine():
        return None
    process = found.get("process")
    return isinstance(process, list) and bool(process) and _process(process[0]) == process


def _machine() -> list[str] | None:
    """What only processes that see each other have in common: the start of the system, and the namespace of process numbers."""
    try:
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        return None


def _process(number: int) -> list[int] | None:
    """Number and time of start of a process that runs, since numbers are given again."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else [number, int(fields[19])]
    except (OSError, IndexError, ValueError):
        return None
