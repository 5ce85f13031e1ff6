"""Classification with cross-entropy (IEMOCAP, Food-101)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.tasks.base import Task, per_sample, sample_weight
from cggm_ray.tasks.metrics import ClassificationMetrics, Metrics


def accuracy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the utility `accuracy`: the share of samples whose largest logit is the true class."""
    hit = (logits.argmax(1) == target).double()
    return torch.stack([(weight * hit).sum(), weight.sum()])


def log_likelihood(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the utility `likelihood`: minus the mean cross-entropy."""
    nll = F.cross_entropy(logits, target, reduction="none").double()
    return torch.stack([-(weight * nll).sum(), weight.sum()])


class Classification(Task):
    """Cross-entropy over `classes` exclusive classes."""

    n_sums = 2
    default_utility = "accuracy"
    released_utility = "accuracy"
    selection = ("accuracy", "max")
    utilities = {"accuracy": accuracy, "likelihood": log_likelihood}

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def sums(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the sum of negative log-likelihoods and the number of samples."""
        w = sample_weight(logits, weight)
        nll = F.cross_entropy(logits, target, reduction="none").double()
        return torch.stack([(nll * w).sum(), w.sum()])

    def combine(self, sums: Tensor) -> Tensor:
        """Returns the mean cross-entropy."""
        return sums[0] / sums[1]

    def residuals(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns softmax(logits) - onehot(target)."""
        delta = logits.softmax(1) - F.one_hot(target, self.outputs).to(logits.dtype)
        return (delta * per_sample(sample_weight(logits, weight), delta))[None]

    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns 1 / number of samples."""
        return (1 / sums[1])[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of accuracy, unweighted accuracy and weighted F1."""
        return ClassificationMetrics(self.outputs, device)
