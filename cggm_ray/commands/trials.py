"""Runs the known trials of a study to their end: one after the other in this process, or as many at once as a cluster holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cggm_ray.core.errors import CggmError, StorageError
from cggm_ray.engine.checkpoints import storage_errors
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.loop import train
from cggm_ray.engine.own_code import own_code
from cggm_ray.engine.probes import open_decided
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.runs.finishing import finish
from cggm_ray.runs.folder import prepare_run_folder
from cggm_ray.studies.space import Resources
from cggm_ray.studies.store import FAILED, FINISHED, Trial, ended, read_record, started


def run_trials(
    config: Config,
    folder: Path,
    trials: Sequence[Trial],
    until: Callable[[], bool] = lambda: False,
    *,
    test: bool = True,
    minutes: float | None = None,
) -> None:
    """Runs the trials of a study that are not over, in this process or on Ray.

    Args:
        config: of the study.
        folder: of the study.
        trials: that are numbered as they stand.
        until: called before each trial in this process, and once on Ray; True leaves the rest for another start.
        test: whether each one tests its best checkpoint.
        minutes: after which no further trial starts on Ray; None for no limit.

    Raises:
        StorageError: the storage failed; a trial that fails by itself is recorded as such.
    """
    if config.run.local:
        _run_here(trials, until, test)
    elif not until():
        run_on_ray(config, folder, trials, test=test, minutes=minutes)


def _run_here(trials: Sequence[Trial], until: Callable[[], bool], test: bool) -> None:
    """Runs one trial after the other in this process."""
    for number, trial in enumerate(trials, start=1):
        if read_record(trial).over:
            continue
        if until():
            return
        print(f"[{number}/{len(trials)}] {trial.name}")
        runtime = LocalRuntime(trial.folder, trial.config.run)
        try:
            prepare_run_folder(trial.config, trial.folder, trial.shards)
            with storage_errors(runtime.checkpoints):
                training = open_decided(trial.config, trial.shards, runtime, trial.folder)
                started(trial, training.state.epoch)
                train(training)
                if test:
                    finish(training)
            ended(trial, FINISHED)
        except StorageError:
            # The storage failed, not the run, so the run can continue later.
            raise
        except CggmError as error:
            ended(trial, FAILED, str(error))


def run_on_ray(
    config: Config,
    folder: Path,
    trials: Sequence[Trial],
    *,
    test: bool = True,
    validate: bool = False,
    minutes: float | None = None,
    sure: int = 0,
) -> None:
    """Runs as many trials at once as the cluster can hold.

    Args:
        config: of the study.
        folder: of the study.
        trials: that are numbered as they stand.
        test: whether each one tests its best checkpoint.
        validate: whether one that does not test it predicts the validation split with it.
        minutes: after which no further trial starts, and those that run go on to their end; None for no limit.
        sure: number of trials, the first ones, that start at any time.
    """
    from cggm_ray.distributed.tune.trial import Study
    from cggm_ray.distributed.tune.tune import run_trials as run_on_tune

    study = Study(
        folder=folder,
        base=config,
        shards=None,
        trials=tuple(trials),
        own=own_code(config),
        resources=Resources(cpu=config.run.cpus_per_worker or 1, gpu=1.0 if config.run.use_gpu else 0.0),
        test=test,
        validate=validate,
        last_start=None if minutes is None else time.time() + 60 * minutes,
        sure=sure,
    )
    run_on_tune(study, None, "min")
