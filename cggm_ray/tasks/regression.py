"""Regression of a scalar with the mean absolute error (CMU-MOSI)."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import Targets, Task, per_sample
from cggm_ray.tasks.metrics import Metrics, RegressionMetrics, SentimentMetrics
from cggm_ray.tasks.settings import LossConfig


def minus_mean_absolute_error(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the utility `mae`: minus the mean absolute error."""
    weight = batch.sample_weights()
    error = (logits - batch.target.reshape_as(logits)).abs().double().mean(1)
    return torch.stack([-(weight * error).sum(), weight.sum()])


def sign_accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the utility `sign`: the share of samples with the right sign, zero counted as negative (the released code)."""
    weight = batch.sample_weights()
    same = ((logits > 0) == (batch.target.reshape_as(logits) > 0)).double().mean(1)
    return torch.stack([(weight * same).sum(), weight.sum()])


class Regression(Task):
    """L1 regression.

    Args:
        outputs: values per sample.
        sentiment: report the metrics of CMU-MOSI on top of MAE and correlation.
        location: mean of the training targets, [outputs]; None where the loss is in the units of the target.
        unit: standard deviation of the training targets, [outputs], or None. With it the loss is in standard deviations, and
            heads are scaled (`models.outputs`). Metrics stay in the units of the target.
    """

    n_sums = 2
    default_utility = "mae"
    released_utility = "sign"
    selection = ("mae", "min")
    utilities = {"mae": minus_mean_absolute_error, "sign": sign_accuracy}

    def __init__(
        self,
        outputs: int = 1,
        *,
        sentiment: bool = False,
        location: Tensor | None = None,
        unit: Tensor | None = None,
    ) -> None:
        self.outputs = outputs
        self.sentiment = sentiment
        self.location, self.unit = location, unit

    def with_loss(self, settings: LossConfig, targets: Targets | None = None) -> Task:
        """Returns the task with a loss in standard deviations of the training targets, if they are given."""
        if targets is None:
            return self
        return self.scaled(targets.mean, torch.where(targets.deviation > 0, targets.deviation, 1.0))

    def scaled(self, location: Tensor, unit: Tensor) -> Regression:
        """Returns the task for heads of that location and unit, [outputs] each."""
        return Regression(self.outputs, sentiment=self.sentiment, location=location, unit=unit)

    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the sum of absolute errors and the number of values."""
        error = (logits - batch.target.reshape_as(logits)).abs().double()
        if self.unit is not None:
            error = error / self.unit.to(error)
        return torch.stack([(error * per_sample(batch, error)).sum(), batch.sample_weights().sum() * self.outputs])

    def combine(self, sums: Tensor) -> Tensor:
        """Returns the mean absolute error."""
        return sums[0] / sums[1]

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns sign(prediction - target), divided by the unit of the loss."""
        delta = torch.sign(logits - batch.target.reshape_as(logits)).to(logits.dtype)
        if self.unit is not None:
            delta = delta / self.unit.to(delta)
        return (delta * per_sample(batch, delta))[None]

    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns 1 / number of values."""
        return (1 / sums[1])[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of MAE and correlation, and of the sentiment metrics if `sentiment` is set."""
        return SentimentMetrics(device) if self.sentiment else RegressionMetrics(device)
