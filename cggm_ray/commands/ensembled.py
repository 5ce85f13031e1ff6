"""The preset `best`: the candidates of the choice, each with all of its seeds, become an ensemble.

Every run in `choice/trials` is then trained to its end and tested, like any other run. The ensemble is selected among them on
validation, and `ensemble.json` in the folder above names its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cggm_ray.commands.search_folder import Plan
from cggm_ray.commands.train import check_losses, headroom_of_run, write_report
from cggm_ray.commands.trials import run_on_ray
from cggm_ray.core.console import print_result
from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.stopping import StopRequest
from cggm_ray.runs.ending import directions, table
from cggm_ray.runs.folder import open_folder, sole_owner
from cggm_ray.runs.provenance import note_start
from cggm_ray.runs.recorded import record_data
from cggm_ray.runs.result import SUMMARY
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.studies.choice import FOLDER, Candidate, choice_trials
from cggm_ray.studies.store import FAILED, FINISHED, WAITING, Trial, outcomes, read_record, write_record


def train_ensemble(config: Config, plan: Plan, candidates: Sequence[Candidate]) -> None:
    """Trains what the choice left to do, selects an ensemble and tests it.

    Args:
        config: the chosen one, in the folder of the run.
        plan: of the search.
        candidates: of the choice.

    Raises:
        TrainingError: no run came to its end.
    """
    from cggm_ray.distributed.tune.assembly import assemble_on_ray

    folder = config.run.storage / str(config.run.name)
    stop_request = StopRequest()
    with sole_owner(folder):
        trials = choice_trials(plan.base, folder / FOLDER, candidates, plan.shards)
        left = sum(reopened(trial) for trial in trials)
        print(f"{len(trials)} runs for the ensemble, {left} of them to finish", flush=True)
        run_on_ray(plan.base, folder / FOLDER, trials)
        runs = {
            outcome.folder.relative_to(folder).as_posix(): outcome.folder
            for outcome in outcomes(trials)
            if outcome.record.status == FINISHED
        }
        if not runs:
            raise TrainingError(f"{folder}: no run for the ensemble came to its end: {read_record(trials[0]).error}")
        cpus = config.run.cpus_per_worker or 1
        open_ensemble_folder(config, folder, plan.shards, cpus)
        result = assemble_on_ray(config, folder, runs, plan.shards, cpus)
    if config.run.quiet:
        print_result(table(result, directions(config, result)))
    if config.run.headroom:
        headroom_of_run(config, folder, stop_request)
    if config.run.report:
        write_report(folder, stop_request)
    mirror_of(folder).push()
    check_losses(result, "the ensemble")


def reopened(trial: Trial) -> bool:
    """Returns whether a run is still to be trained or tested, and lets one go on that time stopped or that was not tested."""
    record = read_record(trial)
    if record.status == FAILED or (record.status == FINISHED and (trial.folder / SUMMARY).exists()):
        return False
    if record.over:
        record.status = WAITING
        write_record(trial.folder, record)
    return True


def open_ensemble_folder(config: Config, folder: Path, shards: Path, threads: int | None = None) -> None:
    """Makes the folder of an ensemble, with configuration, data and origin, but without a member.

    Args:
        config: of the ensemble.
        folder: of it.
        shards: folder of the set.
        threads: of torch in the process that tests it; default those of this process.

    Raises:
        UsageError: it cannot be written.
    """
    open_folder(config, folder)
    try:
        record_data(folder, open_manifest(shards), config)
    except OSError as error:
        raise UsageError(f"storage_path: {folder} cannot be written: {error.strerror}") from None
    note_start(folder, config, shards, workers=1, threads=threads)
