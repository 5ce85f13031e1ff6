"""Regression of a scalar with the mean absolute error (CMU-MOSI)."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import Targets, Task, per_sample
from cggm_ray.tasks.mean import MeanTask, MeanUtility
from cggm_ray.tasks.metrics import Metrics, RegressionMetrics, SentimentMetrics
from cggm_ray.tasks.settings import LossConfig


def _minus_absolute_error(logits: Tensor, batch: Batch) -> Tensor:
    return -(logits - batch.target.reshape_as(logits)).abs().double().mean(1)


def _same_sign(logits: Tensor, batch: Batch) -> Tensor:
    return ((logits > 0) == (batch.target.reshape_as(logits) > 0)).double().mean(1)


minus_mean_absolute_error = MeanUtility(_minus_absolute_error)
"""The utility `mae`."""
sign_accuracy = MeanUtility(_same_sign)
"""The utility `sign`: the share of samples with the right sign, zero counted as negative (the released code)."""


class Regression(MeanTask):
    """L1 regression.

    Args:
        outputs: values per sample.
        sentiment: report the metrics of CMU-MOSI on top of MAE and correlation.
        location: mean of the training targets, [outputs]; None where the loss is in the units of the target.
        unit: standard deviation of the training targets, [outputs], or None. With it the loss is in standard deviations, and
            heads are scaled (`models.outputs`). Metrics stay in the units of the target.
    """

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

    def of_samples(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the absolute error of every sample, added up over its values, and the number of them."""
        error = (logits - batch.target.reshape_as(logits)).abs().double()
        if self.unit is not None:
            error = error / self.unit.to(error)
        weight = batch.sample_weights()
        return torch.stack([error.reshape(len(error), -1).sum(1) * weight, weight * self.outputs], 1)

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns sign(prediction - target), divided by the unit of the loss."""
        delta = torch.sign(logits - batch.target.reshape_as(logits)).to(logits.dtype)
        if self.unit is not None:
            delta = delta / self.unit.to(delta)
        return (delta * per_sample(batch, delta))[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of MAE and correlation, and of the sentiment metrics if `sentiment` is set."""
        return SentimentMetrics(device) if self.sentiment else RegressionMetrics(device)
