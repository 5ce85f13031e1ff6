"""A run as its page shows it: all that its folder says, finished or not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cggm_ray.core.errors import CggmError, TrainingError, UsageError
from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.shards.shards import TARGET, column_values
from cggm_ray.engine.assembly import with_strategy
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import BEST, PREDICTIONS, saved_values
from cggm_ray.engine.tracking import METRICS, read_metrics
from cggm_ray.runs.card import try_card
from cggm_ray.runs.contributions import BALANCE, Contributions, contributions
from cggm_ray.runs.ensembles import Ensemble, read_ensemble
from cggm_ray.runs.finished import open_finished, read_config, read_run
from cggm_ray.runs.pictures import FOLDER as PICTURES
from cggm_ray.runs.pictures import read_case_notes
from cggm_ray.runs.provenance import read_provenance
from cggm_ray.runs.recorded import recorded_epochs, recorded_manifest
from cggm_ray.runs.result import SUMMARY, Result
from cggm_ray.runs.search_record import SearchRecord, read_search_record
from cggm_ray.studies.choice import FOLDER as CHOICE
from cggm_ray.studies.choice import Choice, read_choice
from cggm_ray.studies.headroom import HEADROOM, Headroom

STUDY = "trials"
Line = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run.

    Attributes:
        label: its name, different from that of every other run of the page.
        folder: of the run.
        config: of the run.
        lines: its metrics by epoch.
        metric: the validation metric that selects.
        better: 'min' or 'max', the way it improves.
        planned: epochs of the run, if nothing stops it early.
        search: that led to the configuration; None where none did.
        choice: among the best trials of the search; None where there was none.
        ensemble: whose result the folder has; None for a single run.
        result: None where the run is not finished.
        contributions: scores of the subsets of modalities; None where there are none.
        headroom: what balancing can gain; None where it was not measured.
        notes: what could not be shown, and why.
        provenance: a line a start.
        truth, predicted: of the test samples: values, or class numbers; None where there are no predictions.
        classes: names of the classes; empty for values.
        pictures: that the dataset left.
        case_notes: what it left about them: the legend of their colours, and the Dice of each case.
    """

    label: str
    folder: Path
    config: Config
    lines: Sequence[Line]
    metric: str = "loss"
    better: str = "min"
    planned: int | None = None
    search: SearchRecord | None = None
    choice: Choice | None = None
    ensemble: Ensemble | None = None
    result: Result | None = None
    contributions: Contributions | None = None
    headroom: Headroom | None = None
    notes: tuple[str, ...] = ()
    provenance: Sequence[Mapping[str, Any]] = ()
    truth: np.ndarray | None = None
    predicted: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    pictures: tuple[Path, ...] = ()
    case_notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of the dataset, as the metrics have them."""
        return modalities_in(self.lines)

    def series(self, name: str) -> np.ndarray:
        """A quantity by epoch, NaN where it was not recorded or not finite."""
        values = [line.get(name) for line in self.lines]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def recorded(self, quantity: str) -> list[str]:
        """The modalities that have the quantity in any epoch."""
        return [name for name in self.modalities if np.isfinite(self.series(f"{quantity}/{name}")).any()]

    def defaults(self) -> dict[str, Any]:
        """What the configuration is without any flag, by 'section.field'."""
        return flat(Config(options=DATASETS.get(self.config.data.dataset).Options()))


def modalities_in(lines: Sequence[Line]) -> tuple[str, ...]:
    """The modalities that the first line of metrics has."""
    prefix = "grad_norm/"
    return tuple(name.removeprefix(prefix) for line in lines[:1] for name in line if name.startswith(prefix))


def flat(config: Config) -> dict[str, Any]:
    """The values of a configuration by 'section.field'."""
    return {
        f"{section}.{name}": value for section, fields in config.to_dict().items() for name, value in fields.items()
    }


def read_run_record(folder: Path, label: str | None = None) -> RunRecord:
    """Reads what the folder of a run holds.

    Raises:
        UsageError: it is no folder of a run, or a file in it is damaged.
    """
    folder = folder.absolute()
    config = read_config(folder)
    if (folder / STUDY).is_dir() and not (folder / METRICS).exists():
        raise UsageError(f"{folder} holds a study; expected the folder of a run, such as those in {folder / STUDY}")
    lines = read_metrics(folder)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("epoch"), int | float):
            raise UsageError(f"{folder / METRICS}, line {number}: expected an object with the number 'epoch'")
        if not all(value is None or isinstance(value, int | float) for value in line.values()):
            raise UsageError(f"{folder / METRICS}, line {number}: expected numbers or null as values")
    config = with_strategy(config, modalities_in(lines)) if lines else config
    ensemble = read_ensemble(folder)
    metric, better = selecting(folder) if ensemble is None else (ensemble.metric, ensemble.mode)
    run = RunRecord(
        label=label or folder.name,
        folder=folder,
        config=config,
        lines=lines,
        metric=metric,
        better=better,
        planned=recorded_epochs(folder) or config.train.num_epochs,
        search=read_search_record(folder),
        choice=read_choice(folder / CHOICE),
        ensemble=ensemble,
        provenance=[entry for entry in read_provenance(folder) if isinstance(entry, dict)],
        pictures=tuple(sorted((folder / PICTURES).glob("*.png"))),
        case_notes=read_case_notes(folder / PICTURES),
    )
    if not (folder / SUMMARY).exists():
        return run
    run = replace(run, result=read_run(folder)[1])
    if (folder / BALANCE).exists():
        found = Contributions.load(folder / BALANCE)
        # A run that went on may have another best epoch by now.
        if run.result is not None and found.epoch == run.result.best_epoch:
            run = replace(run, contributions=found)
    if (folder / HEADROOM).exists():
        run = replace(run, headroom=Headroom.load(folder / HEADROOM))
    return _with_predictions(run)


def with_contributions(run: RunRecord, *, told: bool = True) -> RunRecord:
    """The run with the scores of all subsets, computed if the run is finished and did not leave them.

    They are kept in the run's folder where that can be written. Where they cannot be had, a note says why.

    Args:
        run: of one or more modalities.
        told: whether a line says that they are computed.
    """
    if (run.contributions is not None and not run.contributions.missing) or run.result is None:
        return run
    # To stderr: what a program prints is the path of the page.
    if told:
        print(f"{run.folder}: scoring the subsets of modalities (--no_contributions leaves them out)", file=sys.stderr)
    try:
        finished = open_finished(run.folder)
        found = contributions(
            finished.config.train,
            finished.net,
            finished.task,
            finished.split("valid"),
            finished.runtime,
            metric=run.metric,
            epoch=finished.result.best_epoch,
        )
    except CggmError as error:
        return replace(run, notes=(*run.notes, f"The subsets of modalities were not scored: {error}"))
    # A folder that can only be read can still be shown.
    with suppress(OSError):
        found.save(run.folder / BALANCE)
        try_card(run.folder)
    return replace(run, contributions=found)


def part(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping in a line of provenance; empty where there is none."""
    found = entry.get(key)
    return found if isinstance(found, dict) else {}


def _with_predictions(run: RunRecord) -> RunRecord:
    path = run.folder / PREDICTIONS
    if not path.exists():
        return run
    try:
        table = pq.read_table(path, columns=[TARGET, "prediction"])
        if pa.types.is_list(table.schema.field(TARGET).type):
            # Several labels of a sample make no confusion matrix.
            return run
        truth, predicted = (column_values(table.column(name)) for name in (TARGET, "prediction"))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if predicted.ndim == 1:
        return replace(run, truth=truth, predicted=predicted)
    manifest = recorded_manifest(run.folder)
    names = (manifest and manifest.notes.get("classes")) or ()
    if len(names) != predicted.shape[1]:
        names = range(predicted.shape[1])
    return replace(run, truth=truth.astype(int), predicted=predicted.argmax(1), classes=tuple(map(str, names)))


def selecting(folder: Path) -> tuple[str, str]:
    """The validation metric that selects, and which way it improves, from a checkpoint; the loss where there is none."""
    for checkpoint in (folder / BEST, Checkpoints(folder).newest()):
        if checkpoint is not None and checkpoint.exists():
            try:
                best = saved_values(checkpoint)["best"]
                return str(best["metric"]), str(best["mode"])
            except (TrainingError, KeyError, TypeError) as error:
                raise UsageError(f"{checkpoint} cannot be read: {error}") from None
    return "loss", "min"
