"""Registry of the functions that write the predicted maps of a dense task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cggm_ray.core.registry import Registry
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.loading.collector import Collector
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.shards import Manifest


@dataclass(frozen=True, kw_only=True)
class MapPlan:
    """Inputs of the prediction of maps.

    Attributes:
        dataset: with the settings of the run.
        shards: folder of the set.
        manifest: of the set.
        split: of it.
        modalities: that the network takes.
        device: for the batches.
        out: an empty folder for the maps.
        sources: raw files of the set.
    """

    dataset: Dataset
    shards: Path
    manifest: Manifest
    split: str
    modalities: tuple[str, ...]
    device: torch.device
    out: Path
    sources: Sequence[Path]


OpenMaps = Callable[[MapPlan], tuple[Split, Collector]]
"""A function that returns the whole samples of a split and the writer of their predicted maps."""

MAPS: Registry[OpenMaps] = Registry("writer of maps", "cggm_ray.data.datasets")
