"""Ensembles by greedy forward selection with replacement (Caruana et al. 2004, "Ensemble Selection from Libraries")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cggm_ray.tasks import Classification, Task

ROUNDS = 25
"""Largest number of members, each counted as often as it is chosen."""


def averaged(task: Task, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns what an ensemble predicts: for classes the logarithm of the mean probabilities, otherwise the mean.

    Args:
        task: what is predicted.
        logits: of each member, [N, C].
        weights: of the members; they need not add up to 1.
    """
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    parts = torch.stack([each.double() for each in logits])
    if not isinstance(task, Classification):
        return torch.einsum("m,mnc->nc", share, parts)
    return torch.einsum("m,mnc->nc", share, parts.softmax(-1)).clamp(min=1e-30).log()


def scores(task: Task, logits: Tensor, target: Tensor) -> dict[str, float]:
    """Returns loss and metrics of predictions [N, C] for targets [N]."""
    state = task.metrics()
    state.update(logits, target, None, None)
    return {"loss": float(task.loss(logits, target)), **state.compute(state.sums)}


def select(task: Task, metric: str, candidates: Mapping[str, Tensor], target: Tensor) -> dict[str, int]:
    """Chooses members by their validation predictions; the best single candidate is the first.

    In every round the candidate is added with which the ensemble is best by the metric, and among equal ones by the loss. The
    ensemble of the best round is returned, so it is never worse than the best single candidate.

    Args:
        task: what is predicted.
        metric: that selects.
        candidates: name to logits [N, C] of the validation split.
        target: [N].

    Returns:
        Name to the number of times that the candidate was chosen.
    """
    sign = 1 if task.better(metric) == "min" else -1
    counts: dict[str, int] = {}
    best: tuple[tuple[float, float], dict[str, int]] | None = None
    for _ in range(ROUNDS):
        tried = []
        for name in candidates:
            trial = {**counts, name: counts.get(name, 0) + 1}
            found = scores(task, averaged(task, [candidates[m] for m in trial], list(trial.values())), target)
            tried.append(((sign * found[metric], found["loss"]), trial))
        value, counts = min(tried, key=lambda entry: entry[0])
        if best is None or value < best[0]:
            best = value, counts
    assert best is not None
    return best[1]
