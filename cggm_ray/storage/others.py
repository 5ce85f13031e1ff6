"""Storages of fsspec, for every scheme that no other storage serves, such as `abfs://container/runs` or `memory://runs`."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from cggm_ray.core.errors import UsageError, one_line
from cggm_ray.storage.base import FSSPEC, STORAGES, Entry, Storage, check_key

T = TypeVar("T")


@STORAGES.register(FSSPEC)
class FsspecStorage(Storage):
    """A storage of a scheme that fsspec knows. Retries and credentials are those of fsspec's file system.

    Args:
        url: with a scheme that fsspec knows.

    Raises:
        UsageError: the package of that scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            self._files, self._root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{self.url}: {one_line(str(error))}") from None
        # Others change what a listing remembers.
        self._files.use_listings_cache = False

    def read(self, key: str) -> bytes:
        """Returns the content of a file."""
        return self._calling(key, self._files.cat_file)

    def write(self, key: str, content: bytes) -> None:
        """Writes a file, or replaces it."""
        self._calling(self._parent(key), lambda path: self._files.pipe_file(path, content))

    def create(self, key: str, content: bytes) -> bool:
        """Writes a file where there is none, and returns whether it did."""
        try:
            self._calling(self._parent(key), lambda path: self._files.pipe_file(path, content, mode="create"))
        except FileExistsError:
            return False
        return True

    def entries(self, prefix: str = "") -> Sequence[Entry]:
        """Returns the files whose keys begin with the prefix, with size and version."""
        folder = prefix.rpartition("/")[0]
        where = f"{self._root}/{folder}".rstrip("/")

        def listed(path: str) -> list[Entry]:
            self._files.invalidate_cache()
            try:
                found: dict[str, dict[str, Any]] = self._files.find(where, detail=True)
            except FileNotFoundError:
                return []
            below = ((path.removeprefix(self._root).lstrip("/"), meta) for path, meta in found.items())
            return sorted(
                (_entry(key, meta) for key, meta in below if key.startswith(prefix)), key=lambda entry: entry.key
            )

        return self._calling(folder, listed, check=False)

    def list(self, prefix: str = "") -> Sequence[str]:
        """Returns the keys that begin with the prefix, sorted."""
        return [entry.key for entry in self.entries(prefix)]

    def delete(self, key: str) -> None:
        """Removes a file; nothing happens where there is none."""
        with suppress(FileNotFoundError):
            self._calling(key, self._files.rm_file)

    def upload(self, file: Path, key: str) -> None:
        """Writes a local file to a key."""
        self._calling(self._parent(key), lambda path: self._files.put_file(str(file), path))

    def download(self, key: str, file: Path) -> None:
        """Reads a key into a local file."""
        self._calling(key, lambda path: self._files.get_file(path, str(file)))

    def filesystem(self) -> tuple[Any, str]:
        """Returns the file system of pyarrow for this URL, and the path in it."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._files)), self._root

    def _parent(self, key: str) -> str:
        """The key, whose folder is made where the file system has folders."""
        check_key(key)
        self._calling(key, lambda path: self._files.makedirs(path.rpartition("/")[0], exist_ok=True))
        return key

    def _calling(self, key: str, act: Callable[[str], T], check: bool = True) -> T:
        if check:
            check_key(key)
        try:
            return act(f"{self._root.rstrip('/')}/{key}")
        except (FileNotFoundError, FileExistsError, PermissionError):
            raise
        # Clients of stores raise errors of many types, none of which shall look like a mistake of this program.
        except Exception as error:
            raise OSError(errno.EIO, one_line(f"{type(error).__name__}: {error}")[:300], f"{self.url}/{key}") from None


def _entry(key: str, meta: dict[str, Any]) -> Entry:
    marks = (meta.get(name) for name in ("ETag", "etag", "md5Hash", "generation", "mtime", "last_modified", "created"))
    return Entry(
        key=key, size=int(meta["size"] or 0), version=str(next((mark for mark in marks if mark), meta["size"]))
    )
