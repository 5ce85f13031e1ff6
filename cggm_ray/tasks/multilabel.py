"""Several labels of a sample, each of which applies or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import Task, per_sample
from cggm_ray.tasks.metrics import Metrics, MultiLabelMetrics


def label_accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the utility `accuracy`: the share of labels that are predicted right."""
    weight = batch.sample_weights()
    right = ((logits > 0) == (batch.target > 0.5)).double().mean(1)
    return torch.stack([(weight * right).sum(), weight.sum()])


def label_log_likelihood(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the utility `likelihood`: minus the mean binary cross-entropy."""
    weight = batch.sample_weights()
    nll = F.binary_cross_entropy_with_logits(logits, batch.target.to(logits), reduction="none").double().mean(1)
    return torch.stack([-(weight * nll).sum(), weight.sum()])


class MultiLabel(Task):
    """Binary cross-entropy of every label, with the meaning of `torch.nn.BCEWithLogitsLoss`; a target is float [N, labels].

    Args:
        labels: C, at least two.
    """

    n_sums = 2
    default_utility = "accuracy"
    released_utility = "accuracy"
    selection = ("f1_micro", "max")
    utilities = {"accuracy": label_accuracy, "likelihood": label_log_likelihood}

    def __init__(self, labels: int) -> None:
        self.outputs = self.values = labels

    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the sum of the binary cross-entropies, and the number of labels of all samples."""
        nll = F.binary_cross_entropy_with_logits(logits, batch.target.to(logits), reduction="none").double()
        return torch.stack([(nll * per_sample(batch, nll)).sum(), batch.sample_weights().sum() * self.outputs])

    def combine(self, sums: Tensor) -> Tensor:
        """Returns the mean binary cross-entropy."""
        return sums[0] / sums[1]

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns sigmoid(logits) - target."""
        delta = logits.sigmoid() - batch.target.to(logits)
        return (delta * per_sample(batch, delta))[None]

    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns 1 / number of labels of all samples."""
        return (1 / sums[1])[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of micro and macro F1, and of the share of samples of which all labels are right."""
        return MultiLabelMetrics(self.outputs, device)
