"""The presets that stand for a search: `good` trains the configuration that a search finds, `best` an ensemble around it.

The folder of such a run has

    search/                    the search, see `cggm_ray.commands.search_folder`
    choice/                    the runs with other seeds that decide among its best trials, and `choice.json`
    everything else            good: of a run with the chosen configuration, which is trained on the training and, where it can
                               be, the validation split, and tested once
                               best: of the ensemble, see `cggm_ray.commands.ensembled`

The search has two thirds of --minutes and the choice one third; neither sees the test split. What was killed goes on with what
is not over, and has its time again; what is over is not repeated.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from cggm_ray.commands.choosing import choose
from cggm_ray.commands.compare import compare
from cggm_ray.commands.ensembled import train_ensemble
from cggm_ray.commands.search_folder import SEARCH as SEARCH_FILE
from cggm_ray.commands.search_folder import Plan, conclude, leaders
from cggm_ray.commands.train import run
from cggm_ray.commands.tune import plan_search, search_trials, trials_of
from cggm_ray.core.console import Form, printing
from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import listing
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.assembly import build_dataset, input_kinds, selected_modalities
from cggm_ray.engine.budget import planned_epochs
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.header import opening
from cggm_ray.engine.linear_blend import blends
from cggm_ray.engine.presets import BEST, GOOD, QUICK
from cggm_ray.engine.refit import against_refit
from cggm_ray.engine.tracking import METRICS
from cggm_ray.models.standardise import AUTO, ON
from cggm_ray.runs.ensembles import ENSEMBLE
from cggm_ray.runs.folder import look, named, sole_owner, start_over
from cggm_ray.runs.result import CONFIG, SUMMARY
from cggm_ray.runs.search_record import SEARCH
from cggm_ray.storage.work import shown
from cggm_ray.studies.around import search_around
from cggm_ray.studies.choice import CHOICE, FOLDER, Choice
from cggm_ray.studies.comparison import MARKDOWN as COMPARISON
from cggm_ray.studies.space import make_search
from cggm_ray.studies.store import TRIALS
from cggm_ray.tasks import Classification

SEARCH_SHARE = 2 / 3
"""Share of --minutes that the search has; the choice has the others."""
KEPT = 0
"""Trials of the search whose checkpoints are kept."""


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
    with printing(config.run.quiet, Form(config.run.log_format, config.run.name)):
        _train_searched(config, fixed, strategies, seeds)


def _train_searched(config: Config, fixed: Collection[str], strategies: Sequence[str], seeds: Sequence[int]) -> None:
    several = bool(strategies or seeds)
    if config.train.preset == BEST and several:
        raise UsageError(
            f"preset: {BEST} trains an ensemble over seeds of its own; leave out --seeds and --compare, or take --preset {GOOD}"
        )
    config, plan, choice = searched(config, fixed)
    if config.train.preset == BEST:
        train_ensemble(_quick(config), plan, choice.candidates)
        return
    if "refit" not in fixed:
        config = with_refit(config, plan, choice, compared=bool(strategies))
    if several:
        compare(_quick(config), strategies, seeds)
    else:
        run(_quick(config))


def with_refit(config: Config, plan: Plan, choice: Choice, *, compared: bool) -> Config:
    """Returns a chosen configuration that trains on validation samples too, where nothing is decided by them any more.

    One line says what was decided and why.

    Args:
        config: the chosen one.
        plan: of the search.
        choice: among its best trials.
        compared: whether strategies are compared by what follows.
    """
    manifest = open_manifest(plan.shards)
    dataset = build_dataset(config, manifest.dataset)
    modalities = selected_modalities(config, manifest)
    valid = dataset.open_split(plan.shards, manifest, "valid", modalities, torch.device("cpu"))
    blending, linear = blends(config.train, dataset, manifest, modalities), "off"
    if blending and choice.linear is not None and choice.linear[1]:
        linear = ":".join(f"{value:g}" for value in choice.linear)
    reason = against_refit(config)
    if compared:
        reason = "strategies are compared"
    elif config.run.headroom:
        reason = "the head-room is measured, which chooses on validation"
    elif not choice.share:
        reason = "no run of the choice came to its end"
    elif blending and choice.linear is None:
        reason = "the runs of the choice have no weights for a linear model"
    elif not isinstance(valid, TensorSplit):
        reason = "the set is read while a run trains"
    if reason is not None:
        print(f"trained on the training split alone, because {reason}", flush=True)
        return config
    print(
        f"trained on the training and the validation split together, for {choice.share:.2f} of the steps, as the runs of the "
        "choice ended (--refit 0 leaves validation out)",
        flush=True,
    )
    return config.replace({"refit": choice.share, "linear_blend": linear})


def searched(config: Config, fixed: Collection[str] = ()) -> tuple[Config, Plan, Choice]:
    """Runs the search of a preset and the choice among its best trials, as far as they are not over already.

    Args:
        config: where the search starts.
        fixed: fields that the search does not change.

    Returns:
        The chosen configuration, in the folder of the run; the search; and the choice.

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
    check_folder(config, folder)
    print(opening(config, folder), flush=True)
    plan = plan_preset(config, folder, fixed)
    with sole_owner(folder):
        start_over(config, folder)
        config, plan = _not_fresh(config), dataclasses.replace(plan, base=_not_fresh(plan.base))
        if (plan.folder / SUMMARY).exists():
            print(f"the search in {shown(plan.folder)} is over")
            done = trials_of(plan)
        else:
            done = search_trials(plan)
            conclude(plan, done)
        print(leaders(plan, done.order))
        choice = choose(plan, done, folder / FOLDER, (1 - SEARCH_SHARE) * config.train.minutes)
        print(listing({"search": plan.folder, "choice": folder / FOLDER / CHOICE}), flush=True)
    chosen = config.replace({"standardise": plan.base.inputs.standardise, **choice.values})
    return chosen, plan, choice


def check_folder(config: Config, folder: Path) -> None:
    """Refuses a folder that holds something else than the preset leaves there.

    Raises:
        UsageError: says what it holds.
    """
    if config.run.fresh:
        return
    search = f"{SEARCH}/{SEARCH_FILE}"
    for name in (CONFIG, search, ENSEMBLE, METRICS, COMPARISON):
        look(folder, name)
    found = None
    if (folder / CONFIG).exists() and not (folder / search).exists():
        found = "a run without a search"
    elif config.train.preset == GOOD and (folder / ENSEMBLE).exists():
        found = f"an ensemble of preset {BEST}"
    elif config.train.preset == BEST and any((folder / name).exists() for name in (METRICS, COMPARISON, TRIALS)):
        found = f"what preset {GOOD} trained"
    if found is not None:
        raise UsageError(f"{shown(folder)} holds {found}; choose another --name, or --fresh to start over")


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
    task = build_dataset(base, manifest.dataset).task(manifest)
    if task.dense and config.train.preset == BEST:
        raise UsageError(
            f"preset: {BEST} averages predictions of samples, and this task predicts maps; take --preset {GOOD}"
        )
    classes = isinstance(task, Classification)
    minutes = SEARCH_SHARE * base.train.minutes
    content = search_around(base, input_kinds(base, manifest), epochs, minutes, classes=classes, fixed=fixed)
    if not content["space"]:
        raise UsageError(f"{source}: all fields that it searches are given by flags; take --preset {QUICK}")
    plan = plan_search(base, make_search(content, base, source), source)
    return dataclasses.replace(plan, minutes=minutes, kept=KEPT)


def _base(config: Config, folder: Path, fixed: Collection[str]) -> Config:
    """Returns the configuration of the search's trials, whose folders lie below that of the run."""
    inputs = config.inputs
    if inputs.standardise == AUTO and "standardise" not in fixed:
        # Every trial would decide it again; here it is a parameter.
        inputs = dataclasses.replace(inputs, standardise=ON)
    return dataclasses.replace(
        # A flag --refit is for the run that the search leads to.
        _quick(config.replace({"refit": 0.0})),
        inputs=inputs,
        data=dataclasses.replace(config.data, shard_path=str(config.shard_root)),
        strategies={name: part.with_whole_paths(config.run.storage) for name, part in config.strategies.items()},
        run=dataclasses.replace(config.run, storage_path=shown(folder), name=SEARCH),
    )


def _quick(config: Config) -> Config:
    """Returns a configuration that stands for one run."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, preset=QUICK))


def _not_fresh(config: Config) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, fresh=False))
