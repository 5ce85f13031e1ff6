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


def print_taken(shards: Path) -> None:
    """Prints how the dataset interpreted its file, if its notes say so: target, modalities, and unused columns.

    Args:
        shards: folder of the set.
    """
    for line in open_manifest(shards).notes.get("taken", ()):
        print(one_line(line), flush=True)
