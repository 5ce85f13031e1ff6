"""What a benchmark has found, in files from which it goes on and its page is made.

    sets.json      of every set: the metric that selects, its direction, and the head-room
    trials.csv     set, arm, trial: what it changed, its best validation value, and its state
    results.csv    set, arm, seed, quantity, value: `test/accuracy`, `valid/accuracy`, `seconds`, `contribution/text` ...

A run whose rows are there is not run again, even where its folder is gone.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.errors import UsageError
from cggm_ray.storage.files import write_text
from cggm_ray.studies.bench import Bench
from cggm_ray.studies.headroom import Headroom
from cggm_ray.studies.statistics import Difference, holm, paired_difference

SETS, TRIALS, RESULTS = "sets.json", "trials.csv", "results.csv"
TRIAL_COLUMNS = ("set", "arm", "trial", "status", "value", "changes")
RESULT_COLUMNS = ("set", "arm", "seed", "quantity", "value")
TEST, VALID = "test/", "valid/"
CONTRIBUTION, IMBALANCE, SECONDS, STEPS, MEMORY = "contribution/", "imbalance", "seconds", "steps", "peak_memory"

Run = tuple[str, str, int]
"""Set, arm and seed, or set, arm and trial."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial of a search.

    Attributes:
        status: of `cggm_ray.studies.store`.
        value: its best validation metric; None where it has none.
        changes: field to value.
    """

    status: str
    value: float | None
    changes: Mapping[str, Any]


@dataclass(kw_only=True)
class Results:
    """The rows of both files.

    Attributes:
        trials: set, arm and number of the trial to what it found.
        runs: set, arm and seed to quantity to value.
    """

    trials: dict[Run, Tried] = field(default_factory=dict)
    runs: dict[Run, dict[str, float]] = field(default_factory=dict)

    def best(self, name: str, arm: str, better: str) -> Tried | None:
        """Returns the trial with the best validation value, the first one of several; None where none has a value."""
        found = [
            t for (s, a, _), t in sorted(self.trials.items()) if (s, a) == (name, arm) and usable(t.value) is not None
        ]
        sign = 1.0 if better == "min" else -1.0
        return min(found, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def of(self, name: str, arm: str, quantity: str) -> dict[int, float]:
        """Returns seed to value of a quantity, for the runs that have it, in the order of the seeds."""
        found = {
            seed: run[quantity] for (s, a, seed), run in self.runs.items() if (s, a) == (name, arm) and quantity in run
        }
        return dict(sorted(found.items()))

    def save(self, folder: Path) -> None:
        """Writes both files, whole or not at all."""
        trials = [
            (*key, t.status, "" if t.value is None else repr(t.value), json.dumps(dict(t.changes)))
            for key, t in sorted(self.trials.items())
        ]
        runs = [(*key, name, repr(value)) for key, run in sorted(self.runs.items()) for name, value in run.items()]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TRIALS, _csv(TRIAL_COLUMNS, trials))
        write_text(folder / RESULTS, _csv(RESULT_COLUMNS, runs))


def usable(value: float | None) -> float | None:
    """Returns a value that is finite, else None."""
    return value if value is not None and math.isfinite(value) else None


def read_results(folder: Path) -> Results:
    """Reads what `Results.save` wrote; empty where nothing is there.

    Raises:
        UsageError: a file is damaged; the message names its line.
    """
    found = Results()
    for line, row in _rows(folder / TRIALS, TRIAL_COLUMNS):
        try:
            key = (row["set"], row["arm"], int(row["trial"]))
            value = float(row["value"]) if row["value"] else None
            found.trials[key] = Tried(status=row["status"], value=value, changes=dict(json.loads(row["changes"])))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{folder / TRIALS}: line {line}: {error}") from None
    for line, row in _rows(folder / RESULTS, RESULT_COLUMNS):
        try:
            key = (row["set"], row["arm"], int(row["seed"]))
            found.runs.setdefault(key, {})[row["quantity"]] = float(row["value"])
        except (ValueError, TypeError) as error:
            raise UsageError(f"{folder / RESULTS}: line {line}: {error}") from None
    return found


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A set with the metric that selects.

    Attributes:
        metric: name.
        better: 'min' or 'max'.
        headroom: None where it was not measured.
    """

    metric: str
    better: str
    headroom: Headroom | None = None

    @property
    def counted(self) -> bool:
        """Whether the set counts."""
        return self.headroom is None or self.headroom.room is not False


def save_standings(folder: Path, standings: Mapping[str, Standing]) -> None:
    """Writes `sets.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETS, json.dumps({name: asdict(each) for name, each in standings.items()}, indent=1) + "\n")


def read_standings(folder: Path) -> dict[str, Standing]:
    """Reads what `save_standings` wrote; empty where nothing is there.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / SETS
    try:
        found = {
            name: Standing(**{**part, "headroom": Headroom(**part["headroom"]) if part["headroom"] else None})
            for name, part in json.loads(path.read_text(encoding="utf-8")).items()
        }
        for each in found.values():
            if each.headroom is not None:
                each.headroom.cells()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return found


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one set says about a question.

    Attributes:
        name: of the set.
        counted: whether it counts: it has room for balancing, or that was not measured.
        change: the difference over the seeds that both arms have, with p-values corrected over the sets that count.
        ahead: whether the first arm is better in the mean.
    """

    name: str
    counted: bool
    change: Difference
    ahead: bool


def answers(results: Results, standings: Mapping[str, Standing], question: tuple[str, str]) -> list[Answer]:
    """Returns the answers of all sets with pairs of runs for a question; p-values are corrected over those that count."""
    found: dict[str, Difference] = {}
    for name, standing in standings.items():
        ours, theirs = (results.of(name, arm, TEST + standing.metric) for arm in question)
        seeds = [seed for seed in ours if seed in theirs]
        if seeds:
            found[name] = paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])
    corrected = holm({name: change.p for name, change in found.items() if standings[name].counted})
    return [
        Answer(
            name=name,
            counted=standings[name].counted,
            change=_with(change, corrected.get(name)),
            ahead=change.mean * (1 if standings[name].better == "max" else -1) > 0,
        )
        for name, change in found.items()
    ]


def relative_cost(results: Results, bench: Bench, name: str, arm: str) -> float | None:
    """Returns the seconds of a step of an arm over those of the baseline, medians over the runs; None without both."""

    def rate(each: str) -> list[float]:
        seconds, steps = (results.of(name, each, quantity) for quantity in (SECONDS, STEPS))
        return [seconds[seed] / steps[seed] for seed in seconds if steps.get(seed)]

    return _ratio(rate(arm), rate(bench.baseline))


def relative_memory(results: Results, bench: Bench, name: str, arm: str) -> float | None:
    """Returns the peak memory of an arm over that of the baseline, medians over the runs; None without both."""
    ours, theirs = (list(results.of(name, each, MEMORY).values()) for each in (arm, bench.baseline))
    return _ratio(ours, theirs)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The quotient of the medians; None where one of them is missing or 0."""
    medians = [float(np.median(values)) if values else 0.0 for values in (ours, theirs)]
    return medians[0] / medians[1] if all(medians) else None


def quantities(results: Results, name: str, prefix: str) -> list[str]:
    """Returns what follows a prefix among the quantities of a set."""
    found = (key for (s, _, _), run in results.runs.items() if s == name for key in run if key.startswith(prefix))
    return list(dict.fromkeys(key.removeprefix(prefix) for key in found))


def _with(change: Difference, p: float | None) -> Difference:
    return Difference(pairs=change.pairs, mean=change.mean, low=change.low, high=change.high, p=change.p, p_holm=p)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _rows(path: Path, columns: Sequence[str]) -> Iterable[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise UsageError(
            f"{path}: found the columns {', '.join(reader.fieldnames or ())}; expected {', '.join(columns)}"
        )
    for row in reader:
        yield reader.line_num, row
