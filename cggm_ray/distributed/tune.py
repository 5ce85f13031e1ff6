"""The trials of a study on Ray Tune.

Tune decides which trial runs when and which one stops; what a trial is and what it did lies in its own folder (see
`cggm_ray.studies.trials`). A study that is started again therefore does not restore Tune's state: every trial that ran
before tells Tune its old metrics first, so that the scheduler and the searcher know again what they knew, and goes on from
its own checkpoint, or ends there if it was over.

A trial with one worker runs the loop in its own process. One with several starts a TorchTrainer, whose workers are placed
beside it; the trial's own process takes no CPU.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from cggm_ray.config import Config
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.distributed.cluster import connect, own_error
from cggm_ray.distributed.launch import trainer
from cggm_ray.errors import CggmError, TrainingError, UsageError
from cggm_ray.run import claim
from cggm_ray.runtime import CHECKPOINTS, LocalRuntime, Record, checkpoint_name
from cggm_ray.state import copy_as_own, saved_values, write_folder
from cggm_ray.studies.search import Resources, Search, Values, suggest
from cggm_ray.studies.trials import (
    FAILED,
    FINISHED,
    STOPPED,
    Trial,
    ended,
    make_trial,
    outcomes,
    read_record,
    started,
    trial_name,
    write_record,
)
from cggm_ray.tracking import read_metrics
from cggm_ray.train import Result, finish, open_training, read_summary, train

NUMBER = "number"
STATE = "tune"
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial that is over, or fails at once, reports nothing.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The newer output prints a banner at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}
BETTER = "best_value"
"""What schedulers and searchers compare: the best validation value so far, since that epoch's checkpoint is kept."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every trial's process needs to know.

    Attributes:
        folder: of the study.
        base: configuration that trials change.
        shards: folder of the converted set, if all trials share one.
        trials: those that are known before the study starts; the others follow from Tune's values.
        dataset: class of the base's dataset, which a person may have registered in a file of their own.
        resources: of each worker of a trial.
        test: whether a trial tests its best checkpoint.
        exchanges: whether trials take over each other's weights.
        max_failures: how often a trial is started again after its process died.
    """

    folder: Path
    base: Config
    shards: Path | None
    trials: tuple[Trial, ...]
    dataset: type[Dataset]
    resources: Resources
    test: bool
    exchanges: bool = False
    max_failures: int = 3

    def trial(self, config: Mapping[str, Any]) -> Trial:
        """The trial that Tune means by its own configuration."""
        number = int(config[NUMBER])
        values = {key: value for key, value in config.items() if key != NUMBER}
        if not values:
            return self.trials[number]
        assert self.shards is not None
        return make_trial(self.base, self.folder, number, trial_name(number), values, self.shards)


def run_trials(study: Study, search: Search | None, mode: str, say: Any = print) -> list[Trial]:
    """Runs what is not over of a study's trials.

    Args:
        study: the study.
        search: how trials are drawn and stopped; None runs the known trials to their end.
        mode: which way the validation metric improves, 'min' or 'max'.
        say: takes a line whenever a trial ends.

    Returns:
        All trials, those that the searcher made included.

    Raises:
        UsageError: the cluster cannot hold a single trial; nothing was started.
    """
    drawn_later = search is not None and search.searcher == "optuna"
    if not drawn_later and all(read_record(trial).over for trial in study.trials):
        return list(study.trials)
    together = capacity(study)
    if search is not None and search.concurrent is not None:
        together = min(together, search.concurrent)
    # Tune's own files are of this start only; loggers of its own would write every metric a second time.
    shutil.rmtree(study.folder / STATE, ignore_errors=True)
    os.environ.update(TUNE_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    watch = Watch(study, mode, search, say)
    searcher = Numbered(search, study.trials, mode) if search is not None and drawn_later else None
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_trial, study=study), trial_resources(study)),
        param_space={} if searcher is not None else _param_space(study, search),
        tune_config=tune.TuneConfig(
            metric=BETTER,
            mode=mode,
            scheduler=_scheduler(study, search),
            search_alg=searcher,
            num_samples=1 if searcher is None or search is None else search.trials,
            max_concurrent_trials=together,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(study.folder),
            verbose=0,
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=study.max_failures),
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        raise own_error(error) or TrainingError(f"{study.folder}: the study failed: {error}") from error
    return watch.trials()


def train_trial(config: dict[str, Any], study: Study) -> None:
    """A trial, in its own process. An error of this package ends the trial and not the study."""
    DATASETS.adopt(study.base.data.dataset, study.dataset)
    trial = study.trial(config)
    torch.set_num_threads(study.resources.cpu)
    over = read_record(trial).over
    if study.exchanges:
        take_over(trial)
    else:
        replay(trial)
    if over:
        return
    try:
        claim(trial.config, trial.folder, trial.shards)
        (train_on_group if trial.config.run.max_workers > 1 else train_here)(study, trial)
        ended(trial, FINISHED)
    except CggmError as error:
        ended(trial, FAILED, str(error))


def train_here(study: Study, trial: Trial) -> None:
    """The loop in this process."""
    runtime = TrialRuntime(trial.folder, study)
    training = open_training(trial.config, trial.shards, runtime, trial.folder)
    started(trial, training.state.epoch)
    train(training)
    if study.test:
        finish(training)


def train_on_group(study: Study, trial: Trial) -> None:
    """The loop on the workers of a TorchTrainer."""
    lines = read_metrics(trial.folder)
    started(trial, int(lines[-1]["epoch"] or 0) if lines else 0)
    callbacks = [TuneReportCallback()]
    run = trainer(trial.config, trial.shards, trial.folder, study.resources.cpu, test=study.test, callbacks=callbacks)
    try:
        run.fit()
    except Exception as error:
        # What is no error of ours may be a dead process: Tune starts the trial again.
        raise own_error(error) or error from error


def test_trial(study: Study, trial: Trial, epochs: int) -> Result:
    """Tests the best checkpoint of a trial that trained so many epochs, on the cluster.

    Raises:
        CggmError: the checkpoint is gone or damaged.
    """
    run, resources = _without_further_epochs(trial.config, epochs), study.resources
    try:
        if trial.config.run.max_workers > 1:
            trainer(run, trial.shards, trial.folder, resources.cpu).fit()
        else:
            remote = ray.remote(num_cpus=resources.cpu, num_gpus=resources.gpu)(_test_here)
            ray.get(remote.remote(study, run, trial))
    except Exception as error:
        raise own_error(error) or TrainingError(f"{trial.folder}: the test failed: {error}") from error
    return read_summary(trial.folder)


class TrialRuntime(LocalRuntime):
    """The process of a trial: checkpoints in the trial's own folder, metrics to Tune.

    Args:
        folder: of the trial.
        study: says whether there is a GPU, and whether Tune needs checkpoints to hand to other trials.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        super().__init__(folder, _process(study))
        self._exchanges = study.exchanges

    def report(self, record: Record, write: Any) -> None:
        """See `Runtime`. Tune may end the process in here."""
        super().report(record, write)
        checkpoint = tune.Checkpoint(str(self.latest_checkpoint())) if self._exchanges else None
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
    saved = saved_values(source)
    giver, epoch = saved["config"]["run"]["name"], saved["progress"]["epoch"]
    if giver == trial.name:
        return
    checkpoints = trial.folder / CHECKPOINTS
    shutil.rmtree(checkpoints, ignore_errors=True)
    write_folder(checkpoints / checkpoint_name(epoch), lambda partial: copy_as_own(source, partial))
    record = read_record(trial)
    record.values = dict(trial.values)
    record.exchanges.append({"after_epoch": epoch, "from": giver, "values": record.values})
    write_record(trial.folder, record)


class Watch(tune.Callback):
    """Notes how trials end, and says so in a line each."""

    def __init__(self, study: Study, mode: str, search: Search | None, say: Any) -> None:
        self._study = study
        self._mode = mode
        self._say = say
        self._total = len(study.trials) if search is None or search.searcher != "optuna" else search.trials
        self._seen = {trial.number: trial for trial in study.trials}
        self._told = {trial.name for trial in study.trials if read_record(trial).over}

    def trials(self) -> list[Trial]:
        """All trials of the study, in order."""
        return [trial for _, trial in sorted(self._seen.items())]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Takes a trial that the searcher made, or that has other values now."""
        found = self._study.trial(trial.config)
        self._seen[found.number] = found

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that has not said so itself was stopped by the scheduler."""
        self._over(trial, STOPPED, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial whose process died too often."""
        error = trial.get_pickled_error()
        own = own_error(error) if error is not None else None
        self._over(trial, FAILED, str(own or f"its process ended {self._study.max_failures + 1} times"))

    def _over(self, of_tune: Any, status: str, error: str | None) -> None:
        trial = self._study.trial(of_tune.config)
        self._seen[trial.number] = trial
        record = ended(trial, status, error)
        if trial.name in self._told:
            return
        self._told.add(trial.name)
        found = outcomes(self.trials())
        done = sum(outcome.record.over for outcome in found)
        line = f"[{done}/{self._total}] {trial.name} {record.status}"
        (outcome,) = (o for o in found if o.record.name == trial.name)
        if record.error is not None:
            line += f": {record.error}"
        elif outcome.best is not None:
            line += f" after epoch {outcome.epochs}: best {outcome.best:.4f} at {outcome.best_epoch}"
        self._say(line)


class Numbered(Searcher):
    """Optuna's suggestions, numbered. Trials of an earlier start come first, with the values that they had.

    Args:
        search: the space, which Optuna walks through at every suggestion.
        known: trials that there are already.
        mode: 'min' or 'max'.

    Raises:
        UsageError: Optuna is not installed.
    """

    def __init__(self, search: Search, known: Sequence[Trial], mode: str) -> None:
        super().__init__(metric=BETTER, mode=mode)
        try:
            import optuna
            from ray.tune.search.optuna import OptunaSearch
        except ImportError:
            raise UsageError("searcher: optuna is not installed; pip install 'cggm-ray[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._inner = OptunaSearch(
            space=lambda trial: suggest(search, trial),
            metric=BETTER,
            mode=mode,
            points_to_evaluate=[trial.values for trial in known] or None,
            seed=search.seed,
        )
        self._known = [trial.values for trial in known]
        self._count = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's number and values."""
        values: Values | None = self._inner.suggest(trial_id)
        if values is None:
            return None
        if self._count < len(self._known):
            values = self._known[self._count]
        self._count += 1
        return {NUMBER: self._count - 1, **values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes the best value of a trial on."""
        self._inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's folder is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def capacity(study: Study) -> int:
    """Trials that the cluster holds at once.

    Raises:
        UsageError: not even one; the message says what it needs and what there is.
    """
    connect()
    workers, cpu, gpu = study.base.run.max_workers, study.resources.cpu, study.resources.gpu
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = [min(int(node.get("CPU", 0)) // cpu, int(node.get("GPU", 0) / gpu) if gpu else 2**31) for node in nodes]
    if sum(slots) < workers:
        have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UsageError(
            f"resources: a trial has {workers} worker{'s' * (workers > 1)} with {cpu} CPUs and {gpu:g} GPUs each; the "
            f"cluster has nodes of {have}"
        )
    return sum(slots) // workers


def trial_resources(study: Study) -> dict[str, float]:
    """What Tune sets aside for a trial's own process: its worker, or nothing where the workers are placed by themselves."""
    if study.base.run.max_workers > 1:
        return {"CPU": 0}
    return {"CPU": study.resources.cpu, "GPU": study.resources.gpu}


def _param_space(study: Study, search: Search | None) -> dict[str, Any]:
    """Numbers of the trials, and for population based training their values, which it then moves."""
    space: dict[str, Any] = {NUMBER: tune.grid_search([trial.number for trial in study.trials])}
    if search is not None and study.exchanges:
        for parameter in search.space:
            values = [trial.values[parameter.key] for trial in study.trials]
            space[parameter.key] = tune.sample_from(functools.partial(_value_of, values))
    return space


def _value_of(values: Sequence[Any], config: Mapping[str, Any]) -> Any:
    return values[config[NUMBER]]


def _scheduler(study: Study, search: Search | None) -> TrialScheduler:
    if search is None or search.scheduler.name == "none":
        return FIFOScheduler()
    plan = search.scheduler
    epochs = plan.max_epochs or study.base.train.num_epochs
    if plan.name == "asha":
        return ASHAScheduler(
            time_attr="epoch",
            max_t=epochs,
            grace_period=plan.grace_period,
            reduction_factor=plan.reduction_factor,
            # A trial with all its epochs ends by itself, and says that it is finished.
            stop_last_trials=False,
        )
    makers = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    return PopulationBasedTraining(
        time_attr="epoch",
        perturbation_interval=plan.interval,
        hyperparam_mutations={
            p.key: list(p.values)
            if p.kind == "choice"
            else (tune.randint(p.values[0], p.values[1] + 1) if p.whole else makers[p.kind](*p.values))
            for p in search.space
        },
        log_config=False,
    )


def _process(study: Study) -> Any:
    """The section `run` for one trial's process: a GPU if it was given one, and its threads."""
    return dataclasses.replace(
        study.base.run,
        workers="1",
        use_gpu=study.resources.gpu > 0,
        no_cuda=study.resources.gpu == 0,
        cpus_per_worker=study.resources.cpu,
    )


def _without_further_epochs(config: Config, epochs: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_epochs=epochs))


def _test_here(study: Study, config: Config, trial: Trial) -> None:
    DATASETS.adopt(study.base.data.dataset, study.dataset)
    finish(open_training(config, trial.shards, LocalRuntime(trial.folder, _process(study)), trial.folder))
