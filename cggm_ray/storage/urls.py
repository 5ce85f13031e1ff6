"""Paths whose files lie in an object store: `UrlPath("s3://bucket/set") / "train.parquet"`.

Such a path goes wherever a path goes. Queries about files and folders ask the store. `os.fspath`, which every library calls
before it opens a file, makes a copy in the cache of this node and returns the path of the copy, so readers of files need not
know about stores. Files are written whole, with `write_bytes`, `write_text` and `upload`.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from pathlib import Path, PosixPath
from typing import Any, NoReturn

from cggm_ray.storage.base import Entry, Storage, open_storage
from cggm_ray.storage.cache import cached


class UrlPath(PosixPath):
    """A path in an object store. A folder exists where the store has a file below it.

    Queries raise OSError where the store cannot be reached, or refuses; `strerror` is one line.
    """

    def __str__(self) -> str:
        scheme = self.parts[0] if self.parts else ""
        return f"{scheme}//{'/'.join(self.parts[1:])}"

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlPath, (str(self),)

    def __fspath__(self) -> str:
        """Returns the path of a local copy of the file, made if necessary.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return str(self.local())

    @property
    def key(self) -> str:
        """The part of the URL behind the bucket."""
        return "/".join(self.parts[2:])

    @property
    def storage(self) -> Storage:
        """The storage of the bucket."""
        return _storage("//".join(self.parts[:2]))

    def local(self) -> Path:
        """Returns the path of a local copy of the file; see `__fspath__`."""
        entry = self.entry()
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return cached(str(self), entry.version, entry.size, functools.partial(self.storage.download, entry.key))

    def entry(self) -> Entry | None:
        """Returns size and version of the file, or None where there is none."""
        tree = _Tree.of(self)
        return self.storage.entry(self.key) if tree is None else tree.files.get(self.key)

    def entries(self) -> Sequence[Entry]:
        """Returns all files below this folder, by one listing, sorted by key."""
        prefix = f"{self.key}/" if self.key else ""
        tree = _Tree.of(self)
        if tree is None:
            return self.storage.entries(prefix)
        start = bisect_left(tree.keys, prefix)
        below = takewhile(lambda key: key.startswith(prefix), islice(tree.keys, start, None))
        return [tree.files[key] for key in below]

    def hold_listing(self) -> None:
        """Lists all files below this path once. Later queries in this process about them ask the listing."""
        _Tree.held.pop(self.parts, None)
        entries = self.entries()
        own = self.storage.entry(self.key) if not entries and self.key else None
        _Tree.held[self.parts] = _Tree(entries if own is None else [own], self.key)

    def upload(self, file: Path) -> None:
        """Puts a local file here, whole or not at all."""
        self.storage.upload(file, self.key)

    # What a path of a file system has, in the order of pathlib's page.

    def is_absolute(self) -> bool:
        """Returns True."""
        return True

    def absolute(self) -> UrlPath:
        """Returns the path itself."""
        return self

    def resolve(self, strict: bool = False) -> UrlPath:
        """Returns the path itself."""
        return self

    def expanduser(self) -> UrlPath:
        """Returns the path itself."""
        return self

    def as_posix(self) -> str:
        """Returns the URL."""
        return str(self)

    def relative_to(self, *other: Any, **options: Any) -> Path:  # type: ignore[override]
        """Returns the local relative path from another path of the same bucket to this one."""
        base = PosixPath(other[0]).parts
        if self.parts[: len(base)] != base:
            raise ValueError(f"{self} is not below {other[0]}")
        return Path(*self.parts[len(base) :])

    def is_relative_to(self, *other: Any) -> bool:  # type: ignore[override]
        """Returns whether the other path is this one or a folder above it."""
        base = PosixPath(other[0]).parts
        return isinstance(other[0], UrlPath) and self.parts[: len(base)] == base

    def exists(self, **options: Any) -> bool:
        """Returns whether there is such a file or folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **options: Any) -> bool:
        """Returns whether there is such a file."""
        return bool(self.key) and self.entry() is not None

    def is_dir(self, **options: Any) -> bool:
        """Returns whether there is a file below this path."""
        tree = _Tree.of(self)
        return bool(self.entries()) if tree is None else self.key in tree.folders

    def is_symlink(self) -> bool:
        """Returns False."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Returns kind and size; a store has no other facts that all stores have."""
        entry = self.entry() if self.key else None
        if entry is None and not self.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        kind = stat.S_IFDIR if entry is None else stat.S_IFREG
        return os.stat_result((kind | 0o444, 0, 0, 1, 0, 0, 0 if entry is None else entry.size, 0, 0, 0))

    def iterdir(self) -> Iterator[UrlPath]:  # type: ignore[override]
        """Yields the files and folders of this folder, sorted."""
        depth = len(self.parts)
        below = (tuple(entry.key.split("/"))[depth - 2] for entry in self.entries())
        for name in dict.fromkeys(below):
            yield self / name

    def glob(self, pattern: str, **options: Any) -> Iterator[UrlPath]:  # type: ignore[override]
        """Yields files and folders that match a pattern of names, without `**`."""
        wanted = pattern.split("/")
        depth = len(self.parts) - 2
        found = (entry.key.split("/")[depth:] for entry in self.entries())
        matches = (tuple(parts[: len(wanted)]) for parts in found if len(parts) >= len(wanted))
        for parts in dict.fromkeys(matches):
            if all(fnmatchcase(name, want) for name, want in zip(parts, wanted, strict=True)):
                yield self.joinpath(*parts)

    def rglob(self, pattern: str, **options: Any) -> Iterator[UrlPath]:  # type: ignore[override]
        """Yields files at any depth whose name matches a pattern."""
        for entry in self.entries():
            parts = entry.key.split("/")[len(self.parts) - 2 :]
            if fnmatchcase(parts[-1], pattern):
                yield self.joinpath(*parts)

    def open(self, mode: str = "r", *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """Opens a local copy of the file for reading; see `__fspath__`.

        Raises:
            OSError: for writing; `write_bytes` and `upload` write whole files.
        """
        if set(mode) & set("wxa+"):
            self._refuse("parts of a file cannot be written")
        return open(self.local(), mode, *args, **options)

    def read_bytes(self) -> bytes:
        """Reads the file as it is now, without a copy in the cache."""
        return self.storage.read(self.key)

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """Reads the file as it is now, without a copy in the cache."""
        content = io.BytesIO(self.read_bytes())
        return io.TextIOWrapper(content, encoding or "utf-8", errors, newline).read()

    def write_bytes(self, data: Any) -> int:
        """Writes or replaces the file, whole or not at all."""
        content = bytes(data)
        self.storage.write(self.key, content)
        return len(content)

    def write_text(self, data: str, encoding: str | None = None, *args: Any, **options: Any) -> int:
        """Writes or replaces the file, whole or not at all."""
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def unlink(self, missing_ok: bool = True) -> None:
        """Removes the file; nothing happens where there is none."""
        self.storage.delete(self.key)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing, because a store has no folders without files."""

    def rmdir(self) -> None:
        """Does nothing; see `mkdir`."""

    def rename(self, target: Any) -> NoReturn:
        """Raises an OSError."""
        self._refuse("files of a store cannot be renamed")

    replace = rename  # type: ignore[assignment]

    def touch(self, *args: Any, **options: Any) -> NoReturn:
        """Raises an OSError."""
        self._refuse("files of a store have no time that could be set")

    def _refuse(self, why: str) -> NoReturn:
        raise OSError(errno.ENOTSUP, why, str(self))


class _Tree:
    """Files below a path as they were listed.

    Args:
        entries: of the files.
        root: key of the path.
    """

    held: dict[tuple[str, ...], _Tree] = {}
    """By the parts of the path."""

    def __init__(self, entries: Sequence[Entry], root: str) -> None:
        self.files = {entry.key: entry for entry in entries}
        self.keys = sorted(self.files)
        self.folders = set(_folders(self.files, root))

    @classmethod
    def of(cls, path: UrlPath) -> _Tree | None:
        """Returns the listing that has the files below a path, if one is held."""
        parts = path.parts
        tops = (parts[:length] for length in range(len(parts), 1, -1))
        return next((cls.held[top] for top in tops if top in cls.held), None) if cls.held else None


def _folders(keys: Iterable[str], root: str) -> Iterator[str]:
    for key in keys:
        while key != root and key:
            key = key.rpartition("/")[0]
            yield key


@functools.lru_cache(maxsize=16)
def _storage(url: str) -> Storage:
    return open_storage(url)
