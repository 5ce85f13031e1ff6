"""Files and folders that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cggm_ray.storage.digests import file_digest

CHECKSUMS = "checksums.json"
"""In every folder that `write_folder` made: sha256 by file name."""


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder under another name and renames it when it is complete; replaces one that is there.

    The last file written holds the checksums of the others.

    Raises:
        OSError: it cannot be written; a folder that was there is as it was.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
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


def write_text(path: Path, text: str) -> None:
    """Writes a text file under another name and renames it.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path | None:
    """Moves a folder out of the way, to its name with the next free number; None where there is none.

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
    """Removes what writers left that were killed. Call it while nobody writes there."""
    for partial in folder.glob(".*.part"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _replace(partial: Path, folder: Path) -> None:
    """Renames a finished folder; one that is there is moved aside first, so that a crash cannot leave half of either."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old.part")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    # Not every network file system takes it, and none needs it.
    with suppress(OSError):
        _sync(folder.parent)


def _sync(path: Path) -> None:
    """Has the system write a file or the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
