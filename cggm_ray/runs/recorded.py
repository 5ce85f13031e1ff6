"""What a run records of its data when it starts, in `data.json`: enough to predict other data when its own is gone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cggm_ray.data.shards.shards import Manifest
from cggm_ray.storage.files import write_text

DATA = "data.json"


def record_data(folder: Path, manifest: Manifest) -> None:
    """Writes `data.json`: the manifest of the run's set without its raw files and shards.

    Args:
        folder: of the run.
        manifest: of its set.

    Raises:
        OSError: the file cannot be written.
    """
    kept = dataclasses.replace(manifest, sources=(), splits={})
    write_text(folder / DATA, json.dumps({"manifest": json.loads(kept.to_json())}, indent=1) + "\n")


def recorded_manifest(folder: Path) -> Manifest | None:
    """The manifest that a run recorded; None for a run of an earlier version, which recorded none that can be read."""
    try:
        return Manifest.from_json(json.dumps(json.loads((folder / DATA).read_text())["manifest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
