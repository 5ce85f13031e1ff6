"""Records a run's data in `data.json` when it starts, so that it can predict other data when its own data is gone.

The file also has the number of samples by split, the number of epochs, which may depend on it, and for a dataset, a strategy or
a network of a person's own where that was registered.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.engine.budget import planned_epochs
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.own_code import import_recorded, places
from cggm_ray.storage.files import write_text

DATA = "data.json"


def record_data(folder: Path, manifest: Manifest, config: Config) -> None:
    """Writes `data.json`: the manifest of the run's set without its raw files and shards, where names were registered, and the
    epochs of the run.

    Args:
        folder: of the run.
        manifest: of its set.
        config: of the run.

    Raises:
        OSError: the file cannot be written.
    """
    kept = dataclasses.replace(manifest, sources=(), splits={})
    epochs = planned_epochs(config.train, manifest.rows("train"), config.run.max_workers)
    content = {
        "registered": places(config),
        "epochs": epochs,
        "samples": {split: manifest.rows(split) for split in manifest.splits},
        "manifest": json.loads(kept.to_json()),
    }
    write_text(folder / DATA, json.dumps(content, indent=1) + "\n")


def recorded_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest that a run recorded, or None for a run of an earlier version without a readable one."""
    try:
        return Manifest.from_json(json.dumps(json.loads((folder / DATA).read_text())["manifest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def recorded_epochs(folder: Path) -> int | None:
    """Returns the epochs of a run that nothing stops early, or None for a run of an earlier version."""
    try:
        epochs = json.loads((folder / DATA).read_text())["epochs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return epochs if isinstance(epochs, int) else None


def recorded_samples(folder: Path) -> dict[str, int]:
    """Returns the number of samples by split; empty for a run of an earlier version."""
    try:
        samples = json.loads((folder / DATA).read_text())["samples"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return dict(samples) if isinstance(samples, dict) else {}


def recorded_registrations(folder: Path) -> list[Any]:
    """Returns where datasets, strategies and networks of a person's own were registered."""
    try:
        registered = json.loads((folder / DATA).read_text())["registered"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return registered if isinstance(registered, list) else []


def import_classes(folder: Path, values: Mapping[str, Any]) -> None:
    """Imports the files that register dataset, strategy, network and its parts of a run, where they are unknown here.

    Args:
        folder: of the run.
        values: sections of its configuration, not checked yet.

    Raises:
        UsageError: nothing was recorded, or the file is gone or does not register the name.
    """
    registered = recorded_registrations(folder)
    parts = {section: part for section, part in values.items() if isinstance(part, dict)}
    dataset = parts.get("data", {}).get("dataset")
    import_recorded("dataset", dataset, registered, folder)
    import_recorded("strategy", parts.get("modulation", {}).get("modulation"), registered, folder)
    network = parts.get("model", {}).get("network")
    if network is None and dataset in DATASETS.names():
        # The dataset's own, which may be in another file.
        network = DATASETS.get(dataset).network
    import_recorded("network", network, registered, folder)
    for one in registered:
        if isinstance(one, dict) and one.get("kind") in ("encoder", "fusion", "column"):
            import_recorded(one["kind"], one.get("name"), registered, folder)
