"""The trials of a study on Ray Tune.

Tune decides which trial runs when and which one stops; what a trial is and what it did lies in its own folder (see
`cggm_ray.studies.store`). A study that is started again therefore does not restore Tune's state: every trial that ran
before tells Tune its old metrics first, so that the scheduler and the searcher know again what they knew, and goes on from
its own checkpoint, or ends there if it was over.

What of this Tune could do itself, and which property would be lost (the tests are in tests/studies/test_tune.py):

- `Tuner.restore` in place of `replay`: it cannot add trials to a finished study
  (`test_a_finished_search_is_told_again_and_not_run_again`, `test_optuna_goes_on_where_it_was`), knows a killed study only
  as of its last snapshot, some seconds old (`test_a_killed_driver_goes_on_with_the_same_command` compares the result to
  the last bit), and unpickles files of the study's folder.
- `ResultGrid` in place of `outcomes`: it lies in the same snapshot, and the commands that read a study do so without Ray.
- `PopulationBasedTraining(synch=True)` in place of `Generations`: it draws from the global generators, so an exchange is not
  decided by the seed of the search, and it waits for ever for a trial that failed
  (`test_population_based_training_moves_weights_and_values` has two).
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cggm_ray.core.errors import TrainingError, UsageError, listed
from cggm_ray.core.live import bar, moved
from cggm_ray.core.optional import require
from cggm_ray.distributed.cluster import connect, nodes_later, nodes_now, own_error, what_failed
from cggm_ray.distributed.data.statistics import share_statistics
from cggm_ray.distributed.tune.draws import domain
from cggm_ray.distributed.tune.generations import Generations
from cggm_ray.distributed.tune.placement_groups import removing_abandoned
from cggm_ray.distributed.tune.trial import NUMBER, Study, train_trial
from cggm_ray.distributed.waiting import Heartbeat, waits
from cggm_ray.engine.checkpoints import CHECKPOINTS
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.storage.plain import Plain
from cggm_ray.studies.parameters import Values
from cggm_ray.studies.space import Search, suggest
from cggm_ray.studies.store import FAILED, RUNNING, STOPPED, WAITING, Trial, ended, outcomes, prune, read_record

STATE = "tune"
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial that is over, or fails at once, reports nothing.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The newer output prints a banner at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}
EVERY = 30.0
"""Seconds after which a line about a running trial is printed again."""
MOST_NAMED = 3
"""Trials that one line names."""
BETTER = "best_value"
"""What schedulers and searchers compare: the best validation value so far, since that epoch's checkpoint is kept."""


def run_trials(study: Study, search: Search | None, mode: str) -> list[Trial]:
    """Runs what is not over of a study's trials.

    Args:
        study: the study.
        search: how trials are drawn and stopped; None runs the known trials to their end.
        mode: which way the validation metric improves, 'min' or 'max'.

    Returns:
        All trials, those that the searcher made included.

    Raises:
        UsageError: the cluster cannot hold a single trial; nothing was started.
    """
    drawn_later = search is not None and search.searcher == "optuna"
    if not drawn_later and all(read_record(trial).over for trial in study.trials):
        return list(study.trials)
    together = capacity(study)
    together = min(together, search.concurrent if search is not None and search.concurrent else 2**16)
    # A search that draws its trials later may need others, which the trials then find for themselves.
    first = [] if study.shards is None else [(study.base, study.shards)]
    share_statistics([*first, *((trial.config, trial.shards) for trial in study.trials)])
    # Tune's own files are of this start only; loggers of its own would write every metric a second time.
    state, mirror = mirror_of(study.folder / STATE), mirror_of(study.folder)
    if (study.folder / STATE).exists():
        mirror.remove(study.folder / STATE)
    mirror.push()
    os.environ.update(TUNE_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    watch = Watch(study, search, mode)
    searcher = Numbered(search, study.trials, mode) if search is not None and drawn_later else None
    try:
        # It writes its settings at once.
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train_trial, study=study), trial_resources(study)),
            param_space={} if searcher is not None else _param_space(study, search),
            tune_config=tune.TuneConfig(
                metric=BETTER,
                mode=mode,
                scheduler=_scheduler(study, search),
                search_alg=searcher,
                num_samples=1 if searcher is None or search is None else search.drawn,
                # Population based training needs all trials at hand, and takes turns where there is room for some only.
                trial_name_creator=lambda trial: str(trial.config[NUMBER]),
                max_concurrent_trials=None if study.exchanges else together,
                time_budget_s=None if study.minutes is None else 60 * study.minutes,
                # The next trial in the same process: it need not import torch again.
                reuse_actors=study.base.run.max_workers == 1 and not study.exchanges,
            ),
            run_config=tune.RunConfig(
                **state.for_ray(),
                verbose=0,
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=study.max_failures),
            ),
        )
        with watch.heartbeat.beating(), removing_abandoned(), bar():
            watch.moved()
            tuner.fit()
    except Exception as error:
        raise own_error(error) or TrainingError(f"{study.folder}: the study failed: {what_failed(error)}") from error
    mirror.join()
    if study.minutes is not None:
        watch.time_is_over()
    return watch.trials()


class Watch(tune.Callback):
    """Notes how trials end, and says so in a line each."""

    def __init__(self, study: Study, search: Search | None, mode: str) -> None:
        self._study, self._mode = study, mode
        total = len(study.trials) if search is None or search.searcher != "optuna" else search.drawn
        self._all = total
        self._total = f"/{total}" if study.minutes is None else ""
        self._seen = {trial.number: trial for trial in study.trials}
        over = [outcome.last for outcome in outcomes(study.trials) if outcome.record.over]
        self._told = {outcome.record.name for outcome in over}
        # The end of a trial may take no longer where many trials have ended before it, so only these are looked at then: those
        # that run, and those that are over and may have checkpoints.
        self._running: dict[str, Trial] = {}
        local = type(mirror_of(study.folder)) is Plain
        self._with_checkpoints = {
            outcome.record.name: outcome for outcome in over if not local or (outcome.folder / CHECKPOINTS).exists()
        }
        self._lines: dict[str, float] = {}
        self.heartbeat = Heartbeat(self._silence)

    def trials(self) -> list[Trial]:
        """All trials of the study, in order."""
        return [trial for _, trial in sorted(self._seen.items())]

    def _silence(self, seconds: float) -> str:
        over = f"{len(self._told)} of {self._all} trials are over"
        running = f"{listed(sorted(self._running), MOST_NAMED)} still running, {over}" if self._running else over
        return waits() or running

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Takes a trial that the searcher made, or that has other values now."""
        found = self._study.trial(str(trial), trial.config)
        self._seen[found.number] = self._running[found.name] = found
        self.moved()

    def moved(self) -> None:
        """Moves the bar on a terminal."""
        moved(
            "trials", len(self._told), self._all, f"{len(self._told)} of {self._all} over, {len(self._running)} running"
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Prints a line about a trial from which nothing was heard for a while."""
        now = time.monotonic()
        if now - self._lines.setdefault(str(trial), now) >= EVERY and BETTER in result:
            self._lines[str(trial)] = now
            self.heartbeat.heard()
            name = self._study.trial(str(trial), trial.config).name
            best = f"best {result[BETTER]:.4f} at {result['best_epoch']:.0f}"
            print(f"{name}  epoch {result['epoch']:.0f}  {best}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that has not said so itself was stopped by the scheduler; one that came too late still waits."""
        found = self._study.trial(str(trial), trial.config)
        mirror_of(found.folder).join()
        if read_record(found).status == WAITING:
            return
        self._over(trial, STOPPED, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial whose process died too often."""
        error = trial.get_pickled_error()
        own = own_error(error) if error is not None else None
        self._over(trial, FAILED, str(own or f"its process ended {self._study.max_failures + 1} times"))

    def time_is_over(self) -> None:
        """The trials that ran when the time of the study was over are stopped; those that never started wait."""
        running = [trial for trial in self.trials() if read_record(trial).status == RUNNING]
        for trial in running:
            self._ended(trial, STOPPED, None)

    def _over(self, of_tune: Any, status: str, error: str | None) -> None:
        trial = self._study.trial(str(of_tune), of_tune.config)
        self._seen[trial.number] = trial
        self._ended(trial, status, error)

    def _ended(self, trial: Trial, status: str, error: str | None) -> None:
        mirror_of(trial.folder).join()
        record = ended(trial, status, error)
        self._running.pop(trial.name, None)
        self.heartbeat.heard()
        if trial.name in self._told:
            return
        self._told.add(trial.name)
        self.moved()
        (outcome,) = outcomes([trial])
        line = f"[{len(self._told)}{self._total}] {trial.name} {record.status}"
        if record.error is not None:
            line += f": {record.error}"
        elif outcome.best is not None:
            line += f" after epoch {outcome.epochs}: best {outcome.best:.4f} at {outcome.best_epoch}"
        print(line, flush=True)
        if self._study.kept is not None:
            # Not those of this trial: its process may still be writing one.
            others = [*self._with_checkpoints.values(), *outcomes(list(self._running.values()))]
            for name in prune(others, self._mode, self._study.kept):
                self._with_checkpoints.pop(name, None)
            self._with_checkpoints[trial.name] = outcome.last


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
        optuna = require("optuna", extra="optuna", purpose="searcher")
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._known = [trial.values for trial in known]
        points = search.points_to_evaluate[len(known) :]
        self._inner = OptunaSearch(
            space=lambda trial: suggest(search, trial),
            metric=BETTER,
            mode=mode,
            points_to_evaluate=[*self._known, *points] or None,
            seed=search.seed,
        )
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
    run, cpu, gpu = study.base.run, study.resources.cpu, study.resources.gpu
    now, later = nodes_now(), nodes_later()
    room = max(sum(kind.workers(cpu, gpu) for kind in nodes) for nodes in (now, later))
    if room < run.min_workers:
        each = f"{cpu} CPU{'s' * (cpu > 1)} and {gpu:g} GPUs"
        has = "; ".join(f"{kind.count} with {kind.cpus} CPUs and {kind.gpus} GPUs" for kind in later or now)
        raise UsageError(
            f"resources: {run.min_workers} worker{'s' * (run.min_workers > 1)} of a trial, each with {each}, do not fit; "
            f"the cluster has nodes: {has}"
        )
    return max(1, room // run.max_workers)


def trial_resources(study: Study) -> dict[str, float]:
    """What Tune sets aside for a trial's own process: its worker, or next to nothing where workers are placed by themselves."""
    if study.base.run.max_workers > 1:
        # A request must not be empty, and a share of a CPU would be missing to a worker.
        return {"memory": 2**20}
    return {"CPU": study.resources.cpu, "GPU": study.resources.gpu}


def _param_space(study: Study, search: Search | None) -> dict[str, Any]:
    """Numbers of the trials, and for population based training their values, which it then moves.

    Where no scheduler compares trials, those that are over need not tell it what they did.
    """
    alone = search is None or search.scheduler.name == "none"
    numbers = [trial.number for trial in study.trials if not (alone and read_record(trial).over)]
    space: dict[str, Any] = {NUMBER: tune.grid_search(numbers)}
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
    epochs = study.epochs or study.base.train.num_epochs
    if plan.name == "asha":
        return ASHAScheduler(
            time_attr="epoch",
            max_t=epochs,
            grace_period=plan.grace_period,
            reduction_factor=plan.reduction_factor,
            # A trial with all its epochs ends by itself, and says that it is finished.
            stop_last_trials=False,
        )
    return Generations(
        seed=search.seed,
        last=epochs,
        time_attr="epoch",
        perturbation_interval=plan.interval,
        # A list is moved along, value by value; a domain is not.
        hyperparam_mutations={p.key: list(p.values) if p.kind == "choice" else domain(p) for p in search.space},
        log_config=False,
    )
