"""Registry of the functions that draw the test cases of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cggm_ray.core.registry import Registry
from cggm_ray.data.loading.split import Split
from cggm_ray.data.settings import DatasetOptions
from cggm_ray.models.net import MultimodalNet

FOLDER = "pictures"
"""Folder of the pictures in the folder of a run."""

NOTES = "cases.json"
"""File beside the pictures: the legend of their colours, and the Dice of each case by region."""

Draw = Callable[[Path, MultimodalNet, Split, DatasetOptions], Iterator[Path] | None]
"""(folder, which is made by the first picture; network in evaluation mode; test split; options of the dataset) to the files,
drawn one at a time, so that a signal can end it; None where the options ask for no picture."""

PICTURES: Registry[Draw] = Registry("drawing of the dataset", "cggm_ray.report.pictures")


def read_case_notes(folder: Path) -> dict[str, Any]:
    """Returns what a dataset left about its pictures; nothing where there is no such file, or a damaged one."""
    try:
        found = json.loads((folder / NOTES).read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
