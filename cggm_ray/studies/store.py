"""The trials of a study: runs in folders of their own, and a record of each.

A study is a folder. Its trials lie in `trials/<name>`, each a run like any other with `trial.json` beside its metrics. That
file and the metrics are all that a study remembers, so a study that was killed goes on from the folder alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import UsageError
from cggm_ray.engine.checkpoints import CHECKPOINTS
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.storage.files import write_text
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.storage.work import shown

TRIALS = "trials"
TRIAL = "trial.json"
WAITING, RUNNING, FINISHED, STOPPED, FAILED = "waiting", "running", "finished", "stopped", "failed"
OVER = (FINISHED, STOPPED, FAILED)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run of a study.

    Attributes:
        number: its place in the study, from 0.
        name: of its folder.
        values: what it changes in the study's configuration.
        config: of the run.
        shards: folder of the converted set that it trains on.
    """

    number: int
    name: str
    values: dict[str, Any]
    config: Config
    shards: Path

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.config.run.storage / self.name


@dataclass(kw_only=True)
class Record:
    """Content of `trial.json`.

    Attributes:
        number, name, values: those of the `Trial`; population based training changes the values.
        status: 'waiting', 'running', 'finished' (all epochs), 'stopped' (by the scheduler) or 'failed'.
        error: why it failed.
        starts: for every start, when it was (seconds since 1970), after how many epochs it began, and its process.
        exchanges: population based training: the epoch, from which trial weights came, and the values from then on.
    """

    number: int
    name: str
    values: dict[str, Any]
    status: str = WAITING
    error: str | None = None
    starts: list[dict[str, float]] = field(default_factory=list)
    exchanges: list[dict[str, Any]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the trial is never started again."""
        return self.status in OVER


def trial_name(number: int) -> str:
    """Returns the default name of a trial."""
    return f"trial-{number:03d}"


def make_trial(base: Config, study: Path, number: int, name: str, values: dict[str, Any], shards: Path) -> Trial:
    """Returns a trial of the study in that folder; its run is stored below it and reads the study's shards."""
    config = base.replace(values, source=f"trial {name}")
    return Trial(
        number=number,
        name=name,
        values=dict(values),
        config=dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, shard_path=str(base.shard_root)),
            strategies={name: part.with_whole_paths(base.run.storage) for name, part in config.strategies.items()},
            # Nobody opens a page for every trial; `python -m cggm_ray report` makes one for a single trial.
            run=dataclasses.replace(
                config.run, storage_path=shown(study / TRIALS), name=name, fresh=False, report=False
            ),
        ),
        shards=shards,
    )


def read_record(trial: Trial) -> Record:
    """Returns the record of a trial; a trial that never started is waiting.

    Raises:
        UsageError: the file is damaged.
    """
    path = trial.folder / TRIAL
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return Record(number=trial.number, name=trial.name, values=trial.values)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it to run the trial again") from None


def write_record(folder: Path, record: Record) -> None:
    """Replaces `trial.json` in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TRIAL, json.dumps(asdict(record), indent=1))
    mirror_of(folder).push()


def started(trial: Trial, epoch: int) -> Record:
    """Records that a trial starts or continues after `epoch` epochs."""
    record = read_record(trial)
    record.status, record.error = RUNNING, None
    record.starts.append({"time": time.time(), "after_epoch": epoch, "process": os.getpid()})
    write_record(trial.folder, record)
    return record


def ended(trial: Trial, status: str, error: str | None = None) -> Record:
    """Records how a trial ended. A trial that is over changes its status only by a failure."""
    record = read_record(trial)
    if not record.over or status == FAILED:
        record.status, record.error = status, error
        write_record(trial.folder, record)
    return record


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial with its validation history.

    Attributes:
        record: of `trial.json`.
        folder: of the run.
        lines: its metrics by epoch.
    """

    record: Record
    folder: Path
    lines: Sequence[dict[str, float | None]]

    @property
    def last(self) -> Outcome:
        """The outcome without the history before its last epoch."""
        return dataclasses.replace(self, lines=self.lines[-1:])

    @property
    def epochs(self) -> int:
        """Number of trained epochs."""
        return int(self.lines[-1]["epoch"] or 0) if self.lines else 0

    @property
    def best(self) -> float | None:
        """Best validation value; None before the first epoch, and if no value was a number."""
        return self.lines[-1]["best_value"] if self.lines else None

    @property
    def best_epoch(self) -> int:
        """Epoch of the best value."""
        return int(self.lines[-1]["best_epoch"] or 0) if self.lines else 0

    @property
    def least_loss_epoch(self) -> int:
        """The last epoch with the least validation loss; 0 where no epoch has a loss."""
        losses = [
            (loss, -int(line["epoch"] or 0)) for line in self.lines if (loss := line.get("valid/loss")) is not None
        ]
        return -min(losses)[1] if losses else 0


def outcomes(trials: Sequence[Trial]) -> list[Outcome]:
    """Returns the outcomes of all trials, in their order."""
    return [
        Outcome(record=read_record(trial), folder=trial.folder, lines=read_metrics(trial.folder)) for trial in trials
    ]


def recorded_outcomes(study: Path) -> list[Outcome]:
    """Returns the outcomes of the trials whose record lies in the folder of a study, in the order of their numbers.

    Raises:
        UsageError: a record is damaged.
    """
    found = []
    for path in (study / TRIALS).glob(f"*/{TRIAL}"):
        try:
            record = Record(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        found.append(Outcome(record=record, folder=path.parent, lines=read_metrics(path.parent)))
    return sorted(found, key=lambda outcome: outcome.record.number)


def ranked(found: Sequence[Outcome], mode: str) -> list[Outcome]:
    """Returns the trials that have a value, best first. A failed trial has no value."""
    scored = [outcome for outcome in found if outcome.best is not None and outcome.record.status != FAILED]
    return sorted(scored, key=lambda outcome: (outcome.best or 0.0) * (1 if mode == "min" else -1))


def prune(found: Sequence[Outcome], mode: str, kept: int) -> set[str]:
    """Removes the checkpoints of trials that are over, but for those of the best `kept` trials; returns their names."""
    best = {outcome.record.name for outcome in ranked(found, mode)[:kept]}
    removed = set()
    for outcome in found:
        if outcome.record.over and outcome.record.name not in best:
            with suppress(OSError):
                mirror_of(outcome.folder).remove(outcome.folder / CHECKPOINTS)
                removed.add(outcome.record.name)
    return removed
