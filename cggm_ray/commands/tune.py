"""Runs a search over hyper-parameters: it checks the search, runs it on Ray Tune, and tests the best trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cggm_ray.commands.search_folder import BEST_CONFIG, SEARCH, TABLE, Plan, Searched, conclude, leaders, write_table
from cggm_ray.commands.study_page import write_study_page
from cggm_ray.core.console import Form, print_result, printing
from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.core.optional import check_installed
from cggm_ray.core.tables import listing
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.assembly import build_dataset, check
from cggm_ray.engine.budget import planned_epochs
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.header import opening
from cggm_ray.engine.own_code import own_code
from cggm_ray.engine.state import BEST
from cggm_ray.runs.ending import directions, table
from cggm_ray.runs.folder import look, named, open_folder, run_folder, sole_owner, start_over
from cggm_ray.runs.pictures import FOLDER as PICTURES
from cggm_ray.runs.provenance import note_start
from cggm_ray.storage.files import copy_files, write_folder, write_text
from cggm_ray.storage.work import url_of
from cggm_ray.studies.parameters import Values
from cggm_ray.studies.space import Resources, Search, check_epochs, read_search, try_values
from cggm_ray.studies.store import (
    TRIALS,
    WAITING,
    Trial,
    make_trial,
    outcomes,
    prune,
    ranked,
    read_record,
    trial_name,
)

if TYPE_CHECKING:
    from cggm_ray.distributed.tune.trial import Study


def sweep(config: Config, path: Path) -> None:
    """Starts or continues the search of a file, and prints its results.

    Args:
        config: what the trials change; its name is the search's.
        path: of the yaml.

    Raises:
        UsageError: the search cannot be run; nothing was started.
        TrainingError: no trial came to an end.
    """
    if config.run.local:
        raise UsageError("tune: a search runs on Ray; leave out --local")
    config = named(config, "tune")
    with printing(config.run.quiet, Form(config.run.log_format, config.run.name)):
        search = read_search(path, config)
        print(opening(config, config.run.storage / str(config.run.name)), flush=True)
        plan = plan_search(config, search, str(path))
        with sole_owner(plan.folder):
            run_search(dataclasses.replace(plan, base=start_over(plan.base, plan.folder)))


def run_search(plan: Plan) -> None:
    """Runs the search in a folder that the caller owns, and tests the best trial."""
    done = search_trials(plan)
    from cggm_ray.distributed.tune.trial import test_trial

    best, found = done.best, done.found
    result = test_trial(done.study, done.trials[best.record.number], best.epochs)
    write_folder(plan.folder / BEST, lambda partial: copy_files(best.folder / BEST, partial))
    conclude(plan, done, result)
    print_result(leaders(plan, done.order))
    better = directions(plan.base, result)
    print_result(table(dataclasses.replace(result, folder=plan.folder), better, plan.base))
    trained, full = sum(outcome.epochs for outcome in found), plan.epochs * len(found)
    print_result(f"{trained} of {full} epochs trained, {1 - trained / full:.0%} saved")
    places = {"all trials": f"{TABLE}.csv", "best configuration": BEST_CONFIG, "pictures": PICTURES}
    print_result(listing({what: plan.folder / name for what, name in places.items()}))
    write_study_page(plan.base, plan.folder)


def search_trials(plan: Plan) -> Searched:
    """Runs the trials of a search in a folder that the caller owns, and writes their table; the test split is not used.

    Raises:
        TrainingError: no trial has a value.
    """
    from cggm_ray.distributed.tune.tune import capacity, run_trials

    study, search = make_study(plan), plan.search
    together = capacity(study)
    _open_folder(plan)
    total = search.drawn if search.searcher == "optuna" else len(study.trials)
    amount = f"{total} trials" if plan.minutes is None else f"up to {total} trials in {plan.minutes:.3g} minutes, each"
    print(f"{amount} of at most {plan.epochs} epochs, {min(together, search.concurrent or together)} at once")
    done = _searched(plan, study, run_trials(study, search, plan.mode))
    if plan.kept is not None:
        prune(done.found, plan.mode, plan.kept)
    write_table(plan, done.found)
    if not done.order:
        errors = [outcome.record.error for outcome in done.found if outcome.record.error]
        if plan.minutes is not None and not errors:
            raise TrainingError(
                f"{plan.folder}: no trial was validated in {plan.minutes:.3g} minutes; the same command with more --minutes "
                "goes on"
            )
        raise TrainingError(f"{plan.folder}: no trial has a value; the first error: {errors[0] if errors else 'none'}")
    return done


def trials_of(plan: Plan) -> Searched:
    """Returns the trials of a search that is over."""
    study = make_study(plan)
    return _searched(plan, study, study.trials)


def make_study(plan: Plan) -> Study:
    """Returns what the processes of the trials need to know."""
    from cggm_ray.distributed.tune.trial import Study

    search = plan.search
    return Study(
        folder=plan.folder,
        base=plan.base,
        shards=plan.shards,
        trials=tuple(first_trials(plan)),
        own=own_code(plan.base),
        resources=_resources(search, plan.base),
        test=False,
        exchanges=search.scheduler.name == "pbt",
        max_failures=search.max_failures,
        epochs=plan.epochs,
        minutes=plan.minutes,
        kept=plan.kept,
    )


def _searched(plan: Plan, study: Study, trials: Sequence[Trial]) -> Searched:
    found = [outcome for outcome in outcomes(trials) if outcome.record.status != WAITING]
    return Searched(study=study, trials=trials, found=found, order=ranked(found, plan.mode))


def plan_search(config: Config, search: Search, source: str) -> Plan:
    """Checks all of a search, including data and folder, before any trial starts.

    Args:
        config: what the trials change; its name is the search's.
        search: what they change in it.
        source: of the search, for messages.

    Raises:
        UsageError: a part of the search is not valid; the message names it.
    """
    if search.searcher == "optuna":
        check_installed("optuna", extra="optuna", purpose="searcher")
    epochs = search.scheduler.max_epochs
    base = named(
        config if epochs is None else dataclasses.replace(config, train=config.train.of_epochs(epochs)), "tune"
    )
    if search.scheduler.name == "pbt" and url_of(base.run.storage) is not None:
        raise UsageError(
            f"{source}: scheduler: pbt: trials hand their checkpoints to each other in a folder that all nodes mount; choose "
            f"another scheduler, or another --storage_path than {base.run.storage_path}"
        )
    if search.scheduler.name == "pbt" and base.run.max_workers > 1:
        raise UsageError(f"{source}: scheduler: pbt: population based training has trials of one worker")
    if search.metric is not None:
        base = base.replace({"select": search.metric.removeprefix("valid/")}, source=source)
    if build_dataset(base).folds():
        raise UsageError("tune: this configuration stands for several folds; choose one")
    if base.train.refit:
        raise UsageError(
            f"{source}: refit: found {base.train.refit:g}; expected 0, because a search chooses on validation"
        )
    folder = run_folder(base)
    if not base.run.fresh:
        _check_same_search(search, base, folder)
    # Ray is imported when it is needed, and not above: reading a search and its mistakes do without it.
    from cggm_ray.distributed.train.launch import prepare_on_ray
    from cggm_ray.distributed.tune.draws import draw_trials

    drawn = draw_trials(search, base, source)

    try:
        shards = prepare_on_ray(base)
    except UsageError as error:
        # The search's metric is the field `select` of its trials.
        if search.metric is None or not str(error).startswith("select: "):
            raise
        raise UsageError(f"{source}: metric: {str(error).removeprefix('select: ')}") from None
    metric, mode = _selection(base, shards, search, source)
    options = build_dataset(base).shard_options()
    # Once: at a URL it asks the store for a list of the shards.
    manifest = open_manifest(shards)
    for values in drawn:
        trial = try_values(base, values, source)
        changed = build_dataset(trial).shard_options()
        for name in options:
            if changed[name] != options[name]:
                raise UsageError(f"{source}: space: {name} changes the converted data, which all trials share")
        check(trial, manifest)
    epochs = planned_epochs(base.train, manifest.rows("train"), base.run.max_workers)
    check_epochs(search, epochs, source)
    return Plan(
        search=search, source=source, base=base, folder=folder, shards=shards, metric=metric, mode=mode, epochs=epochs
    )


def first_trials(plan: Plan) -> list[Trial]:
    """Returns the trials that are known before the search starts.

    These are all trials that are drawn beforehand, or those of an earlier start.
    """
    search = plan.search

    def make(number: int, values: Values) -> Trial:
        return make_trial(plan.base, plan.folder, number, trial_name(number), values, plan.shards)

    if search.searcher == "optuna":
        found: list[Trial] = []
        while (plan.folder / TRIALS / trial_name(len(found))).exists():
            found.append(make(len(found), read_record(make(len(found), {})).values))
        return found
    from cggm_ray.distributed.tune.draws import draw_trials

    trials = [make(number, values) for number, values in enumerate(draw_trials(search, plan.base, plan.source))]
    # Population based training has moved the values of those that ran.
    return [make(trial.number, read_record(trial).values) for trial in trials]


def _selection(base: Config, shards: Path, search: Search, source: str) -> tuple[str, str]:
    """Returns the metric and mode of a search.

    Raises:
        UsageError: the file has the metric's direction wrong.
    """
    manifest = open_manifest(shards)
    task = build_dataset(base, manifest.dataset).task(manifest)
    metric = base.train.select or task.selection[0]
    mode = task.better(metric)
    if search.mode not in (None, mode):
        raise UsageError(f"{source}: mode: found {search.mode}; {metric} is better the other way, {mode}")
    return metric, mode


def _check_same_search(search: Search, base: Config, folder: Path) -> None:
    """Raises a UsageError if the folder holds another search."""
    path = folder / SEARCH
    look(folder, SEARCH)
    if path.exists():
        changed = read_search(path, base).differences(search)
        if changed:
            raise UsageError(f"{folder} holds a search with another {', '.join(changed)}; choose another --name")


def _open_folder(plan: Plan) -> None:
    """Makes the folder of the search, with what is searched.

    Raises:
        UsageError: it cannot be written.
    """
    open_folder(plan.base, plan.folder)
    try:
        write_text(plan.folder / SEARCH, yaml.safe_dump(plan.search.to_dict(), sort_keys=False))
    except OSError as error:
        raise UsageError(f"storage_path: {plan.folder} cannot be written: {error.strerror}") from None
    note_start(plan.folder, plan.base, plan.shards)


def _resources(search: Search, base: Config) -> Resources:
    """Returns the resources of a trial's worker; flags have priority over the file."""
    gpu = search.resources.gpu or (1.0 if base.run.use_gpu else 0.0)
    return Resources(cpu=base.run.cpus_per_worker or search.resources.cpu, gpu=gpu)
