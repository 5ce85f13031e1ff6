"""Records a run's data in `data.json` when it starts, so that it can predict other data when its own data is gone.

For a dataset or a strategy from a user file the record also says where it was registered.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cggm_ray.data.shards.shards import Manifest
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.own_code import import_recorded, places
from cggm_ray.storage.files import write_text

DATA = "data.json"


def record_data(folder: Path, manifest: Manifest, config: Config) -> None:
    """Writes `data.json`: the manifest of the run's set without its raw files and shards, and where names were registered.

    Args:
        folder: of the run.
        manifest: of its set.
        config: of the run.

    Raises:
        OSError: the file cannot be written.
    """
    kept = dataclasses.replace(manifest, sources=(), splits={})
    content = {"registered": places(config), "manifest": json.loads(kept.to_json())}
    write_text(folder / DATA, json.dumps(content, indent=1) + "\n")


def recorded_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest that a run recorded, or None for a run of an earlier version without a readable one."""
    try:
        return Manifest.from_json(json.dumps(json.loads((folder / DATA).read_text())["manifest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def import_classes(folder: Path, values: Mapping[str, Any]) -> None:
    """Imports the files that register the dataset and the strategy of a run, if they are unknown here.

    Args:
        folder: of the run.
        values: sections of its configuration, not checked yet.

    Raises:
        UsageError: nothing was recorded, or the file is gone or does not register the name.
    """
    try:
        registered = json.loads((folder / DATA).read_text())["registered"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        registered = []
    for kind, section, key in (("dataset", "data", "dataset"), ("strategy", "modulation", "modulation")):
        part = values.get(section)
        if isinstance(part, dict) and key in part:
            import_recorded(kind, part[key], registered if isinstance(registered, list) else [], folder)
