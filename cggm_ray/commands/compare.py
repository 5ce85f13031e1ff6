"""Several seeds of one configuration, and strategies compared over the same seeds.

Every run is selected on validation and tested once, as it would be alone. What strategies have in common, the seed and with
it the initial weights and the order of samples, makes their results pairs: differences are taken run by run.

The folder of a comparison has

    trials/<strategy>-seed-<n>/    a run each
    runs.csv                       their test metrics
    comparison.csv                 strategy by metric: mean, deviation, difference, interval, p
    comparison.md                  the tables, with the command and the versions that made them
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cggm_ray.commands.headroom import Finished, check_headroom, write_headroom
from cggm_ray.commands.trials import run_trials
from cggm_ray.core.console import Form, print_result, printing
from cggm_ray.core.errors import TrainingError, UsageError, listed
from cggm_ray.core.optional import check_installed
from cggm_ray.core.tables import listing, text_table
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import build_dataset, check, fold_runs, prepare_data, selected_modalities
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.stopping import StopRequest
from cggm_ray.runs.folder import named, open_folder, run_folder, sole_owner
from cggm_ray.runs.provenance import note_start, versions
from cggm_ray.runs.result import read_summary
from cggm_ray.storage.files import write_text
from cggm_ray.storage.work import shown as shown_place
from cggm_ray.strategies.registry import values_of
from cggm_ray.strategies.settings import JOINT
from cggm_ray.studies.headroom import Headroom
from cggm_ray.studies.statistics import FEWEST_PAIRS, LEVEL, RESAMPLES, Difference, holm, paired_difference
from cggm_ray.studies.store import (
    FINISHED,
    Outcome,
    Trial,
    make_trial,
    outcomes,
    read_record,
)

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


def compare(config: Config, strategies: Sequence[str], seeds: Sequence[int], fixed: Container[str] = ()) -> None:
    """Runs every strategy with every seed, unless the run is finished already, and prints the table.

    Args:
        config: of all runs but for strategy and seed; its name is the comparison's.
        strategies: empty for the configuration's own; NAME@released has the recipe of the strategy's official code.
        seeds: empty for the configuration's own.
        fixed: fields that flags set, which a recipe leaves alone.

    Raises:
        UsageError: a run is not valid; nothing was started.
        TrainingError: some runs failed; the table of the others is written.
    """
    check_headroom(config)
    if len(strategies) > 1:
        check_installed("scipy", extra="compare", purpose="compare")
    config = named(config, "compare" if strategies else "seeds")
    folder = run_folder(config)
    shown = tuple(strategies) or (config.modulation.modulation,)
    trials = plan_runs(config, folder, shown, tuple(seeds) or (config.train.seed,), fixed)
    with printing(config.run.quiet, Form(config.run.log_format, config.run.name)), sole_owner(folder):
        open_folder(config, folder)
        note_start(folder, config, trials[0].shards)
        run_all(config, folder, trials, shown)


def run_all(config: Config, folder: Path, trials: Sequence[Trial], strategies: Sequence[str]) -> None:
    """Runs the trials and writes the tables in a folder that the caller owns."""
    left = sum(not read_record(trial).over for trial in trials)
    print(f"{len(trials)} runs, {left} of them to do: {shown_place(folder)}")
    task = build_dataset(config).task(open_manifest(trials[0].shards))
    metric = config.train.select or task.selection[0]
    run_trials(config, folder, trials)
    found = outcomes(trials)
    results = collect(found, strategies, metric, task.better(metric))
    failed = [outcome for outcome in found if outcome.record.status != FINISHED]
    if results.metrics:
        text = markdown(results, config, failed)
        write_text(folder / MARKDOWN, text)
        write_tables(folder, results)
        print_result(text)
        print_result(
            listing({"for a paper": folder / MARKDOWN, "every run": folder / RUNS, "every metric": folder / TABLE})
        )
        measured = config.run.headroom or (config.run.headroom is None and len(strategies) > 1)
        room = headroom_of(config, folder, trials, found) if measured else None
        if room is not None:
            write_text(folder / MARKDOWN, f"{text}\nHead-room:\n\n{room.text(markdown=True)}\n")
    if failed:
        first = failed[0].record
        raise TrainingError(f"{len(failed)} of {len(found)} runs failed; {first.name}: {first.error or first.status}")


def headroom_of(config: Config, folder: Path, trials: Sequence[Trial], found: Sequence[Outcome]) -> Headroom | None:
    """Measures the head-room of the finished runs, those of a seed and fold together; None where it was left out."""
    groups: dict[str, Finished] = {}
    for trial, outcome in zip(trials, found, strict=True):
        if outcome.record.status == FINISHED:
            strategy, pair = entry_and_pair(trial.name)
            # Where the runs are stored, and what they were compared for, is no matter of a single one.
            base = dataclasses.replace(trial.config, modulation=config.modulation)
            runs = groups[pair].runs if pair in groups else {}
            groups[pair] = Finished(name=pair, config=base, shards=trial.shards, runs={**runs, strategy: trial.folder})
    return write_headroom(config, folder, list(groups.values()), StopRequest())


def plan_runs(
    config: Config, folder: Path, strategies: Sequence[str], seeds: Sequence[int], fixed: Container[str] = ()
) -> list[Trial]:
    """Returns a trial for every strategy, seed and fold, all of them checked; none is started.

    Raises:
        UsageError: a configuration or the data is not valid.
    """
    if config.run.local:
        write: Callable[[Config], Path] = lambda part: prepare_data(part, write_shards_here)  # noqa: E731
    else:
        from cggm_ray.distributed.train.launch import prepare_on_ray as write
    trials: list[Trial] = []
    for fold, part in (fold_runs(config) or {"": config}).items():
        # Before the data is converted: a strategy may not take the flags that were given.
        entries = [(seed, strategy) for seed in seeds for strategy in strategies]
        runs = [(strategy, {**values_of(strategy, fixed), "seed": seed}) for seed, strategy in entries]
        for _, values in runs:
            part.replace(values, source="compare")
        shards = write(part)
        for strategy, values in runs:
            name = f"{strategy}{SEED}{values['seed']}" + (f"-{fold}" if fold else "")
            trial = make_trial(part, folder, len(trials), name, values, shards)
            check(trial.config, shards)
            if len(strategies) > 1:
                check_several_modalities(trial.config, shards)
            trials.append(trial)
    return trials


def entry_and_pair(name: str) -> tuple[str, str]:
    """Returns the strategy of a run, with the recipe where it has one, and its seed and fold, from the run's name."""
    strategy, _, pair = name.partition(SEED)
    return strategy, f"{SEED}{pair}".removeprefix("-")


def check_several_modalities(config: Config, shards: Path) -> None:
    """Raises a UsageError where the data has a single modality, with which strategies are the same."""
    names = selected_modalities(config, open_manifest(shards))
    if len(names) < 2:
        raise UsageError(f"compare: strategies balance at least two modalities, found {len(names)}: {listed(names)}")


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
        [metric, *(_spread(results.of(strategy, metric)) for strategy in results.values)] for metric in results.metrics
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
    command = shlex.join(["python", *sys.argv])
    packages = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    lines += ["", f"    {command}", "", f"{config.data.dataset}, {config.train.num_epochs} epochs. {packages}."]
    return "\n".join(lines) + "\n"


def comparison_table(results: Results) -> list[str]:
    """Returns one row per strategy: the selection metric, and its difference to the baseline if there are several."""
    several = len(results.values) > 1
    head = ["strategy", "runs", results.metric]
    if several:
        head += [f"difference to {results.baseline}", "pairs", f"{LEVEL:.0%} interval", "p", "p (Holm)"]
    changes = results.differences(results.metric)
    rows = [_row(results, strategy, changes.get(strategy), several) for strategy in results.values]
    return text_table(rows, head, markdown=True).splitlines()


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
    row = [strategy, str(len(values)), _spread(values)]
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


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ± {_deviation(values):.4f}" if len(values) > 1 else "")


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
