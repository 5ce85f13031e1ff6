"""CH-SIMS (Yu et al. 2020), read as CMU-MOSI is; its sentiments lie in [-1, 1]."""

from __future__ import annotations

from typing import Any

from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.datasets.mosi import Mosi
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.tasks import Task
from cggm_ray.tasks.sims import SimsRegression


@DATASETS.register("sims")
class Sims(Mosi):
    """CH-SIMS: a sentiment in [-1, 1] from text, audio and vision."""

    name = "sims"
    rounds = False

    def generated(self, seed: int) -> dict[str, Any]:
        """Returns the generated set with sentiments in [-1, 1]."""
        content = super().generated(seed)
        return {split: part | {"labels": part["labels"] / 3} for split, part in content.items()}

    def task(self, manifest: Manifest) -> Task:
        """Returns L1 regression with the metrics of CH-SIMS."""
        return SimsRegression()
