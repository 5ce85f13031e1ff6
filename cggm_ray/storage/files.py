"""Writes files and folders that are complete or absent: under another name, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKSUMS = "checksums.json"
"""File in every folder that `write_folder` made: sha256 by file name."""


@contextmanager
def whole_file(path: Path, ending: str = "") -> Iterator[Path]:
    """Gives the block another name to write a file under, and renames the file when the block is done.

    Nothing is left of a file that the block did not finish.

    Args:
        path: of the file.
        ending: of the other name, for writers that depend on it, such as '.npz'.

    Raises:
        OSError: the file cannot be written; one that was there is as it was.
    """
    partial = _partial(path, ending)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives the block another folder to fill, and renames it when the block is done.

    If another process made the folder in the meantime, that one stays.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = _partial(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole, see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file as a whole, see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder under another name and renames it when it is complete; an existing folder is replaced.

    The last file written holds the checksums of the others.

    Raises:
        OSError: it cannot be written; a folder that was there is as it was.
    """
    partial = _partial(folder)
    partial.mkdir(parents=True)
    try:
        write(partial)
        (partial / CHECKSUMS).unlink(missing_ok=True)
        digests = {file.name: file_digest(file) for file in sorted(partial.iterdir())}
        (partial / CHECKSUMS).write_text(json.dumps(digests, indent=1))
        for file in partial.iterdir():
            _sync(file)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder into another."""
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)


def share_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Gives files of a folder a second name in another one, which takes no room; nobody may write into them afterwards.

    They are copied where the file system cannot do that.

    Args:
        source: folder that has the files.
        target: another folder.
        names: of the files.
    """
    for name in names:
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


def set_aside(folder: Path) -> Path | None:
    """Moves a folder to its name with the next free number and returns the new path, or None if there is no folder.

    Raises:
        OSError: it cannot be moved.
    """
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def clear_partials(folder: Path) -> None:
    """Removes partial files of writers that were killed. No writer may be active in the folder."""
    for partial in (*folder.glob(".*.part"), *folder.glob(".*.part.*")):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(path: Path, ending: str = "") -> Path:
    """Returns a name beside `path` that nobody else writes to, on this node or another, and nobody reads."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part{ending}")


def _replace(partial: Path, folder: Path) -> None:
    """Renames a finished folder. An existing one is moved aside first, so that a crash cannot leave half of either."""
    old = _partial(folder)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    # Some network file systems refuse it, and none needs it.
    with suppress(OSError):
        _sync(folder.parent)


def _sync(path: Path) -> None:
    """Flushes a file or the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
