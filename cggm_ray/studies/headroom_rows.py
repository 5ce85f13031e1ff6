"""The rows of the head-room: finished runs, late fusion of single modalities, and simple models on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cggm_ray.core.errors import one_line
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.assembly import build_dataset, selected_modalities
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.evaluation import Predictions, evaluate
from cggm_ray.models.averaged import mean_prediction
from cggm_ray.runs.finished import open_on
from cggm_ray.runs.result import read_summary
from cggm_ray.studies.baseline_inputs import MOST_SAMPLES, Rows, layouts, read_rows
from cggm_ray.studies.baselines import (
    LINEAR,
    PERCEPTRON,
    Scores,
    best,
    fitted,
    linear_models,
    measured,
    perceptrons,
)
from cggm_ray.studies.headroom import JOINT, LATE, SIMPLE, SINGLE, STRATEGY, Candidate, Measure
from cggm_ray.tasks import Classification, Regression, Task

VALID, TEST = "valid", "test"
Logits = Mapping[str, Tensor]
"""Predictions of validation and test, [N, C] each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The finished runs of one seed and fold.

    Attributes:
        name: of seed and fold.
        config: that they share.
        shards: folder of the set that they were trained on.
        joint: folder of joint training; None if it did not finish.
        strategies: folder by strategy.
        singles: folder by modality.
    """

    name: str
    config: Config
    shards: Path
    joint: Path | None
    strategies: Mapping[str, Path]
    singles: Mapping[str, Path]


class Runs:
    """Scores and predictions of runs, which are computed once.

    Args:
        task: what they predict.
        metric: that selects.
    """

    def __init__(self, task: Task, metric: str) -> None:
        self._task, self._metric = task, metric
        self._known: dict[Path, tuple[Logits, Logits]] = {}

    def predictions(self, folder: Path, shards: Path) -> tuple[Logits, Logits]:
        """Returns predictions and targets of validation and test by the best checkpoint of a run; empty for maps.

        Raises:
            CggmError: the run or its data cannot be read.
        """
        if self._task.dense:
            return {}, {}
        if folder not in self._known:
            run = open_on(folder, shards)
            logits, truth = {}, {}
            for name in (VALID, TEST):
                split = run.split(name)
                found = Predictions.empty(len(split), self._task)
                evaluate(run.config.train, run.net, run.task, split, run.runtime, found)
                logits[name] = found.logits
                values = found.target.flatten()
                truth[name] = values.long() if isinstance(self._task, Classification) else values
            self._known[folder] = logits, truth
        return self._known[folder]

    def truth(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Returns the targets of the test samples by group, [N]; empty for maps.

        Raises:
            CggmError: a run or its data cannot be read.
        """
        found = {}
        for group in groups:
            folder = group.joint or next(iter(group.strategies.values()), None)
            if folder is not None and not self._task.dense:
                found[group.name] = self.predictions(folder, group.shards)[1][TEST]
        return found

    def candidate(self, label: str, kind: str, folders: Mapping[Group, Path]) -> Candidate:
        """Returns the row of runs, one a group, with the metrics that they recorded."""
        results = {group.name: read_summary(folder) for group, folder in folders.items()}
        seen = {group.name: self.predictions(folder, group.shards)[0] for group, folder in folders.items()}
        return Candidate(
            label=label,
            kind=kind,
            valid={name: result.valid[self._metric] for name, result in results.items()},
            test={name: result.test[self._metric] for name, result in results.items()},
            logits={name: logits[TEST] for name, logits in seen.items() if logits},
        )

    def late_fusion(self, groups: Sequence[Group], modalities: Sequence[str]) -> Candidate:
        """Returns the row of the mean of the single modalities' probabilities, or of their values."""
        valid, test, logits = {}, {}, {}
        for group in groups:
            share, classes = torch.full([len(modalities)], 1 / len(modalities)), isinstance(self._task, Classification)
            pairs = [self.predictions(group.singles[name], group.shards) for name in modalities]
            truth = pairs[0][1]
            fused = {
                split: mean_prediction(torch.stack([found[split] for found, _ in pairs]), share, classes=classes)
                for split in truth
            }
            valid[group.name], test[group.name] = (
                measured(self._task, fused[split], truth[split])[self._metric] for split in (VALID, TEST)
            )
            logits[group.name] = fused[TEST]
        return Candidate(label="late fusion", kind=LATE, valid=valid, test=test, logits=logits)


def network_rows(groups: Sequence[Group], runs: Runs, task: Task) -> tuple[list[Candidate], list[Candidate], list[str]]:
    """Returns the rows of the single modalities with their late fusion, those of joint training and strategies, and notes.

    Raises:
        CggmError: a run or its data cannot be read.
    """
    notes = []

    def row(label: str, kind: str, folders: Mapping[Group, Path | None]) -> list[Candidate]:
        there = {group: folder for group, folder in folders.items() if folder is not None}
        return [runs.candidate(label, kind, there)] if there else []

    names = list(dict.fromkeys(name for group in groups for name in group.singles))
    singles = [c for name in names for c in row(f"{name} alone", SINGLE, {g: g.singles.get(name) for g in groups})]
    with_all = [group for group in groups if len(group.singles) == len(names)]
    if task.dense:
        notes.append("Late fusion and simple models need one prediction a sample; this task predicts maps.")
    elif len(names) > 1 and with_all:
        singles.append(runs.late_fusion(with_all, names))
    together = row("joint training", JOINT, {group: group.joint for group in groups})
    strategies = list(dict.fromkeys(name for group in groups for name in group.strategies))
    for name in strategies:
        together += row(name, STRATEGY, {group: group.strategies.get(name) for group in groups})
    return singles, together, notes


def simple_rows(
    groups: Sequence[Group], measure: Measure, until: Callable[[], bool]
) -> tuple[list[Candidate], list[str]]:
    """Returns the rows of scikit-learn's linear model and perceptron, fitted once for every set, and notes.

    Args:
        groups: of the comparison.
        measure: how predictions are scored.
        until: called before each fit; True leaves the rest out.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        DataError: the shards cannot be read.
    """
    by_set: dict[Path, dict[str, Scores]] = {}
    notes: list[str] = []
    for group in groups:
        if group.shards not in by_set:
            by_set[group.shards], said = simple_models(group, measure, until)
            notes += [line for line in said if line not in notes]
    regression = isinstance(measure.task, Regression)
    labels = {
        LINEAR: "ridge regression" if regression else "logistic regression",
        PERCEPTRON: "perceptron of scikit-learn",
    }
    rows = []
    for kind, label in labels.items():
        found = {group.name: by_set[group.shards][kind] for group in groups if kind in by_set[group.shards]}
        if found:
            rows.append(
                Candidate(
                    label=label,
                    kind=SIMPLE,
                    valid={name: scores.valid[measure.metric] for name, scores in found.items()},
                    test={name: scores.test[measure.metric] for name, scores in found.items()},
                    logits={name: scores.logits[TEST] for name, scores in found.items()},
                    choice="; ".join(dict.fromkeys(scores.choice for scores in found.values())),
                )
            )
    return rows, notes


def simple_models(group: Group, measure: Measure, until: Callable[[], bool]) -> tuple[dict[str, Scores], list[str]]:
    """Returns the scores of a linear model and a perceptron that validation chose, and notes."""
    config, manifest, task = group.config, open_manifest(group.shards), measure.task
    dataset, names = build_dataset(config, manifest.dataset), selected_modalities(config, manifest)
    taken = dataset.pretrained(manifest, names)
    names = tuple(name for name in names if name not in taken)
    if not names:
        return {}, ["Simple models were left out: all modalities have an encoder that is trained (--train_encoders)."]
    kinds, shapes = dataset.kinds(manifest, names), dataset.shapes(manifest, names)
    opened = {
        split: dataset.open_split(group.shards, manifest, split, names, torch.device("cpu"))
        for split in ("train", VALID, TEST)
    }
    most = {"train": MOST_SAMPLES, VALID: MOST_SAMPLES, TEST: len(opened[TEST])}
    makers: dict[str, Callable[[int, int], Mapping[str, Any]]] = {
        LINEAR: partial(linear_models, task),
        PERCEPTRON: lambda rows, columns: perceptrons(task, config.train.seed),
    }
    candidates: dict[str, list[Scores]] = {name: [] for name in makers}
    notes = [f"Simple models have not seen {', '.join(taken)} (--train_encoders)."] if taken else []
    for layout in layouts(shapes, kinds):
        rows: dict[str, Rows] = {s: read_rows(split, kinds, layout, most[s]) for s, split in opened.items()}
        train = rows["train"]
        if len(train.target) < train.available:
            notes.append(f"Simple models were fitted on {len(train.target):,} of {train.available:,} training samples.")
        for name, make in makers.items():
            if until():
                notes.append("Time was up before all simple models were fitted (--headroom_seconds).")
                break
            try:
                candidates[name] += fitted(task, rows, make, layout)
            # scikit-learn raises it for data that a model does not take, such as a single class.
            except (ValueError, MemoryError) as error:
                notes.append(f"A simple model, {name}, was not fitted: {one_line(str(error))}")
    found = {name: best(each, measure.metric, measure.better) for name, each in candidates.items() if each}
    return found, list(dict.fromkeys(notes))
