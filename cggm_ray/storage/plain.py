"""Folders that are their own truth, which is what a `Mirror` of a URL has to be as good as."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cggm_ray.storage.files import set_aside
from cggm_ray.storage.locks import holding


class Plain:
    """A folder that is its own truth: nothing has to be fetched or put. See `Mirror` for what the methods do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def owned(self, busy: Callable[[str], None]) -> AbstractContextManager[object]:
        """Holds the folder's lock."""
        return holding(self.folder.with_name(f".{self.folder.name}.lock"), busy)

    def look(self, name: str, longer: bool = False) -> None:
        """Nothing: the file is there."""

    def pull(self) -> None:
        """Nothing: everything is there."""

    def join(self) -> None:
        """Nothing: everything is there."""

    def taking_part(self, puts: bool = True) -> AbstractContextManager[None]:
        """Joins before the block, which runs on any node, and puts what it wrote.

        Args:
            puts: whether this process writes.

        Raises:
            StorageError: the storage cannot be reached.
        """
        return nullcontext()

    def push(self) -> None:
        """Nothing: everything is there."""

    def publish(self, folder: Path) -> None:
        """Nothing: it is there."""

    def remove(self, folder: Path) -> None:
        """Removes a folder inside this one."""
        shutil.rmtree(folder)

    def fetch_all(self, name: str) -> None:
        """Nothing: they are there."""

    def fetch(self, folder: Path) -> None:
        """Nothing: it is there if it is anywhere."""

    def set_aside(self) -> str | None:
        """Moves the folder to a name with a number; returns that, or None if there is no folder."""
        aside = set_aside(self.folder)
        return None if aside is None else str(aside)

    def raise_flag(self, name: str) -> None:
        """Makes an empty file that other processes look for."""
        (self.folder / name).touch()

    def lower_flag(self, name: str) -> None:
        """Removes the file of `raise_flag`."""
        (self.folder / name).unlink(missing_ok=True)

    def flag(self, name: str) -> bool:
        """Returns whether `raise_flag` was called."""
        return (self.folder / name).exists()

    def for_ray(self) -> dict[str, Any]:
        """Returns the arguments of Ray's RunConfig that say where Ray keeps its own files of this run."""
        return {"storage_path": str(self.folder.parent), "name": self.folder.name}
