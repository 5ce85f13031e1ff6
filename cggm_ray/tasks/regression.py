"""Regression of a scalar with the mean absolute error (CMU-MOSI)."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.tasks.base import Task, per_sample, sample_weight
from cggm_ray.tasks.metrics import Metrics, RegressionMetrics, SentimentMetrics


def minus_mean_absolute_error(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the utility `mae`: minus the mean absolute error."""
    error = (logits - target.reshape_as(logits)).abs().double().mean(1)
    return torch.stack([-(weight * error).sum(), weight.sum()])


def sign_accuracy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the utility `sign`: the share of samples with the right sign, zero counted as negative (the released code)."""
    same = ((logits > 0) == (target.reshape_as(logits) > 0)).double().mean(1)
    return torch.stack([(weight * same).sum(), weight.sum()])


class Regression(Task):
    """L1 regression.

    Args:
        outputs: values per sample.
        sentiment: report the metrics of CMU-MOSI on top of MAE and correlation.
    """

    n_sums = 2
    default_utility = "mae"
    released_utility = "sign"
    selection = ("mae", "min")
    utilities = {"mae": minus_mean_absolute_error, "sign": sign_accuracy}

    def __init__(self, outputs: int = 1, *, sentiment: bool = False) -> None:
        self.outputs = outputs
        self.sentiment = sentiment

    def sums(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the sum of absolute errors and the number of values."""
        w = sample_weight(logits, weight)
        error = (logits - target.reshape_as(logits)).abs().double()
        return torch.stack([(error * per_sample(w, error)).sum(), w.sum() * self.outputs])

    def combine(self, sums: Tensor) -> Tensor:
        """Returns the mean absolute error."""
        return sums[0] / sums[1]

    def residuals(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns sign(prediction - target)."""
        delta = torch.sign(logits - target.reshape_as(logits)).to(logits.dtype)
        return (delta * per_sample(sample_weight(logits, weight), delta))[None]

    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns 1 / number of values."""
        return (1 / sums[1])[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of MAE and correlation, and of the sentiment metrics if `sentiment` is set."""
        return SentimentMetrics(device) if self.sentiment else RegressionMetrics(device)
