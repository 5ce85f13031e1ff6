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
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from cggm_ray.commands.headroom import Finished, check_headroom, write_headroom
from cggm_ray.commands.study_page import write_study_page
from cggm_ray.commands.trials import run_trials
from cggm_ray.core.console import Form, print_result, printing
from cggm_ray.core.errors import TrainingError, UsageError, listed
from cggm_ray.core.optional import check_installed
from cggm_ray.core.tables import listing
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import Manifest, write_shards_here
from cggm_ray.engine.assembly import build_dataset, check, fold_runs, prepare_data, selected_modalities
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.header import opening
from cggm_ray.engine.stopping import StopRequest
from cggm_ray.models.standardise import AUTO, OFF
from cggm_ray.runs.folder import named, open_folder, run_folder, sole_owner
from cggm_ray.runs.provenance import note_start
from cggm_ray.storage.files import write_text
from cggm_ray.storage.work import shown as shown_place
from cggm_ray.strategies.registry import values_of
from cggm_ray.studies.comparison import (
    MARKDOWN,
    RUNS,
    SEED,
    TABLE,
    collect,
    entry_and_pair,
    markdown,
    write_tables,
)
from cggm_ray.studies.headroom import Headroom
from cggm_ray.studies.store import (
    FINISHED,
    Outcome,
    Trial,
    make_trial,
    outcomes,
    read_record,
)


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
    if strategies:
        config = networks_alone(config)
    if len(strategies) > 1:
        check_installed("scipy", extra="compare", purpose="compare")
    config = named(config, "compare" if strategies else "seeds")
    folder = run_folder(config)
    shown = tuple(strategies) or (config.modulation.modulation,)
    with printing(config.run.quiet, Form(config.run.log_format, config.run.name)):
        print(opening(config, folder, ", ".join(shown)), flush=True)
        trials = plan_runs(config, folder, shown, tuple(seeds) or (config.train.seed,), fixed)
        with sole_owner(folder):
            open_folder(config, folder)
            note_start(folder, config, trials[0].shards)
            run_all(config, folder, trials, shown)


def networks_alone(config: Config) -> Config:
    """Returns the configuration without `--linear_blend auto`, because a comparison is about the networks; `on` stays."""
    blend = OFF if config.train.linear_blend == AUTO else config.train.linear_blend
    return config.replace({"linear_blend": blend})


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
        # It chooses on validation, which a refit has trained on.
        by_itself = config.run.headroom is None and len(strategies) > 1 and not config.train.refit
        measured = config.run.headroom or by_itself
        room = headroom_of(config, folder, trials, found) if measured else None
        if room is not None:
            write_text(folder / MARKDOWN, f"{text}\nHead-room:\n\n{room.text(markdown=True)}\n")
        write_study_page(config, folder)
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
        manifest = open_manifest(shards)
        for strategy, values in runs:
            name = f"{strategy}{SEED}{values['seed']}" + (f"-{fold}" if fold else "")
            trial = make_trial(part, folder, len(trials), name, values, shards)
            check(trial.config, manifest)
            if len(strategies) > 1:
                check_several_modalities(trial.config, manifest)
            trials.append(trial)
    return trials


def check_several_modalities(config: Config, manifest: Manifest) -> None:
    """Raises a UsageError where the data has a single modality, with which strategies are the same."""
    names = selected_modalities(config, manifest)
    if len(names) < 2:
        raise UsageError(f"compare: strategies balance at least two modalities, found {len(names)}: {listed(names)}")
