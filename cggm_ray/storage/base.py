"""What a storage is: files by key under one URL, and how a whole folder is published to it and fetched from it.

A storage is one file that registers a class under the scheme of its URLs: `@STORAGES.register("s3")` serves `s3://...`. Five
operations are its own; publishing and fetching are made of them here, the same for all storages.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.registry import known_implementations

from cggm_ray.core.errors import DataError, UsageError, short_repr
from cggm_ray.core.registry import Registry
from cggm_ray.storage.files import file_digest, whole_folder

INDEX = "published.json"
"""Of a published folder: sha256 by name of a file."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a storage.

    Attributes:
        key: of the file.
        size: bytes.
        version: a text that changes when the file is replaced, such as its etag.
    """

    key: str
    size: int
    version: str


class Storage(ABC):
    """Files under one URL, by keys such as 'first/best/model.safetensors'.

    Every operation may raise an OSError where the storage cannot be reached, or is full or write-protected.

    Args:
        url: with its scheme, such as 's3://bucket/runs'.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none of that key.
        """

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Writes a file, or replaces it. Readers find the old content or the new one, never a part."""

    @abstractmethod
    def create(self, key: str, content: bytes) -> bool:
        """Writes a file where there is none; whether it did. Of several writers at once exactly one does."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[str]:
        """The keys that begin with a text, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes a file; nothing happens where there is none."""

    def entries(self, prefix: str = "") -> Sequence[Entry]:
        """The files whose keys begin with a text, sorted by key. By default all of them are read for it."""
        contents = ((key, self.read(key)) for key in self.list(prefix))
        return [
            Entry(key=key, size=len(content), version=hashlib.sha256(content).hexdigest()) for key, content in contents
        ]

    def entry(self, key: str) -> Entry | None:
        """The file of a key, or None where there is none."""
        return next((entry for entry in self.entries(key) if entry.key == key), None)

    def filesystem(self) -> tuple[Any, str]:
        """A file system of pyarrow, and the path in it that is this storage's URL.

        Raises:
            UsageError: pyarrow knows none for this storage.
        """
        raise UsageError(f"{self.url}: pyarrow has no file system for it; expected s3://, gs:// or what fsspec knows")

    def upload(self, file: Path, key: str) -> None:
        """Writes a local file. By default through memory, which a storage for large files does better."""
        self.write(key, file.read_bytes())

    def download(self, key: str, file: Path) -> None:
        """Reads into a local file; see `upload`."""
        file.write_bytes(self.read(key))

    def copy(self, key: str, to: str) -> None:
        """Writes the content of one file to another; see `upload`."""
        self.write(to, self.read(key))

    def publish(self, folder: Path, key: str, files: Sequence[str]) -> None:
        """Copies files of a local folder, so that they are found under the key complete or not at all.

        The index is created first, so of two different folders one is refused before anything is copied. The same folder
        may be published again: what an interrupt left out is copied then.

        Args:
            folder: that has the files.
            key: of the published folder.
            files: their names, relative to the folder.

        Raises:
            UsageError: another folder, or an earlier state of this one, has been published there.
        """
        digests = {name: file_digest(folder / check_key(name)) for name in sorted(files)}
        index = json.dumps(digests, indent=1).encode()
        if not self.create(f"{key}/{INDEX}", index) and self.read(f"{key}/{INDEX}") != index:
            raise UsageError(
                f"{self.url}/{key} holds something else than {folder}; expected a URL under which there is no "
                f"{folder.name} yet"
            )
        there = set(self.list(f"{key}/"))
        for name in digests:
            if f"{key}/{name}" not in there:
                self.upload(folder / name, f"{key}/{name}")

    def fetch(self, key: str, folder: Path) -> None:
        """Copies what was published under a key into a new local folder, and checks every file.

        Args:
            key: of the published folder.
            folder: a path where there is nothing yet.

        Raises:
            UsageError: the folder exists, or nothing was published there.
            DataError: a file is missing or differs from what was published, or would lie outside the folder.
        """
        if folder.exists():
            raise UsageError(f"{folder} exists; expected the path of a new folder")
        where = f"{self.url}/{key}"
        try:
            index = json.loads(self.read(f"{key}/{INDEX}"))
        except FileNotFoundError:
            raise UsageError(f"{where} has no {INDEX}; expected what `publish` wrote") from None
        except (ValueError, RecursionError):
            index = None
        if not isinstance(index, dict) or not index:
            raise DataError(f"{where}/{INDEX} is damaged; expected sha256 by name of a file")
        with whole_folder(folder) as partial:
            for name, digest in index.items():
                file = partial / check_key(name)
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.download(f"{key}/{name}", file)
                except FileNotFoundError:
                    raise DataError(f"{where}/{name} is not there; publish it again, the rest is kept") from None
                if file_digest(file) != digest:
                    raise DataError(f"{where}/{name} is damaged: its checksum is not the one that was published")


STORAGES: Registry[type[Storage]] = Registry("storage", "cggm_ray.storage")
FSSPEC = "fsspec"
"""Name of the storage that serves the schemes of fsspec that no other storage serves."""
_PASSWORD = re.compile(r"://[^/]*:[^/]*@|\?\w+=")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path."""
    return _URL.match(text) is not None


def check_scheme(field: str, scheme: str) -> None:
    """Raises a UsageError unless a storage serves URLs of a scheme.

    Args:
        field: named in the message.
        scheme: of the URL.
    """
    if scheme not in STORAGES.names() and scheme not in known_implementations:
        known = ", ".join(name for name in STORAGES.names() if name != FSSPEC)
        raise UsageError(f"{field}: no storage serves {scheme}://; expected {known}, or a scheme that fsspec knows")


def check_no_password(field: str, url: str) -> None:
    """Raises a UsageError where a URL holds a password or parameters, which would then be in logs and configurations.

    Args:
        field: named in the message, which does not show the URL.
        url: as it was given.
    """
    if _PASSWORD.search(url):
        raise UsageError(
            f"{field}: found a URL with a password or with parameters; expected one such as s3://bucket/runs, and credentials "
            "in the environment"
        )


def open_storage(url: str) -> Storage:
    """The storage of a URL; a path without a scheme is a local or mounted folder.

    Raises:
        UsageError: no storage has that scheme, or a package that it needs is not installed.
    """
    scheme = _URL.match(url)
    name = scheme[1].lower() if scheme else "file"
    if name not in STORAGES.names() and name in known_implementations:
        name = FSSPEC
    return STORAGES.get(name)(url)


def url_filesystem(url: str) -> tuple[Any, str]:
    """A file system of pyarrow and the path in it that a URL names.

    Raises:
        UsageError: no storage has that scheme, or a package that it needs is not installed.
    """
    return open_storage(url).filesystem()


def check_key(key: str) -> str:
    """The key, if it names a file below the storage's URL and nothing else.

    Raises:
        DataError: it leads elsewhere, as in an index from somebody else.
    """
    parts = PurePosixPath(key)
    if not key or parts.is_absolute() or ".." in parts.parts or "\0" in key or parts.as_posix() != key:
        raise DataError(f"found the key {short_repr(key)}; expected the name of a file inside the folder")
    return key
