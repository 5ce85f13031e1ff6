"""Opens a set that must exist."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.core.errors import DataError, one_line
from cggm_ray.data.shards.shards import Manifest, open_set


def open_manifest(shards: Path) -> Manifest:
    """Returns the manifest of a set that must exist.

    Raises:
        DataError: it is not complete.
    """
    manifest = open_set(shards)
    if manifest is None:
        raise DataError(f"{shards}: not a complete set of shards; on several nodes the folder must be shared storage")
    return manifest


_printed: set[Path] = set()
"""Sets about which `print_notes` printed, and `print_taken` not yet."""


def print_notes(folder: Path, manifest: Manifest) -> None:
    """Prints how the dataset interpreted its file, if its notes say so, before a set is made.

    Args:
        folder: of the set.
        manifest: of it, without shards.
    """
    for line in manifest.notes.get("taken", ()):
        print(one_line(line), flush=True)
    _printed.add(folder)


def print_taken(shards: Path) -> None:
    """Prints what `print_notes` prints, unless that was done when the set was made: target, modalities, and unused columns.

    Args:
        shards: folder of the set.
    """
    if shards not in _printed:
        print_notes(shards, open_manifest(shards))
    _printed.discard(shards)
