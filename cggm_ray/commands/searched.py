"""The presets that stand for a search: `good` trains the best configuration of a search around `quick`.

The folder of such a run has

    search/                    the search, see `cggm_ray.commands.tune`; no trial sees the test split
    everything else            of a run with the best configuration, which is trained in full and tested once

The time of the search is that of --minutes. A search that was killed goes on with its trials and has that time again; one that
is over is not repeated.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from cggm_ray.commands.compare import compare
from cggm_ray.commands.train import run
from cggm_ray.commands.tune import Plan, Searched, conclude, leaders, plan_search, search_trials, trials_of
from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import listing
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.assembly import build_dataset, input_kinds
from cggm_ray.engine.budget import planned_epochs
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import BEST, GOOD, QUICK
from cggm_ray.models.standardise import AUTO, ON
from cggm_ray.runs.ending import CONFIG
from cggm_ray.runs.folder import named, sole_owner, start_over
from cggm_ray.runs.result import SUMMARY
from cggm_ray.runs.search_record import SEARCH
from cggm_ray.studies.around import search_around
from cggm_ray.studies.space import make_search
from cggm_ray.tasks import Classification

KEPT = 5
"""Trials whose checkpoints are kept."""


def train_searched(
    config: Config, fixed: Collection[str] = (), strategies: Sequence[str] = (), seeds: Sequence[int] = ()
) -> None:
    """Searches, then trains the best configuration; with strategies or seeds it compares runs of that configuration.

    Args:
        config: where the search starts, with the preset `good`.
        fixed: fields that the search does not change.
        strategies: of a comparison. The search itself has the configuration's own strategy.
        seeds: of a comparison, or of several runs.

    Raises:
        UsageError: the search cannot be run; nothing was started.
        TrainingError: no trial came to an end.
    """
    if config.train.preset == BEST:
        # Its ensemble is not built; a search alone would not be what the name says.
        raise UsageError(f"preset: {BEST} cannot be run yet; take --preset {GOOD}, with --seeds for several runs")
    chosen, _, _ = searched(config, fixed)
    if strategies or seeds:
        compare(chosen, strategies, seeds)
    else:
        run(chosen)


def searched(config: Config, fixed: Collection[str] = ()) -> tuple[Config, Plan, Searched]:
    """Runs the search of a preset, unless it is over already.

    Args:
        config: where the search starts.
        fixed: fields that the search does not change.

    Returns:
        The configuration of the best trial, in the folder of the run, and the search.

    Raises:
        UsageError: the search cannot be run; nothing was started.
        TrainingError: no trial came to an end.
    """
    preset = config.train.preset
    if config.run.local or "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(f"preset: {preset} searches on Ray; leave out --local and torchrun, or take --preset {QUICK}")
    config = named(config, preset)
    if build_dataset(config).folds():
        raise UsageError(f"preset: {preset}: this configuration stands for several folds; choose one")
    folder = config.run.storage / str(config.run.name)
    if not config.run.fresh and (folder / CONFIG).exists() and not (folder / SEARCH).exists():
        raise UsageError(f"{folder} holds a run without a search; choose another --name, or --fresh to start over")
    plan = plan_preset(config, folder, fixed)
    with sole_owner(folder):
        start_over(config, folder)
        plan = dataclasses.replace(plan, base=_not_fresh(plan.base))
        if (plan.folder / SUMMARY).exists():
            print(f"the search in {plan.folder} is over")
            done = trials_of(plan)
        else:
            done = search_trials(plan)
            conclude(plan, done)
        print(leaders(plan, done.order))
        print(listing({"search": plan.folder}), flush=True)
    return _chosen(_not_fresh(config), done), plan, done


def plan_preset(config: Config, folder: Path, fixed: Collection[str]) -> Plan:
    """Returns the search of a preset, after checking all of it.

    Args:
        config: where the search starts.
        folder: of the run.
        fixed: fields that the search does not change.

    Raises:
        UsageError: it cannot be run, or there is nothing to search.
    """
    from cggm_ray.distributed.train.launch import prepare_on_ray

    base, source = _base(config, folder, fixed), f"preset {config.train.preset}"
    shards = prepare_on_ray(base)
    manifest = open_manifest(shards)
    epochs = planned_epochs(base.train, manifest.rows("train"), base.run.max_workers)
    classes = isinstance(build_dataset(base, manifest.dataset).task(manifest), Classification)
    content = search_around(base, input_kinds(base, manifest), epochs, base.train.minutes, classes=classes, fixed=fixed)
    if not content["space"]:
        raise UsageError(f"{source}: all fields that it searches are given by flags; take --preset {QUICK}")
    plan = plan_search(base, make_search(content, base, source), source)
    return dataclasses.replace(plan, minutes=base.train.minutes, kept=KEPT)


def _base(config: Config, folder: Path, fixed: Collection[str]) -> Config:
    """Returns the configuration of the search's trials, whose folders lie below that of the run."""
    inputs = config.inputs
    if inputs.standardise == AUTO and "standardise" not in fixed:
        # Every trial would decide it again; here it is a parameter.
        inputs = dataclasses.replace(inputs, standardise=ON)
    return dataclasses.replace(
        _quick(config),
        inputs=inputs,
        data=dataclasses.replace(config.data, shard_path=str(config.shard_root)),
        strategies={name: part.with_whole_paths(config.run.storage) for name, part in config.strategies.items()},
        run=dataclasses.replace(config.run, storage_path=str(folder), name=SEARCH),
    )


def _chosen(config: Config, done: Searched) -> Config:
    """Returns the configuration of the best trial, in the folder of the run."""
    values = done.best.record.values
    return _quick(config).replace({"standardise": done.study.base.inputs.standardise, **values})


def _quick(config: Config) -> Config:
    """Returns a configuration that stands for one run."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, preset=QUICK))


def _not_fresh(config: Config) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, fresh=False))
