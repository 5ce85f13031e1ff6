"""Measures the head-room of a run or a comparison: it trains what is missing, and writes and prints the table.

Runs of a single modality, and joint training where it was not among the runs, are trials below FOLDER/headroom. They have the
configuration of the run but for modalities and strategy. A trial that is finished is not run again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.commands.trials import run_trials
from cggm_ray.core.console import print_result
from cggm_ray.core.errors import CggmError, UsageError
from cggm_ray.core.optional import check_installed, is_installed
from cggm_ray.core.tables import listing
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.assembly import build_dataset, check, selected_modalities
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.stopping import Interrupted, StopRequest, interrupting
from cggm_ray.runs.finished import read_config
from cggm_ray.runs.folder import sole_owner
from cggm_ray.storage.work import shown
from cggm_ray.strategies.settings import JOINT
from cggm_ray.studies.baseline_inputs import EXTRA, PURPOSE
from cggm_ray.studies.headroom import FOLDER, HEADROOM, Candidate, Headroom, Measure, headroom
from cggm_ray.studies.headroom_rows import Group, Runs, network_rows, simple_rows
from cggm_ray.studies.store import FAILED, FINISHED, WAITING, Trial, make_trial, read_record, write_record

LEFT_OUT = "the head-room was left out; the same command goes on with it"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The runs of one seed and fold whose head-room is measured.

    Attributes:
        name: of seed and fold; empty for a single run.
        config: of these runs but for the strategy, with seed and fold.
        shards: folder of the set.
        runs: folder by strategy.
    """

    name: str
    config: Config
    shards: Path
    runs: Mapping[str, Path]


def check_headroom(config: Config) -> None:
    """Refuses a configuration whose head-room could not be measured, before any work.

    Raises:
        UsageError: scikit-learn is not installed, or there are several processes of torchrun.
    """
    if not config.run.headroom:
        return
    if config.train.refit:
        raise UsageError(
            f"headroom: found together with refit {config.train.refit:g}; it chooses on validation, so expected 0"
        )
    check_installed("sklearn", extra=EXTRA, purpose=PURPOSE)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            "headroom: found several processes of torchrun; expected one process or Ray (--workers), whose trials it runs"
        )


def write_headroom(
    config: Config, folder: Path, finished: Sequence[Finished], stop_request: StopRequest
) -> Headroom | None:
    """Trains what is missing and writes `headroom.json` into the folder of a run or a comparison, until a signal comes.

    An error is printed and changes nothing else.

    Args:
        config: of the run or the comparison.
        folder: of it.
        finished: its runs by seed and fold.
        stop_request: receives the number of a signal.

    Returns:
        The table; None where it was left out.
    """
    try:
        with interrupting(stop_request):
            print("measuring the head-room (--headroom false leaves it out)", flush=True)
            found = measured(config, folder, finished)
            found.save(folder / HEADROOM)
    except Interrupted:
        print(LEFT_OUT, flush=True)
        return None
    except (CggmError, OSError) as error:
        # A wait of Ray makes an error of its own of the interruption.
        text = LEFT_OUT if stop_request.signal else f"{shown(folder)}: the head-room was not measured: {error}"
        print(text, flush=True)
        return None
    print_result(found.text())
    print(listing({"head-room": folder / HEADROOM}), flush=True)
    return found


def measured(config: Config, folder: Path, finished: Sequence[Finished]) -> Headroom:
    """Trains what is missing and returns the table; the arguments are those of `write_headroom`.

    Raises:
        CggmError: the data or a run cannot be read, or the storage failed.
    """
    end = time.monotonic() + config.run.headroom_seconds
    task = build_dataset(finished[0].config).task(open_manifest(finished[0].shards))
    if task.values > 1:
        raise UsageError("headroom: samples have several labels; expected one target of each")

    def late() -> bool:
        return time.monotonic() > end

    study = folder / FOLDER
    planned, notes = plan(study, finished)
    trials = [part.trial for part in planned]
    if trials:
        with sole_owner(study):
            for trial in trials:
                reopen(trial)
            run_trials(config, study, trials, late)
    for part in planned:
        record = read_record(part.trial)
        if record.status != FINISHED:
            why = record.error if record.status == FAILED else "time was up (--headroom_seconds)"
            notes.append(f"{part.trial.name} is missing: {why}")
    metric = config.train.select or task.selection[0]
    runs, groups = Runs(task, metric), [group_of(one, planned) for one in finished]
    singles, together, said = network_rows(groups, runs, task)
    measure = Measure(task=task, metric=metric, better=task.better(metric), truth=runs.truth(groups))
    notes += said
    simple: list[Candidate] = []
    if not task.dense and is_installed("sklearn"):
        simple, said = simple_rows(groups, measure, late)
        notes += said
    elif not task.dense:
        notes.append(f"Simple models were left out: scikit-learn is not installed; pip install 'cggm-ray[{EXTRA}]'")
    return headroom(measure, [*singles, *simple, *together], notes)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run that the head-room needs and that is not there.

    Attributes:
        group: name of its seed and fold.
        modality: that it has; None for joint training with all.
        trial: the run.
    """

    group: str
    modality: str | None
    trial: Trial


def plan(study: Path, finished: Sequence[Finished]) -> tuple[list[Part], list[str]]:
    """Returns what is missing, checked but not started, and notes about what the configuration does not allow.

    Args:
        study: folder for the trials.
        finished: the runs by seed and fold.
    """
    parts: list[Part] = []
    notes: list[str] = []
    for runs in finished:
        manifest = open_manifest(runs.shards)
        modalities = selected_modalities(runs.config, manifest)
        wanted: list[str | None] = [*modalities] if len(modalities) > 1 else []
        for modality in wanted if JOINT in runs.runs else [None, *wanted]:
            values: dict[str, object] = {"modulation": JOINT}
            label = "joint" if modality is None else "only-" + re.sub(r"[^\w.-]", "_", modality)
            if modality is not None:
                values["modalities"] = [modality]
            try:
                name = "-".join(filter(None, (label, runs.name)))
                trial = make_trial(runs.config, study, len(parts), name, values, runs.shards)
                check(trial.config, manifest)
            except CggmError as error:
                notes.append(f"{label} is missing: {error}")
                continue
            parts.append(Part(group=runs.name, modality=modality, trial=trial))
    return parts, list(dict.fromkeys(notes))


def reopen(trial: Trial) -> None:
    """Lets a finished trial go on whose run has other settings by now, such as more epochs."""
    record = read_record(trial)
    if record.over and read_config(trial.folder).train != trial.config.train:
        record.status, record.error = WAITING, None
        write_record(trial.folder, record)


def group_of(finished: Finished, planned: Sequence[Part]) -> Group:
    """Returns the runs of one seed and fold with the trials that finished."""
    own = [p for p in planned if p.group == finished.name and read_record(p.trial).status == FINISHED]
    joint = finished.runs.get(JOINT) or next((part.trial.folder for part in own if part.modality is None), None)
    return Group(
        name=finished.name,
        config=finished.config,
        shards=finished.shards,
        joint=joint,
        strategies={name: run for name, run in finished.runs.items() if name != JOINT},
        singles={part.modality: part.trial.folder for part in own if part.modality is not None},
    )
