"""What a search left about itself, for the page of the run that it led to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cggm_ray.runs.result import SUMMARY

SEARCH = "search"
"""Folder of a search inside that of the run that it led to."""


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """A search that is over.

    Attributes:
        metric, mode: the validation metric, and 'min' or 'max'.
        minutes: that it was given; None for no limit.
        trials: their number by status.
        space: what they varied: field to kind and values.
        values: of the best trial.
        value: its validation metric.
        first_values, first_value: of the first trial, which has the values that the search started from.
    """

    metric: str
    mode: str
    minutes: float | None
    trials: Mapping[str, int]
    space: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]
    value: float
    first_values: Mapping[str, Any]
    first_value: float | None


def read_search_record(folder: Path) -> SearchRecord | None:
    """Returns the search that led to a run, or None if none did, or if its summary cannot be read.

    Args:
        folder: of the run.
    """
    try:
        found = json.loads((folder / SEARCH / SUMMARY).read_text())
        return SearchRecord(
            metric=found["metric"],
            mode=found["mode"],
            minutes=found["minutes"],
            trials=found["trials"],
            space=found["space"],
            values=found["values"],
            value=found["value"],
            first_values=found["first"]["values"],
            first_value=found["first"]["value"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
