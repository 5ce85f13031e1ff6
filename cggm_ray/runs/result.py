"""The result of a finished run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.core.errors import StorageError
from cggm_ray.engine.runtime import Record

CONFIG = "config.yaml"
SUMMARY = "summary.json"
NO_EPOCH = 0
"""Best epoch of an ensemble, whose members have each their own."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Metrics of a finished run.

    Attributes:
        folder: of the run.
        best_epoch: the epoch whose checkpoint was tested, counted from 1; `NO_EPOCH` for an ensemble.
        valid: its validation metrics.
        test: the test metrics.
    """

    folder: Path
    best_epoch: int
    valid: Record
    test: Record


def read_summary(folder: Path) -> Result:
    """Returns the result that `finish` wrote into the folder of a run."""
    summary = json.loads((folder / SUMMARY).read_text())
    return Result(folder=folder, best_epoch=summary["best_epoch"], valid=summary["valid"], test=summary["test"])


def stored_result(folder: Path) -> Result:
    """Returns the result that a process of another node has stored, once the folder is here.

    Raises:
        StorageError: it is not here, because the storage does not list it.
    """
    try:
        return read_summary(folder)
    except FileNotFoundError:
        raise StorageError(
            f"{folder}: the workers have ended, but the storage does not list their {SUMMARY}; storage whose lists lack new "
            "files is not supported; the same command goes on when it is listed"
        ) from None
