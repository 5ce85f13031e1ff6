"""Folders of runs that are kept in a storage: the run works in a folder of this node, which mirrors its URL.

`mirror_of` gives what belongs to a path: a `Mirror`, or for every path that mirrors nothing a `Plain` that has nothing to do.

The storage is the truth. At its start a run makes its folder equal to it, and what it writes is put there whole: folders with
checksums with that file last, so a reader that requires it never takes half of them.
"""

from __future__ import annotations

import errno
import functools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from cggm_ray.core.errors import CggmError, StorageError
from cggm_ray.storage import files
from cggm_ray.storage.base import Entry, Storage, check_key, open_storage
from cggm_ray.storage.files import CHECKSUMS, file_digest, whole_file
from cggm_ray.storage.leases import Fence, leasing
from cggm_ray.storage.plain import Plain
from cggm_ray.storage.work import url_of

APART = "checkpoints"
"""Folder whose content is put and fetched one folder at a time, and not with everything else."""
APPENDED = (".jsonl", ".log")
"""Ends of files that only grow: of two versions the longer one is the newer one."""
RAY = ".ray"
"""Folder in that of all runs for what Ray keeps about them."""
LAST = "summary.json"
"""Says that the work in a folder is over, so it is put last."""

_SAME: dict[Path, tuple[str, tuple[int, int]]] = {}
"""What this process knows of local files: the version in the storage that one has, and its size and time of change then."""


@functools.lru_cache(maxsize=256)
def mirror_of(folder: Path) -> Plain:
    """Returns what keeps a folder equal to its URL; the same object for every call in this process."""
    url = url_of(folder)
    return Plain(folder) if url is None else Mirror(folder, url)


@contextmanager
def at_hand(folder: Path) -> Iterator[Path]:
    """Fetches what a URL has of a run, except for its checkpoints, and puts what the block adds.

    Args:
        folder: of `read_folder`.

    Raises:
        StorageError: the storage cannot be reached.
    """
    mirror_of(folder).pull()
    yield folder
    mirror_of(folder).push()


class Mirror(Plain):
    """A folder of this node, and the URL that it mirrors.

    Hidden files are of this node only. Where the storage cannot be reached, or another process has taken the lease, `pull`,
    `join` and `push` raise a StorageError; the other methods may raise an OSError.

    Args:
        folder: of this node.
        url: that it mirrors.
    """

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.url, self._above = url, open_storage(url.rpartition("/")[0])
        self._storage: Storage = open_storage(url)
        self._lock = f".{folder.name}.lock"
        self._fence: Fence | None = None

    @contextmanager
    def owned(self, busy: Callable[[str], None]) -> Iterator[object]:
        """Holds the lease of the URL. The folder is made equal to the storage first, and put there at the end.

        Args:
            busy: called with the holder while another one has the lease; it may raise.
        """
        with leasing(self._above, self._lock, busy):
            self._fence = Fence(self._above, self._lock)
            self.pull()
            with self._putting():
                yield None

    def look(self, name: str, longer: bool = False) -> None:
        """Fetches one small file, without any lock.

        Args:
            name: of the file.
            longer: whether a local one that is longer stays.
        """
        entry = self._storage.entry(name)
        # A file that one request does not find is looked for by another one, because an answer may be wrong once.
        found = self._storage.entries(name) if entry is None else [entry]
        self._update([entry for entry in found if entry.key == name], longer)

    def pull(self) -> None:
        """Makes the folder equal to the storage, except for checkpoints and hidden files."""
        with self._telling():
            entries = self._entries()
            there = {entry.key for entry in entries}
            self._update(entries)
            for path in self._local():
                if self._key(path) not in there:
                    path.unlink()

    def join(self) -> None:
        """Fetches what others have written, and keeps what this node has written since."""
        with self._telling():
            self._fence = None
            self._start()
            self._update(self._entries(), longer=True)

    @contextmanager
    def taking_part(self, puts: bool = True) -> Iterator[None]:
        """Fetches before the block what others have written, and puts afterwards what the block wrote."""
        self.join()
        if not puts:
            yield
            return
        with self._putting():
            yield

    def push(self) -> None:
        """Puts the files that have changed, except for checkpoints and hidden files."""
        with self._telling():
            self._start().check()
            changed = [path for path in self._local() if self._changed(path)]
            whole = sorted({path.parent for path in changed if (path.parent / CHECKSUMS).exists()})
            for folder in whole:
                self._put_folder(folder)
            rest = [path for path in changed if path.parent not in whole]
            for path in sorted(rest, key=lambda path: (path.name == LAST, path)):
                self._put(path)

    def publish(self, folder: Path) -> None:
        """Puts a folder with checksums, that file last.

        Raises:
            StorageError: another process has taken this run's lease.
        """
        self._start().check()
        self._put_folder(folder)

    def remove(self, folder: Path) -> None:
        """Removes a folder inside this one, here and in the storage; its checksums are removed first."""
        marker = f"{self._key(folder)}/{CHECKSUMS}"
        self._storage.delete(marker)
        for key in self._storage.list(f"{self._key(folder)}/"):
            self._storage.delete(key)
        shutil.rmtree(folder, ignore_errors=True)

    def fetch_all(self, name: str) -> None:
        """Makes a folder of folders with checksums equal to the storage; what is not whole there is removed in both.

        Args:
            name: of that folder.
        """
        self._start()
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        keys = self._storage.list(f"{name}/")
        found = {key.split("/")[1] for key in keys if key.count("/") == 2}
        whole = {part for part in found if f"{name}/{part}/{CHECKSUMS}" in keys}
        for folder in (self.folder / name).iterdir():
            if folder.name not in whole and not folder.name.startswith("."):
                shutil.rmtree(folder)
        for part in sorted(found - whole):
            self.remove(self.folder / name / part)
        for part in sorted(whole):
            self.fetch(self.folder / name / part)

    def fetch(self, folder: Path) -> None:
        """Fetches a folder with checksums, unless this node has it; nothing happens where the storage has not got it."""
        key = self._key(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several workers of a node want the same one.
        with FileLock(folder.with_name(f".{folder.name}.fetching")):
            try:
                marker = self._storage.read(f"{key}/{CHECKSUMS}")
            except FileNotFoundError:
                return
            if (folder / CHECKSUMS).exists() and (folder / CHECKSUMS).read_bytes() == marker:
                return
            shutil.rmtree(folder, ignore_errors=True)
            with files.whole_folder(folder) as partial:
                for name, digest in _digests(marker, f"{self.url}/{key}/{CHECKSUMS}").items():
                    self._storage.download(f"{key}/{name}", partial / check_key(name))
                    if file_digest(partial / name) != digest:
                        # A transfer may have been cut; whoever uses the file reports one that is damaged in the storage.
                        self._storage.download(f"{key}/{name}", partial / name)
                (partial / CHECKSUMS).write_bytes(marker)

    def set_aside(self) -> str | None:
        """Copies every file to a name with a number and removes the old ones; returns the new URL, or None."""
        name = self.folder.name
        keys = self._above.list(f"{name}/")
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in [path for path in _SAME if path.is_relative_to(self.folder)]:
            del _SAME[path]
        if not keys:
            return None
        taken = {key.partition("/")[0] for key in self._above.list(f"{name}.")}
        number = 1
        while f"{name}.{number}" in taken:
            number += 1
        for key in keys:
            self._above.copy(key, f"{name}.{number}/{key.removeprefix(f'{name}/')}")
        for key in keys:
            self._above.delete(key)
        return f"{self._above.url}/{name}.{number}"

    def raise_flag(self, name: str) -> None:
        """Makes an empty file, here and in the storage, that other processes look for."""
        super().raise_flag(name)
        self._storage.write(name, b"")

    def lower_flag(self, name: str) -> None:
        """Removes the file of `raise_flag`, here and in the storage."""
        super().lower_flag(name)
        self._storage.delete(name)

    def flag(self, name: str) -> bool:
        """Returns whether `raise_flag` was called on this node or another."""
        return super().flag(name) or self._storage.entry(name) is not None

    def for_ray(self) -> dict[str, Any]:
        """Returns the arguments of Ray's RunConfig, with the file system of the storage."""
        filesystem, path = self._above.filesystem()
        # Apart from the run, because Ray marks folders in a store by empty files.
        return {"storage_path": f"{path}/{RAY}", "storage_filesystem": filesystem, "name": self.folder.name}

    @contextmanager
    def _putting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # What is known so far, such as the log; the error that ends the block is the one to tell.
            with suppress(CggmError):
                self.push()
            raise
        self.push()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{error.filename or self.url}: cannot be written or read: {error.strerror or error}; the same command goes on "
                "when the storage is back"
            ) from error

    def _start(self) -> Fence:
        """The fence of this process, which begins with its first look at the storage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._fence is None:
            self._fence = Fence(self._above, self._lock)
        return self._fence

    def _entries(self) -> list[Entry]:
        return [entry for entry in self._storage.entries() if _kept(entry.key.split("/"))]

    def _local(self) -> list[Path]:
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return [path for path in found if _kept(path.relative_to(self.folder).parts)]

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _changed(self, path: Path) -> bool:
        return _SAME.get(path, ("", None))[1] != _state(path)

    def _put(self, path: Path) -> None:
        # The state from before: what is written meanwhile is put next time.
        state, key = _state(path), self._key(path)
        self._storage.upload(path, key)
        entry = self._storage.entry(key)
        if entry is not None and state is not None:
            _SAME[path] = entry.version, state

    def _put_folder(self, folder: Path) -> None:
        marker = folder / CHECKSUMS
        self._storage.delete(self._key(marker))
        for path in sorted(folder.iterdir()):
            if path != marker and path.is_file():
                self._put(path)
        self._put(marker)

    def _update(self, entries: Iterable[Entry], longer: bool = False) -> None:
        """Fetches files that are of another version here.

        Args:
            entries: of the files.
            longer: whether a growing file that is longer here stays, and a file that changes in the meantime.
        """
        for entry in entries:
            path = self.folder / check_key(entry.key)
            version, state = _SAME.get(path, ("", None))
            before = _state(path)
            if before is not None and (version, state) == (entry.version, before):
                continue
            if longer and before is not None:
                grows = path.name.endswith(APPENDED)
                if (grows and before[0] >= entry.size) or (version == entry.version):
                    continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError), whole_file(path) as partial:
                self._storage.download(entry.key, partial)
                if longer and _state(path) != before:
                    raise FileNotFoundError
            now = _state(path)
            if now is not None and now != before:
                _SAME[path] = entry.version, now


def _kept(parts: Iterable[str]) -> bool:
    return not any(part == APART or part.startswith(".") for part in parts)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _digests(marker: bytes, name: str) -> dict[str, str]:
    try:
        found = json.loads(marker)
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError):
        raise OSError(errno.EIO, "it is damaged; expected sha256 by name of a file", name) from None
