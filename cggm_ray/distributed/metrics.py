"""Numbers of a running worker as gauges of Ray, which every node offers to Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

RUN, RANK, MODALITY = "run", "rank", "modality"
HELP = {
    "loss": "mean training loss of the running epoch",
    "coefficient": "mean coefficient of a modality in the running epoch",
    "samples_per_second": "samples of all workers a second in the running epoch",
    "waits_for_data_seconds": "seconds of the running epoch in which the worker waited for samples",
    "waits_between_steps_seconds": "seconds of the running epoch in which the worker waited for saves and other workers",
}


class Gauges:
    """Gauges `ray_cggm_NAME` with the tags run and rank, and modality where there is a number for each.

    Args:
        run: name of it.
        rank: of the worker.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {RUN: run, RANK: str(rank)}
        self._gauges: dict[str, Gauge] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Sets gauges, which are made when their name first occurs: 'name', 'name/modality' or 'train/name'."""
        for key, value in values.items():
            name, _, modality = key.removeprefix("train/").partition("/")
            if name not in self._gauges:
                keys = (RUN, RANK, MODALITY) if modality else (RUN, RANK)
                # Prometheus takes no other characters in a name.
                safe = re.sub(r"\W", "_", name)
                self._gauges[name] = Gauge(f"cggm_{safe}", HELP.get(name, name.replace("_", " ")), tag_keys=keys)
            self._gauges[name].set(value, self._tags | ({MODALITY: modality} if modality else {}))
