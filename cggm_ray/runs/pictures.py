"""Registry of the functions that draw the test cases of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cggm_ray.core.registry import Registry
from cggm_ray.data.loading.split import Split
from cggm_ray.data.settings import DatasetOptions
from cggm_ray.models.net import MultimodalNet

FOLDER = "pictures"
"""Folder of the pictures in the folder of a run."""

Draw = Callable[[Path, MultimodalNet, Split, DatasetOptions], Iterator[Path] | None]
"""(folder, which is made by the first picture; network in evaluation mode; test split; options of the dataset) to the files,
drawn one at a time, so that a signal can end it; None where the options ask for no picture."""

PICTURES: Registry[Draw] = Registry("drawing of the dataset", "cggm_ray.report.pictures")
