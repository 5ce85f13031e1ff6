"""A search, its trials, and what they leave in its folder.

The folder of a search has

    search.yaml config.yaml    what was searched
    trials/<name>/             a run each; a trial trains and validates, it never sees the test split
    trials.csv, .parquet       every trial with its values, epochs and best validation value
    best.yaml, best/           configuration of the best trial, for --config, and its checkpoint
    summary.json               what was searched, and the validation and test metrics of the best trial, the only one tested
    pictures/                  the metric against each parameter, rho against lambda, learning curves
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import yaml

from cggm_ray.core.tables import text_table
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.pictures import FOLDER as PICTURES
from cggm_ray.runs.result import SUMMARY, Result
from cggm_ray.storage.files import write_text
from cggm_ray.studies.pictures import draw_search
from cggm_ray.studies.space import Search
from cggm_ray.studies.store import Outcome, Trial

if TYPE_CHECKING:
    from cggm_ray.distributed.tune.trial import Study

SEARCH = "search.yaml"
TABLE = "trials"
BEST_CONFIG = "best.yaml"
LEADERS = 5
"""Number of trials in the table at the end."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked search.

    Attributes:
        search: of the file.
        source: the file's name, for messages.
        base: configuration that the trials change; its `select` is the metric.
        folder: of the search.
        shards: folder of the converted set.
        metric, mode: the validation metric and which way it improves.
        epochs: of a trial that is not stopped.
        minutes: after which the search ends; None for a search that ends with its trials.
        kept: trials whose checkpoints are kept; None for all.
    """

    search: Search
    source: str
    base: Config
    folder: Path
    shards: Path
    metric: str
    mode: str
    epochs: int
    minutes: float | None = None
    kept: int | None = None


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The trials of a search that is over.

    Attributes:
        study: that ran them.
        trials: all of them, those included that were never started.
        found: outcomes of those that were started.
        order: outcomes that have a value, best first.
    """

    study: Study
    trials: Sequence[Trial]
    found: Sequence[Outcome]
    order: Sequence[Outcome]

    @property
    def best(self) -> Outcome:
        """The best trial by validation."""
        return self.order[0]


def write_table(plan: Plan, found: Sequence[Outcome]) -> None:
    """Writes `trials.csv` and `trials.parquet`, with one row per trial."""
    keys = [parameter.key for parameter in plan.search.space]
    rows = [
        {
            "trial": outcome.record.name,
            "status": outcome.record.status,
            "epochs": outcome.epochs,
            f"best_{plan.metric}": outcome.best,
            "best_epoch": outcome.best_epoch,
            **{key: outcome.record.values.get(key) for key in keys},
            "seconds": sum(line["seconds"] or 0 for line in outcome.lines),
            "starts": len(outcome.record.starts),
            "error": outcome.record.error,
        }
        for outcome in found
    ]
    content = pa.Table.from_pylist(rows)
    pyarrow.csv.write_csv(content, plan.folder / f"{TABLE}.csv")
    pyarrow.parquet.write_table(content, plan.folder / f"{TABLE}.parquet")


def conclude(plan: Plan, done: Searched, result: Result | None = None) -> None:
    """Writes the best configuration, the summary and the pictures into the folder of the search.

    Args:
        plan: of the search.
        done: its trials.
        result: of the test of the best trial; None where it was not tested.
    """
    best, found = done.best, done.found
    content = plan.base.replace(best.record.values).to_dict()
    # Storage and resources of a run are no result of the search.
    del content["run"], content["data"]["shard_path"]
    value = f"valid {plan.metric} {best.best:.6g} at epoch {best.best_epoch}"
    text = f"# {best.record.name} of {plan.folder.name}: {value}\n{yaml.safe_dump(content, sort_keys=False)}"
    write_text(plan.folder / BEST_CONFIG, text)
    statuses = [outcome.record.status for outcome in found]
    summary = {
        "trial": best.record.name,
        "values": best.record.values,
        "metric": plan.metric,
        "mode": plan.mode,
        "value": best.best,
        "best_epoch": best.best_epoch,
        **({} if result is None else {"valid": result.valid, "test": result.test}),
        "first": {"trial": found[0].record.name, "values": found[0].record.values, "value": found[0].best},
        "minutes": plan.minutes,
        "space": plan.search.to_dict()["space"],
        "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
        "epochs": sum(outcome.epochs for outcome in found),
        "epochs_without_stopping": plan.epochs * len(found),
    }
    write_text(plan.folder / SUMMARY, json.dumps(summary, indent=1))
    draw_search(plan.folder / PICTURES, plan.search, found, plan.metric, plan.mode)


def leaders(plan: Plan, order: Sequence[Outcome]) -> str:
    """Returns the table of the best trials with their values."""
    keys = [parameter.key for parameter in plan.search.space]
    rows = []
    for outcome in order[:LEADERS]:
        values = [outcome.record.values.get(key, "-") for key in keys]
        shown = [
            f"{value:.4g}" if isinstance(value, float) else "default" if value == "" else value for value in values
        ]
        rows.append([outcome.record.name, outcome.best, outcome.best_epoch, *shown])
    return text_table(rows, ["", f"valid {plan.metric}", "epoch", *keys])
