"""Ensembles by greedy forward selection with replacement (Caruana et al. 2004, "Ensemble Selection from Libraries").

The selection sees validation predictions only. The members are then averaged, and their mean is tested once.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.tables import text_table
from cggm_ray.data.loading.split import Split
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.evaluation import Predictions, evaluate
from cggm_ray.engine.prediction_file import write_predictions
from cggm_ray.engine.runtime import numbers
from cggm_ray.engine.state import PREDICTIONS
from cggm_ray.engine.tracking import Console
from cggm_ray.models.averaged import mean_prediction
from cggm_ray.runs.card import try_card
from cggm_ray.runs.confusion import save_confusion
from cggm_ray.runs.contributions import write_contributions
from cggm_ray.runs.ending import table
from cggm_ray.runs.ensembles import Ensemble
from cggm_ray.runs.finished import open_on, opened_on
from cggm_ray.runs.result import NO_EPOCH, SUMMARY, Result
from cggm_ray.storage.files import write_text
from cggm_ray.tasks import Classification, Task

ROUNDS = 25
"""Largest number of members, each counted as often as it is chosen."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A round of the selection.

    Attributes:
        run: the candidate that was added.
        value, loss: validation metric and loss of the ensemble with it.
    """

    run: str
    value: float
    loss: float


def scores(task: Task, logits: Tensor, target: Tensor) -> dict[str, float]:
    """Returns loss and metrics of predictions [N, C] for targets [N]."""
    state = task.metrics()
    state.update(logits, Batch.of_loop(target))
    return {"loss": float(task.loss(logits, target)), **state.compute(state.sums)}


def select(task: Task, metric: str, candidates: Mapping[str, Tensor], target: Tensor) -> list[Step]:
    """Chooses members by their validation predictions; the best single candidate is the first.

    In every round the candidate is added with which the ensemble is best by the metric, and among equal ones by the loss. The
    steps end with the best round, so the ensemble is never worse on validation than the best single candidate.

    Args:
        task: what is predicted.
        metric: that selects.
        candidates: name to logits [N, C] of the validation split.
        target: [N].
    """
    sign = 1 if task.better(metric) == "min" else -1
    names, classes = list(candidates), isinstance(task, Classification)
    logits_MNC = torch.stack([candidates[name].double() for name in names])
    counts_M = torch.zeros(len(names), dtype=torch.float64)
    steps: list[Step] = []
    order: list[tuple[float, float]] = []
    for size in range(1, ROUNDS + 1):
        tried = []
        for number, name in enumerate(names):
            share_M = counts_M.clone()
            share_M[number] += 1
            there = share_M > 0
            mean = mean_prediction(logits_MNC[there], share_M[there] / size, classes=classes)
            found = scores(task, mean, target)
            key = _defined(sign * found[metric]), _defined(found["loss"])
            tried.append((key, number, Step(run=name, value=found[metric], loss=found["loss"])))
        key, number, step = min(tried, key=lambda entry: entry[:2])
        counts_M[number] += 1
        order.append(key)
        steps.append(step)
    return steps[: order.index(min(order)) + 1]


def _defined(value: float) -> float:
    """Returns the value, or infinity, the worst one, in the place of NaN."""
    return math.inf if math.isnan(value) else value


def assemble(folder: Path, config: Config, runs: Mapping[str, Path], shards: Path) -> Result:
    """Selects an ensemble among finished runs, tests it, and writes what the folder of an ensemble has.

    `config.yaml` and `data.json` must be there.

    Args:
        folder: of the ensemble.
        config: of it: its batch size, precision and selection metric are those of the runs.
        runs: the candidates: path relative to the folder, and the folder itself.
        shards: folder of the set that all of them were trained on.

    Raises:
        CggmError: a run or its data cannot be read.
        OSError: the folder cannot be written.
    """
    say = Console(folder).say
    task, metric, candidates, target = validation_predictions(config, runs, shards)
    steps = select(task, metric, candidates, target)
    ensemble = Ensemble(
        metric=metric,
        mode=task.better(metric),
        members=dict(Counter(step.run for step in steps)),
        candidates={name: scores(task, logits, target)[metric] for name, logits in candidates.items()},
        steps=[vars(step) for step in steps],
    )
    ensemble.save(folder)
    say(selection_table(ensemble))
    nothing = Result(folder=folder, best_epoch=NO_EPOCH, valid={}, test={})
    run = opened_on(folder, config, nothing, shards)
    valid = evaluate(run.config.train, run.net, run.task, run.split("valid"), run.runtime)
    samples = run.split("test")
    collected = Predictions.empty(len(samples), run.task)
    test = evaluate(run.config.train, run.net, run.task, samples, run.runtime, collected)
    result = Result(folder=folder, best_epoch=NO_EPOCH, valid=numbers(valid), test=numbers(test))
    write_predictions(folder / PREDICTIONS, samples.names, collected)
    names = run.dataset.class_names(run.trained)
    if names is not None:
        save_confusion(folder, names)
    content = {"best_epoch": NO_EPOCH, "epochs": NO_EPOCH, "valid": result.valid, "test": result.test}
    write_text(folder / SUMMARY, json.dumps(content, indent=1))
    if failed := try_card(folder):
        say(failed)
    say(table(result, {name: task.better(name) for name in result.test}))
    if config.run.report and config.run.contributions_seconds:
        write_contributions(
            run.config.train,
            run.net,
            run.task,
            run.split("valid"),
            run.runtime,
            folder,
            metric=metric,
            epoch=NO_EPOCH,
            seconds=config.run.contributions_seconds,
            say=say,
        )
        if failed := try_card(folder):
            say(failed)
    return result


def validation_predictions(
    config: Config, runs: Mapping[str, Path], shards: Path
) -> tuple[Task, str, dict[str, Tensor], Tensor]:
    """Returns task, selection metric, the logits [N, C] of every run on validation, and the targets [N] or [N, C].

    The loss of the task has no options, because those of the runs may differ.

    Args:
        config: whose selection metric is taken.
        runs: by name.
        shards: folder of their set.

    Raises:
        CggmError: a run or its data cannot be read.
    """
    logits: dict[str, Tensor] = {}
    split: Split | None = None
    for name, folder in runs.items():
        run = open_on(folder, shards)
        split = split or run.split("valid")
        found = Predictions.empty(len(split), run.task)
        evaluate(run.config.train, run.net, run.task, split, run.runtime, found)
        logits[name] = found.logits
    task = run.dataset.task(run.trained)
    target = found.target if task.values > 1 else found.target[:, 0]
    target = target.long() if isinstance(task, Classification) else target
    return task, config.train.select or task.selection[0], logits, target


def selection_table(ensemble: Ensemble) -> str:
    """Returns the members, how often each is counted, and their own validation metric."""
    rows: list[Sequence[object]] = [
        [name, count, ensemble.candidates[name]] for name, count in ensemble.members.items()
    ]
    rows.append(
        [f"ensemble of {len(ensemble.candidates)} candidates", len(ensemble.steps), ensemble.steps[-1]["value"]]
    )
    return text_table(rows, ["", "count", f"valid {ensemble.metric}"])
