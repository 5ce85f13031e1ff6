"""A trial of a study, in its own process on a node of the cluster.

A trial with one worker runs the loop in this process. One with several starts a TorchTrainer, whose workers are placed by
themselves. An error of this package ends the trial and not the study; a process that dies is started again by Tune.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from cggm_ray.core.console import Form, use_form
from cggm_ray.core.errors import CggmError, StorageError, TrainingError
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.distributed.cluster import own_error, what_failed
from cggm_ray.distributed.metrics import Gauges
from cggm_ray.distributed.train.launch import trainer
from cggm_ray.distributed.waiting import Heartbeat, waits
from cggm_ray.engine.assembly import with_batch_size
from cggm_ray.engine.budget import budget_of
from cggm_ray.engine.checkpoints import CHECKPOINTS, check_checkpoint, storage_errors
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.loop import train
from cggm_ray.engine.opening import open_training
from cggm_ray.engine.own_code import OwnCode, adopt
from cggm_ray.engine.probes import open_decided
from cggm_ray.engine.runtime import LocalRuntime, Record, RunConfig
from cggm_ray.engine.state import Content, Position, copy_as_own, saved_values
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.runs.finishing import finish, validate
from cggm_ray.runs.folder import prepare_run_folder
from cggm_ray.runs.result import Result, stored_result
from cggm_ray.storage.files import write_folder
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.studies.space import Resources
from cggm_ray.studies.store import (
    FAILED,
    FINISHED,
    Trial,
    ended,
    make_trial,
    read_record,
    started,
    trial_name,
    write_record,
)

NUMBER = "number"
"""Key of Tune's configuration that says which trial of the study it is."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every trial's process needs to know.

    Attributes:
        folder: of the study.
        base: configuration that trials change.
        shards: folder of the converted set, if all trials share one.
        trials: those that are known before the study starts; the others follow from Tune's values.
        own: what a person registered in files of their own.
        resources: of each worker of a trial.
        test: whether a trial tests its best checkpoint.
        validate: whether one that does not test it predicts the validation split with it.
        exchanges: whether trials take over each other's weights.
        max_failures: how often a trial is started again after its process died.
        epochs: of a trial that is not stopped; None where nothing stops them.
        minutes: after which all trials end; None for no limit.
        kept: trials, the best ones, that keep their checkpoints; None for all.
        last_start: time (seconds since 1970) after which no further trial starts, but for the first `sure` ones; None for no
            limit. What has started goes on to its end.
        sure: number of trials that start at any time.
    """

    folder: Path
    base: Config
    shards: Path | None
    trials: tuple[Trial, ...]
    own: OwnCode
    resources: Resources
    test: bool
    validate: bool = False
    exchanges: bool = False
    max_failures: int = 3
    epochs: int | None = None
    minutes: float | None = None
    kept: int | None = None
    last_start: float | None = None
    sure: int = 0

    def late(self, trial: Trial) -> bool:
        """Returns whether it is too late to start a trial."""
        return self.last_start is not None and trial.number >= self.sure and time.time() > self.last_start

    def trial(self, name: str, config: Mapping[str, Any]) -> Trial:
        """The trial that Tune means.

        Args:
            name: in Tune: the trial's number. Population based training copies configurations, `NUMBER` included, so they
                do not tell which trial it is.
            config: in Tune: the values, where they are not known beforehand.
        """
        number = int(name)
        values = {key: value for key, value in config.items() if key != NUMBER}
        if not values:
            return self.trials[number]
        assert self.shards is not None
        return make_trial(self.base, self.folder, number, trial_name(number), values, self.shards)


def train_trial(config: dict[str, Any], study: Study) -> None:
    """A trial, in its own process. An error of this package ends the trial and not the study."""
    adopt(study.own)
    trial = study.trial(tune.get_context().get_trial_name(), config)
    with mirror_of(trial.folder).taking_part():
        _train_trial(study, trial)


def _train_trial(study: Study, trial: Trial) -> None:
    use_form(Form(trial.config.run.log_format, f"{study.folder.name}/{trial.name}", 0))
    torch.set_num_threads(study.resources.cpu)
    over = read_record(trial).over
    if study.exchanges:
        take_over(trial)
    else:
        replay(trial)
    if over:
        return
    if study.late(trial):
        # Tune prints a line about a trial that reports nothing.
        tune.report({"epoch": 0})
        return
    try:
        prepare_run_folder(trial.config, trial.folder, trial.shards)
        (train_on_group if trial.config.run.max_workers > 1 else train_here)(study, trial)
        ended(trial, FINISHED)
    except StorageError:
        # Not the trial's fault: it is not over, and goes on when the storage is back.
        raise
    except CggmError as error:
        ended(trial, FAILED, str(error))


def train_here(study: Study, trial: Trial) -> None:
    """The loop in this process."""
    runtime = TrialRuntime(trial.folder, study)
    with storage_errors(runtime.checkpoints):
        training = open_decided(trial.config, trial.shards, runtime, trial.folder)
        started(trial, training.state.epoch)
        train(training)
        if study.test:
            finish(training)
        elif study.validate:
            validate(training)


def train_on_group(study: Study, trial: Trial) -> None:
    """The loop on the workers of a TorchTrainer."""
    lines = read_metrics(trial.folder)
    started(trial, int(lines[-1]["epoch"] or 0) if lines else 0)
    callbacks = [TuneReportCallback()]
    run = trainer(
        trial.config,
        trial.shards,
        trial.folder,
        study.resources.cpu,
        test=study.test,
        validates=study.validate,
        callbacks=callbacks,
    )
    mirror = mirror_of(trial.folder)
    mirror.push()
    try:
        run.fit()
    except Exception as error:
        # What is no error of ours may be a dead process: Tune starts the trial again.
        raise own_error(error) or error from error
    mirror.join()


def test_trial(study: Study, trial: Trial, epochs: int) -> Result:
    """Tests the best checkpoint of a trial that trained so many epochs, on the cluster.

    Raises:
        CggmError: the checkpoint is gone or damaged.
    """
    run, resources = _without_further_epochs(trial, epochs), study.resources
    print(f"testing {trial.name}", flush=True)
    heartbeat = Heartbeat(lambda seconds: waits() or f"{trial.name} is tested for {seconds:.0f} s")
    try:
        with heartbeat.beating():
            if trial.config.run.max_workers > 1:
                trainer(run, trial.shards, trial.folder, resources.cpu).fit()
            else:
                remote = ray.remote(num_cpus=resources.cpu, num_gpus=resources.gpu)(_test_here)
                ray.get(remote.remote(study, run, trial))
    except Exception as error:
        raise own_error(error) or TrainingError(f"{trial.folder}: the test failed: {what_failed(error)}") from error
    mirror_of(trial.folder).join()
    return stored_result(trial.folder)


class TrialRuntime(LocalRuntime):
    """The process of a trial: checkpoints in the trial's own folder, metrics to Tune.

    Args:
        folder: of the trial.
        study: says whether there is a GPU, and whether Tune needs checkpoints to hand to other trials.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        super().__init__(folder, _process(study))
        self._exchanges = study.exchanges
        self._gauges = Gauges(f"{study.folder.name}/{folder.name}", 0)

    measures = True

    def measure(self, values: Mapping[str, float]) -> None:
        """Sets the gauges of this trial."""
        self._gauges.set(values)

    def report(self, record: Record, content: Callable[[], Content]) -> None:
        """See `Runtime`. Where trials hand checkpoints to each other, Tune decides before the next step."""
        super().report(record, content)
        if self._exchanges:
            self.settle()

    def publish(self, record: Record) -> None:
        """Reports the metrics of an epoch to Tune, which may end the process in here."""
        checkpoint = tune.Checkpoint(str(self.checkpoints.newest())) if self._exchanges else None
        tune.report(record, checkpoint=checkpoint)


def replay(trial: Trial) -> None:
    """Tells Tune what a trial did in earlier starts; a metric that comes again later changes nothing."""
    for line in read_metrics(trial.folder):
        tune.report({name: float("nan") if value is None else value for name, value in line.items()})


def take_over(trial: Trial) -> None:
    """Population based training: puts the checkpoint of another trial in place of this one's, if Tune says so."""
    given = tune.get_checkpoint()
    if given is None:
        return
    source = Path(given.path)
    check_checkpoint(source)
    saved = saved_values(source)
    giver, epoch = saved["config"]["run"]["name"], saved["progress"]["epoch"]
    if giver == trial.name:
        return
    checkpoints = trial.folder / CHECKPOINTS
    shutil.rmtree(checkpoints, ignore_errors=True)
    write_folder(checkpoints / Position(epoch).name, lambda partial: copy_as_own(source, partial))
    record = read_record(trial)
    record.values = dict(trial.values)
    record.exchanges.append({"after_epoch": epoch, "from": giver, "values": record.values})
    write_record(trial.folder, record)


def _process(study: Study) -> RunConfig:
    """The section `run` for one trial's process: a GPU if it was given one, and its threads."""
    return dataclasses.replace(
        study.base.run,
        workers="1",
        use_gpu=study.resources.gpu > 0,
        no_cuda=study.resources.gpu == 0,
        cpus_per_worker=study.resources.cpu,
    )


def _without_further_epochs(trial: Trial, epochs: int) -> Config:
    """The configuration of a trial whose run is over after so many epochs."""
    config = trial.config
    settings = dataclasses.replace(config.train, num_epochs=epochs)
    if settings.in_steps:
        manifest = open_manifest(trial.shards)
        budget = budget_of(with_batch_size(config, manifest, config.run.max_workers).train, manifest.rows("train"))
        steps = min(epochs * budget.steps, budget.total)
        settings = dataclasses.replace(config.train, min_steps=None, max_steps=steps)
    return dataclasses.replace(config, train=settings)


def _test_here(study: Study, config: Config, trial: Trial) -> None:
    adopt(study.own)
    with mirror_of(trial.folder).taking_part():
        finish(open_training(config, trial.shards, LocalRuntime(trial.folder, _process(study)), trial.folder))
