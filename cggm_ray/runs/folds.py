"""The results of several folds: mean and standard deviation, printed and kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import listing, text_table
from cggm_ray.runs.result import Result
from cggm_ray.storage.files import write_text

FOLDS = "folds.json"


def save_folds(folder: Path, results: Mapping[str, Result]) -> Path:
    """Writes `folds.json`: for valid and test, every metric's mean, sample standard deviation, and value by fold.

    Args:
        folder: of the run as a whole; made if need be.
        results: by fold.

    Returns:
        The file.

    Raises:
        UsageError: the folder cannot be written.
    """
    content = {}
    for split in ("valid", "test"):
        values = _by_metric(split, results)
        content[split] = {
            name: {"mean": _mean(v.values()), "std": _deviation(v.values()), "folds": v} for name, v in values.items()
        }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FOLDS, json.dumps(content, indent=1))
    except OSError as error:
        raise UsageError(f"storage_path: {folder} cannot be written: {error.strerror}") from None
    return folder / FOLDS


def fold_table(results: Mapping[str, Result], path: Path) -> str:
    """Returns the test metrics of every fold side by side, with their mean and standard deviation."""
    rows = [
        [name, *values.values(), _mean(values.values()), _deviation(values.values())]
        for name, values in _by_metric("test", results).items()
    ]
    return text_table(rows, ["test", *results, "mean", "std"]) + "\n" + listing({"all folds": path})


def _by_metric(split: str, results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    records = {fold: getattr(result, split) for fold, result in results.items()}
    names = next(iter(records.values()))
    return {name: {fold: record[name] for fold, record in records.items()} for name in names}


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(list(values))


def _deviation(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else 0.0
