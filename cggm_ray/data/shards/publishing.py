"""Makes a set of shards that is whole or is not there, once for all who need it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cggm_ray.core.errors import DataError, reason
from cggm_ray.data.shards.shards import MANIFEST, Manifest, open_set
from cggm_ray.storage.leases import Fence
from cggm_ray.storage.locks import holding
from cggm_ray.storage.places import is_local
from cggm_ray.storage.urls import UrlPath


def publish(staging: Path, folder: Path, manifest: Manifest) -> None:
    """Turns a finished staging folder into the set: the manifest is written last, then the folder is renamed.

    If another process published the same set in the meantime, that one stays and the staging folder is dropped. In a store the
    shards are where they stay, and the manifest alone makes them a set.

    Raises:
        DataError: the manifest cannot be written.
    """
    path = staging / MANIFEST
    try:
        if isinstance(path, UrlPath):
            path.write_text(manifest.to_json())
            return
        with path.open("w") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {reason(error)}") from None
    if folder.exists() and open_set(folder) is None:
        shutil.rmtree(folder)
    try:
        staging.rename(folder)
    except OSError:
        if open_set(folder) is None:
            raise
        shutil.rmtree(staging)


@contextmanager
def sole_converter(folder: Path) -> Iterator[Callable[[], None]]:
    """Holds the set while it is made, so that another command that needs the same set waits and finds it.

    The block receives a function that raises a StorageError where another process has taken the set meanwhile, as it may in a
    store from a process that stood still. Partial files of killed conversions of the set are removed.

    Args:
        folder: of the set.

    Raises:
        DataError: the folder of all sets cannot be written.
    """
    said = False

    def busy(holder: str) -> None:
        nonlocal said
        if not said:
            print(f"waits for {holder}, which converts the same data", flush=True)
        said = True

    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(holding(folder.with_name(f".{folder.name}.lock"), busy))
        except OSError as error:
            raise DataError(f"{folder.parent}: cannot make the folder for shards: {reason(error)}") from None
        if held and is_local(folder):
            for left in folder.parent.glob(f".{folder.name}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
        lock = folder.with_name(f".{folder.name}.lock")
        yield Fence(lock.storage, lock.key).check if isinstance(lock, UrlPath) else _no_other


def _no_other() -> None:
    """Does nothing: the system's lock cannot be taken from a process that holds it."""


def staging_folder(folder: Path) -> Path:
    """Makes a new folder beside `folder`, with a name that no reader opens.

    In a store it is the folder itself, which no reader opens without a manifest; what is left there of an earlier conversion is
    removed.

    Raises:
        DataError: it cannot be made.
    """
    if isinstance(folder, UrlPath):
        try:
            remove_shards(folder)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {reason(error)}") from None
        return folder
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot make the folder for shards: {reason(error)}") from None
    return staging


def drop(staging: Path, folder: Path) -> None:
    """Removes what an unfinished conversion left, if anything.

    Args:
        staging: from `staging_folder`.
        folder: of the set.
    """
    if not isinstance(folder, UrlPath):
        shutil.rmtree(staging, ignore_errors=True)
        return
    # The error that stopped the conversion is the one to tell, and the next conversion removes what is left.
    with suppress(OSError, DataError):
        if open_set(folder) is None:
            remove_shards(folder)


def remove_shards(folder: UrlPath) -> None:
    """Removes the files of a set in a store, the manifest first, so that no reader takes a part of them for a set."""
    entries = folder.entries()
    for entry in sorted(entries, key=lambda entry: not entry.key.endswith(f"/{MANIFEST}")):
        folder.storage.delete(entry.key)
