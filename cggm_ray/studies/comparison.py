"""The tables of a comparison: test metrics by strategy, with their differences run by run.

What strategies have in common, the seed and with it the initial weights and the order of samples, makes their results pairs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cggm_ray.core.tables import text_table
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.provenance import typed, versions
from cggm_ray.runs.result import read_summary
from cggm_ray.strategies.settings import JOINT
from cggm_ray.studies.statistics import FEWEST_PAIRS, LEVEL, RESAMPLES, Difference, holm, paired_difference
from cggm_ray.studies.store import FINISHED, Outcome

BASELINE = JOINT
SEED = "-seed-"
"""Stands between the strategy and the seed in the name of a run."""
MARKDOWN, RUNS, TABLE = "comparison.md", "runs.csv", "comparison.csv"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Test metrics of all finished runs.

    Attributes:
        values: strategy to pair (seed and fold) to metric to value.
        metric: the metric that selects checkpoints.
        better: 'min' or 'max'.
    """

    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    metric: str
    better: str

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics; the selection metric is the first."""
        runs = [run for runs in self.values.values() for run in runs.values()]
        return sorted(runs[0], key=lambda name: name != self.metric) if runs else []

    @property
    def baseline(self) -> str:
        """The reference strategy: joint training if it is compared, otherwise the first one."""
        return BASELINE if BASELINE in self.values else next(iter(self.values))

    def of(self, strategy: str, metric: str) -> list[float]:
        """Returns a metric by run."""
        return [run[metric] for run in self.values[strategy].values()]

    def differences(self, metric: str) -> dict[str, Difference]:
        """Returns the difference of every strategy to the baseline, with p-values corrected over the strategies.

        Strategies that share no pair of runs with the baseline are left out.
        """
        theirs = self.values[self.baseline]
        found = {}
        for strategy, ours in self.values.items():
            pairs = [pair for pair in ours if pair in theirs]
            if strategy != self.baseline and pairs:
                found[strategy] = paired_difference(
                    [ours[p][metric] for p in pairs], [theirs[p][metric] for p in pairs]
                )
        corrected = holm({strategy: change.p for strategy, change in found.items()})
        return {name: dataclasses.replace(change, p_holm=corrected[name]) for name, change in found.items()}


def entry_and_pair(name: str) -> tuple[str, str]:
    """Returns the strategy of a run, with the recipe where it has one, and its seed and fold, from the run's name."""
    strategy, _, pair = name.partition(SEED)
    return strategy, f"{SEED}{pair}".removeprefix("-")


def collect(found: Sequence[Outcome], strategies: Sequence[str], metric: str, better: str) -> Results:
    """Returns the test metrics of the finished runs."""
    values: dict[str, dict[str, dict[str, float]]] = {strategy: {} for strategy in strategies}
    for outcome in found:
        if outcome.record.status == FINISHED:
            strategy, pair = entry_and_pair(outcome.record.name)
            values[strategy][pair] = read_summary(outcome.folder).test
    return Results(values={name: runs for name, runs in values.items() if runs}, metric=metric, better=better)


def markdown(results: Results, config: Config, failed: Sequence[Outcome] = ()) -> str:
    """Returns the tables, with everything that is needed to reproduce them."""
    arrow = "lower" if results.better == "min" else "higher"
    pairs = max(len(runs) for runs in results.values.values())
    lines = [
        f"Test {results.metric} ({arrow} is better), mean ± standard deviation over {pairs} runs; every run selected on "
        f"validation and tested once.",
        "",
    ]
    several = len(results.values) > 1
    lines += comparison_table(results)
    lines += ["", "All test metrics:", ""]
    others = [
        [metric, *(spread(results.of(strategy, metric)) for strategy in results.values)] for metric in results.metrics
    ]
    lines += [text_table(others, ["", *results.values], markdown=True), ""]
    if several:
        changes = results.differences(results.metric)
        tests = sum(change.p is not None for change in changes.values())
        numbers = sorted({change.pairs for change in changes.values()})
        lines.append(
            f"Differences are taken run by run (same seed and fold), strategy minus {results.baseline}, over "
            f"{' to '.join(map(str, dict.fromkeys(numbers[:1] + numbers[-1:]))) or 'no'} pairs. Interval: percentile bootstrap "
            f"of their mean, {RESAMPLES} resamples; none from fewer than {FEWEST_PAIRS} pairs, of which it would be too "
            f"narrow. p: two-sided paired t-test. p (Holm): the same, corrected by Holm's method for the {tests} tests of this "
            "table, one a strategy."
        )
    lines += [f"Failed: {outcome.record.name}: {outcome.record.error}" for outcome in failed]
    packages = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    lines += ["", f"    {typed(sys.argv)}", "", f"{config.data.dataset}, {config.train.num_epochs} epochs. {packages}."]
    return "\n".join(lines) + "\n"


def comparison_table(results: Results) -> list[str]:
    """Returns the lines of the table that `comparison_cells` describes, in Markdown."""
    head, rows = comparison_cells(results)
    return text_table(rows, head, markdown=True).splitlines()


def comparison_cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Returns the head of the table, and one row per strategy: the selection metric, and its difference to the baseline."""
    several = len(results.values) > 1
    head = ["strategy", "runs", results.metric]
    if several:
        head += [f"difference to {results.baseline}", "pairs", f"{LEVEL:.0%} interval", "p", "p (Holm)"]
    changes = results.differences(results.metric)
    return head, [_row(results, strategy, changes.get(strategy), several) for strategy in results.values]


def write_tables(folder: Path, results: Results) -> None:
    """Writes `runs.csv`, with one row per run, and `comparison.csv`, with one row per strategy and metric.

    p-values are corrected over the strategies of one metric.
    """
    runs = [
        {"strategy": strategy, "run": pair, **metrics}
        for strategy, by_pair in results.values.items()
        for pair, metrics in by_pair.items()
    ]
    pyarrow.csv.write_csv(pa.Table.from_pylist(runs), folder / RUNS)
    rows = []
    names = [field.name for field in dataclasses.fields(Difference)]
    changes = {metric: results.differences(metric) for metric in results.metrics}
    for strategy in results.values:
        for metric in results.metrics:
            values, change = results.of(strategy, metric), changes[metric].get(strategy)
            rows.append(
                {
                    "strategy": strategy,
                    "metric": metric,
                    "runs": len(values),
                    "mean": float(np.mean(values)),
                    "std": _deviation(values),
                    "baseline": results.baseline,
                    **{f"difference_{name}": getattr(change, name, None) for name in names},
                }
            )
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), folder / TABLE)


def _row(results: Results, strategy: str, change: Difference | None, several: bool) -> list[str]:
    values = results.of(strategy, results.metric)
    row = [strategy, str(len(values)), spread(values)]
    if not several:
        return row
    if change is None:
        return [*row, *([""] * 5)]
    interval = f"n < {FEWEST_PAIRS}" if change.pairs < FEWEST_PAIRS else "no spread"
    if change.low is not None and change.high is not None:
        interval = f"[{change.low:+.4f}, {change.high:+.4f}]"
    numbers = [interval, _probability(change.p), _probability(change.p_holm)]
    return [*row, f"{change.mean:+.4f}", str(change.pairs), *numbers]


def _probability(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def spread(values: Sequence[float]) -> str:
    """Returns the mean of several runs, with their standard deviation."""
    return f"{np.mean(values):.4f}" + (f" ± {_deviation(values):.4f}" if len(values) > 1 else "")


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
