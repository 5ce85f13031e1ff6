"""Chooses among the best trials of a search by runs with other seeds, on Ray."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.commands.search_folder import Plan, Searched
from cggm_ray.commands.trials import run_on_ray
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.assembly import build_dataset
from cggm_ray.studies.choice import SURE, Choice, candidates_of, choice_trials, decide, read_choice, seeds_of
from cggm_ray.studies.store import outcomes


def choose(plan: Plan, done: Searched, folder: Path, minutes: float) -> Choice:
    """Trains the candidates of a choice and prints and records it, unless that is over already. No run is tested.

    The caller owns the folder of the run.

    Args:
        plan: of the search.
        done: the search.
        folder: of the choice.
        minutes: after which no further run is started, but for the first ones.
    """
    choice = read_choice(folder)
    if choice is None:
        candidates, seeds = candidates_of(done.found[0], done.order), seeds_of(plan.base)
        trials = choice_trials(plan.base, folder, candidates, plan.shards)
        if len(candidates) > 1:
            print(
                f"{len(candidates)} configurations with {len(seeds)} seeds each, in {minutes:.3g} minutes", flush=True
            )
            run_on_ray(plan.base, folder, trials, test=False, validate=True, minutes=minutes, sure=SURE)
        manifest = open_manifest(plan.shards)
        task = build_dataset(plan.base, manifest.dataset).task(manifest)
        started_from = done.found[0].record.name
        choice = decide(task, plan.metric, candidates, seeds, outcomes(trials), minutes, started_from, plan.epochs)
        choice.save(folder)
    print(choice.table())
    print(choice.basis(), flush=True)
    return choice
