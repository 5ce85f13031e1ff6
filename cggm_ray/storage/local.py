"""Local and mounted folders as a storage: `file:///mnt/shared/runs`, or a path."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from cggm_ray.storage.base import STORAGES, Storage, check_key
from cggm_ray.storage.files import whole_file, write_bytes

SCHEME = "file://"


@STORAGES.register("file")
class LocalStorage(Storage):
    """A storage in a local or mounted folder.

    Args:
        url: 'file:///folder', or the path of a folder, which is made when something is written.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._root = Path(url.removeprefix(SCHEME)).expanduser().absolute()

    def read(self, key: str) -> bytes:
        """Returns the content of a file."""
        return self._path(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Writes a file, or replaces it."""
        write_bytes(self._parent(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Writes a file where there is none, and returns whether it did; the system links no name that exists."""
        path = self._parent(key)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            partial.write_bytes(content)
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def list(self, prefix: str = "") -> Sequence[str]:
        """Returns the keys that begin with the prefix, sorted, without what writers left unfinished."""
        # Only the folder that the prefix names is walked.
        start = self._root / prefix.rpartition("/")[0]
        files = (path for path in start.rglob("*") if path.is_file() and not path.match(".*.part"))
        return sorted(key for path in files if (key := path.relative_to(self._root).as_posix()).startswith(prefix))

    def delete(self, key: str) -> None:
        """Removes a file; nothing happens where there is none."""
        self._path(key).unlink(missing_ok=True)

    def upload(self, file: Path, key: str) -> None:
        """Copies a local file without holding it in memory."""
        with whole_file(self._parent(key)) as partial:
            shutil.copyfile(file, partial)

    def download(self, key: str, file: Path) -> None:
        """Reads a key into a local file."""
        shutil.copyfile(self._path(key), file)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _parent(self, key: str) -> Path:
        """The path of a key, in a folder that is there."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
