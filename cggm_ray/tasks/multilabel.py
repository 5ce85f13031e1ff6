"""Several labels of a sample, each of which applies or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import per_sample
from cggm_ray.tasks.mean import MeanTask, MeanUtility
from cggm_ray.tasks.metrics import Metrics, MultiLabelMetrics


def _share_right(logits: Tensor, batch: Batch) -> Tensor:
    return ((logits > 0) == (batch.target > 0.5)).double().mean(1)


def _log_likelihood(logits: Tensor, batch: Batch) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, batch.target.to(logits), reduction="none").double().mean(1)


label_accuracy = MeanUtility(_share_right)
"""The utility `accuracy`: the share of labels that are predicted right."""
label_log_likelihood = MeanUtility(_log_likelihood)
"""The utility `likelihood`: minus the mean binary cross-entropy."""


class MultiLabel(MeanTask):
    """Binary cross-entropy of every label, with the meaning of `torch.nn.BCEWithLogitsLoss`; a target is float [N, labels].

    Args:
        labels: C, at least two.
    """

    default_utility = "accuracy"
    released_utility = "accuracy"
    selection = ("f1_micro", "max")
    utilities = {"accuracy": label_accuracy, "likelihood": label_log_likelihood}

    def __init__(self, labels: int) -> None:
        self.outputs = self.values = labels

    def of_samples(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the binary cross-entropy of every sample, added up over its labels, and the number of them."""
        nll = F.binary_cross_entropy_with_logits(logits, batch.target.to(logits), reduction="none").double()
        weight = batch.sample_weights()
        return torch.stack([nll.sum(1) * weight, weight * self.outputs], 1)

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns sigmoid(logits) - target."""
        delta = logits.sigmoid() - batch.target.to(logits)
        return (delta * per_sample(batch, delta))[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of micro and macro F1, and of the share of samples of which all labels are right."""
        return MultiLabelMetrics(self.outputs, device)
