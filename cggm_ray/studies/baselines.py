"""Simple models of scikit-learn on the inputs of a run: a linear model and a multi-layer perceptron.

They say what can be reached without any of this package. Their regularisation is chosen on validation, like all else in a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.optional import require
from cggm_ray.studies.baseline_inputs import EXTRA, PURPOSE, Rows, standardised
from cggm_ray.tasks import Regression, Task

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""C of logistic regression, the inverse of its regularisation."""
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""alpha of ridge regression."""
DECAYS = (1e-4, 1e-1, 1.0)
"""alpha of the perceptron."""
WIDTH = 256
LINEAR, PERCEPTRON = "linear", "mlp"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics and predictions of a model that was chosen on validation.

    Attributes:
        valid, test: metrics by name.
        logits: of validation and test, [N, C].
        choice: what validation chose, such as 'C=0.1, flattened'.
    """

    valid: Mapping[str, float]
    test: Mapping[str, float]
    logits: Mapping[str, Tensor] = field(repr=False)
    choice: str = ""


def measured(task: Task, logits: Tensor, target: Tensor) -> dict[str, float]:
    """Returns loss and metrics of predictions [N, C], as the evaluation of a run forms them."""
    state = task.metrics()
    state.update(logits, Batch.of_loop(target))
    return {"loss": float(task.loss(logits, target)), **state.compute(state.sums)}


def scored(task: Task, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], choice: str = "") -> Scores:
    """Returns the scores of predictions of the splits 'valid' and 'test'."""
    found = {name: measured(task, logits[name], targets[name]) for name in ("valid", "test")}
    return Scores(valid=found["valid"], test=found["test"], logits=logits, choice=choice)


def best(candidates: Sequence[Scores], metric: str, better: str) -> Scores:
    """Returns the candidate with the best validation metric, the first of equal ones.

    Args:
        candidates: at least one.
        metric: of validation.
        better: 'min' or 'max'.
    """
    sign = 1.0 if better == "min" else -1.0
    return min(candidates, key=lambda scores: np.nan_to_num(sign * scores.valid[metric], nan=np.inf))


def linear_models(task: Task, rows: int, columns: int) -> dict[str, Any]:
    """Returns logistic or ridge regressions by their regularisation.

    With more columns than rows the data are turned into the space that the rows span. This changes no prediction, because a
    penalised linear model has no weight outside of it, and it takes a fraction of the time.

    Args:
        task: what is predicted.
        rows, columns: of the training data.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    models = require("sklearn.linear_model", extra=EXTRA, purpose=PURPOSE)
    if isinstance(task, Regression):
        found = {f"alpha={a:g}": models.Ridge(alpha=a) for a in PENALTIES}
    else:
        found = {f"C={c:g}": models.LogisticRegression(C=c, max_iter=1000) for c in STRENGTHS}
    if columns <= rows:
        return found
    pipeline = require("sklearn.pipeline", extra=EXTRA, purpose=PURPOSE)
    parts = require("sklearn.decomposition", extra=EXTRA, purpose=PURPOSE)
    return {name: pipeline.make_pipeline(parts.PCA(svd_solver="full"), model) for name, model in found.items()}


def perceptrons(task: Task, seed: int) -> dict[str, Any]:
    """Returns multi-layer perceptrons with one hidden layer by their regularisation.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    models = require("sklearn.neural_network", extra=EXTRA, purpose=PURPOSE)
    kind = models.MLPRegressor if isinstance(task, Regression) else models.MLPClassifier
    return {
        f"alpha={a:g}": kind(hidden_layer_sizes=(WIDTH,), alpha=a, max_iter=200, random_state=seed % 2**32)
        for a in DECAYS
    }


def predicted(task: Task, model: Any, values: np.ndarray) -> Tensor:
    """Returns log-probabilities of all classes of the task, or values: float64 [N, C]."""
    if isinstance(task, Regression):
        return torch.from_numpy(np.asarray(model.predict(values), dtype=np.float64)).reshape(-1, 1)
    logits = torch.full((len(values), task.outputs), -1e4, dtype=torch.float64)
    # A class without a training sample is unknown to the model.
    found = np.log(np.maximum(model.predict_proba(values), 1e-300))
    logits[:, torch.from_numpy(np.asarray(model.classes_)).long()] = torch.from_numpy(found)
    return logits


def fitted(
    task: Task, splits: Mapping[str, Rows], models: Callable[[int, int], Mapping[str, Any]], about: str = ""
) -> list[Scores]:
    """Fits every model on train and returns its scores.

    Args:
        task: what is predicted.
        splits: 'train', 'valid' and 'test'.
        models: from rows and columns of the training data to unfitted models by name.
        about: added to the names.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    names = ("train", "valid", "test")
    values = dict(zip(names, standardised([splits[name] for name in names]), strict=True))
    target = splits["train"].target
    centre, spread = (float(target.mean()), float(target.std()) or 1.0) if isinstance(task, Regression) else (0.0, 1.0)
    truth = {name: torch.from_numpy(splits[name].target) for name in ("valid", "test")}
    found = []
    for name, model in models(*values["train"].shape).items():
        with warnings.catch_warnings():
            # A fit that stopped before it converged is one more candidate for validation.
            warnings.simplefilter("ignore")
            model.fit(values["train"], (target - centre) / spread if isinstance(task, Regression) else target)
        logits = {part: predicted(task, model, values[part]) * spread + centre for part in truth}
        found.append(scored(task, logits, truth, ", ".join(filter(None, (name, about)))))
    return found
