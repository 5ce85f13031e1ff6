"""Checks that the saved checkpoint of a run still has the metrics that the run recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cggm_ray.core.seeding import make_deterministic
from cggm_ray.core.tables import text_table
from cggm_ray.engine.evaluation import evaluate
from cggm_ray.engine.runtime import Record
from cggm_ray.runs.finished import open_finished
from cggm_ray.runs.provenance import read_provenance, versions

TOLERANCE = 1e-4
"""Largest accepted relative difference of a metric if versions, threads or the number of workers changed.

Sums are added in another order then. A sample between two classes may still change a count.
"""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Recorded metrics of a run, and those of its checkpoint now.

    Attributes:
        recorded, now: by split and metric.
        changed: reasons why bits may differ; empty if equal bits are expected.
    """

    recorded: Mapping[str, Record]
    now: Mapping[str, Record]
    changed: tuple[str, ...]

    def same(self, split: str, metric: str) -> bool:
        """Returns whether a value equals the recorded one exactly, or within `TOLERANCE` if something changed."""
        before, after = self.recorded[split].get(metric, math.nan), self.now[split][metric]
        if math.isnan(before) or math.isnan(after):
            return math.isnan(before) and math.isnan(after)
        return before == after or (bool(self.changed) and math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=1e-7))

    @property
    def equal(self) -> bool:
        """Whether all values are the same."""
        return all(self.same(split, metric) for split, record in self.now.items() for metric in record)

    def table(self) -> str:
        """Returns one line per value, and the verdict."""
        rows = []
        for split, record in self.now.items():
            for metric, value in record.items():
                before = self.recorded[split].get(metric, math.nan)
                mark = "" if self.same(split, metric) else "differs"
                rows.append([f"{split} {metric}", f"{before:.8g}", f"{value:.8g}", mark])
        lines = [text_table(rows, ["", "recorded", "now", ""])]
        how = f"within {TOLERANCE:g}, because of other {', '.join(self.changed)}" if self.changed else "to the last bit"
        lines.append(f"equal {how}" if self.equal else f"not equal {how}")
        return "\n".join(lines)


def verify(folder: Path) -> Verified:
    """Evaluates the best checkpoint of a finished run on validation and test, in this process.

    Raises:
        UsageError: the folder holds no finished run, or its data is not there any more.
        TrainingError: the checkpoint is damaged.
    """
    folder = folder.absolute()
    entries = read_provenance(folder)
    entry = entries[-1] if entries else {}
    run = open_finished(folder)
    if run.config.train.deterministic:
        make_deterministic()
    if entry.get("threads"):
        torch.set_num_threads(entry["threads"])
    now = {
        name: evaluate(run.config.train, run.net, run.task, run.split(name), run.runtime) for name in ("valid", "test")
    }
    return Verified(
        recorded={"valid": run.result.valid, "test": run.result.test},
        now=now,
        changed=_changes(entry, run.runtime.device.type, run.shards.name),
    )


def _changes(entry: Mapping[str, Any], device: str, shards: str) -> tuple[str, ...]:
    """Returns the names of what differs from the time of the test."""
    if not entry:
        return ("provenance (none was recorded)",)
    now = {"versions": versions(), "threads": torch.get_num_threads(), "workers": 1, "device": device}
    changed = [name for name, value in now.items() if entry.get(name) != value]
    if (entry.get("data") or {}).get("set") != shards:
        changed.append("data")
    return tuple(changed)
