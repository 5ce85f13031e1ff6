"""A study as its page shows it: all that the folder of a search or of a comparison says, finished or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import UsageError
from cggm_ray.engine.configuration import Config
from cggm_ray.report.run_record import STUDY, selecting
from cggm_ray.runs.finished import read_config
from cggm_ray.runs.provenance import read_provenance
from cggm_ray.runs.result import SUMMARY
from cggm_ray.studies.comparison import Results, collect, entry_and_pair
from cggm_ray.studies.headroom import HEADROOM, Headroom
from cggm_ray.studies.space import Search, read_search
from cggm_ray.studies.store import Outcome, ranked, recorded_outcomes

SEARCH_FILE = "search.yaml"


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A search or a comparison.

    Attributes:
        folder: of the study.
        config: that its runs change.
        found: the trials that were started, in their order.
        metric, better: that selects, and 'min' or 'max'.
        search: what was searched; None for a comparison.
        results: test metrics by strategy, of a comparison.
        tested: metrics of the best trial of a search that is over, by split.
        headroom: what balancing can gain; None where it was not measured.
        provenance: a line a start.
    """

    folder: Path
    config: Config
    found: Sequence[Outcome]
    metric: str
    better: str
    search: Search | None = None
    results: Results | None = None
    tested: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    headroom: Headroom | None = None
    provenance: Sequence[Mapping[str, Any]] = ()

    @property
    def order(self) -> list[Outcome]:
        """The trials that have a value, best first."""
        return ranked(self.found, self.better)

    @property
    def running(self) -> bool:
        """Whether a trial is not over."""
        return any(not outcome.record.over for outcome in self.found)


def is_study(folder: Path) -> bool:
    """Returns whether a folder holds a study and no run of its own."""
    return (folder / STUDY).is_dir() and not (folder / "metrics.jsonl").exists()


def read_study_record(folder: Path) -> StudyRecord:
    """Reads what the folder of a study holds.

    Raises:
        UsageError: it is no folder of a study, or a file in it is damaged.
    """
    folder = folder.absolute()
    config = read_config(folder)
    if not is_study(folder):
        raise UsageError(f"{folder} holds no study; expected the folder of a search or of a comparison")
    found = recorded_outcomes(folder)
    metric, better = "loss", "min"
    for outcome in found:
        metric, better = selecting(outcome.folder)
        if metric != "loss":
            break
    search = read_search(folder / SEARCH_FILE, config) if (folder / SEARCH_FILE).exists() else None
    results: Results | None = None
    tested: dict[str, Mapping[str, float]] = {}
    if search is None:
        strategies = list(dict.fromkeys(entry_and_pair(outcome.record.name)[0] for outcome in found))
        results = collect(found, strategies, metric, better)
    elif (folder / SUMMARY).exists():
        summary = read_json(folder / SUMMARY)
        tested = {split: summary[split] for split in ("valid", "test") if split in summary}
    return StudyRecord(
        folder=folder,
        config=config,
        found=found,
        metric=metric,
        better=better,
        search=search,
        results=results,
        tested=tested,
        headroom=Headroom.load(folder / HEADROOM) if (folder / HEADROOM).exists() else None,
        provenance=[entry for entry in read_provenance(folder) if isinstance(entry, dict)],
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object from a file.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return content
