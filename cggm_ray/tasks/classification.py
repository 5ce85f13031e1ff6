"""Classification with cross-entropy (IEMOCAP, Food-101)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import Targets, Task, per_sample
from cggm_ray.tasks.mean import MeanTask, MeanUtility
from cggm_ray.tasks.metrics import ClassificationMetrics, Metrics
from cggm_ray.tasks.settings import BALANCED, LossConfig


def _hit(logits: Tensor, batch: Batch) -> Tensor:
    return (logits.argmax(1) == batch.target).double()


def _log_likelihood(logits: Tensor, batch: Batch) -> Tensor:
    return -F.cross_entropy(logits, batch.target, reduction="none").double()


accuracy = MeanUtility(_hit)
"""The utility `accuracy`: the share of samples whose largest logit is the true class."""
log_likelihood = MeanUtility(_log_likelihood)
"""The utility `likelihood`: minus the mean cross-entropy."""


class Classification(MeanTask):
    """Cross-entropy over `classes` exclusive classes, with the meaning of `torch.nn.CrossEntropyLoss`.

    Args:
        classes: C.
        smoothing: share of the label that is spread over all classes.
        class_weight: [C]; None for equal weights.
    """

    default_utility = "accuracy"
    released_utility = "accuracy"
    selection = ("accuracy", "max")
    utilities = {"accuracy": accuracy, "likelihood": log_likelihood}

    def __init__(self, classes: int, smoothing: float = 0.0, class_weight: Tensor | None = None) -> None:
        self.outputs, self.smoothing, self.class_weight = classes, smoothing, class_weight

    def with_loss(self, settings: LossConfig, targets: Targets | None = None) -> Task:
        """Returns the task with label smoothing, and with class weights if the settings balance classes.

        A weight is samples / (C * samples of the class); a class without a training sample has the weight 0.
        """
        weight = None
        if targets is not None and settings.class_weights == BALANCED:
            counts = targets.counts
            seen = counts > 0
            weight = torch.where(seen, counts.sum() / (seen.sum() * counts.clamp(min=1)), 0.0)
        return Classification(self.outputs, settings.label_smoothing, weight)

    def of_samples(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the cross-entropy of every sample, and 1 or the weight of its class."""
        w, target = batch.sample_weights(), batch.target
        by_class = None if self.class_weight is None else self.class_weight.to(logits)
        nll = F.cross_entropy(logits, target, by_class, reduction="none", label_smoothing=self.smoothing).double()
        return torch.stack([nll * w, w if by_class is None else w * by_class[target].double()], 1)

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns softmax(logits) - onehot(target); with smoothing and class weights, a the share of every class in the loss,
        sum(a) softmax(logits) - a.
        """
        wanted = F.one_hot(batch.target, self.outputs).to(logits.dtype)
        if self.smoothing or self.class_weight is not None:
            by_class = torch.ones_like(logits[0]) if self.class_weight is None else self.class_weight.to(logits)
            # torch weighs the label's part by the class of the label, and the spread part by every class.
            wanted = by_class * ((1 - self.smoothing) * wanted + self.smoothing / self.outputs)
            delta = wanted.sum(1, keepdim=True) * logits.softmax(1) - wanted
        else:
            delta = logits.softmax(1) - wanted
        return (delta * per_sample(batch, delta))[None]

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of accuracy, unweighted accuracy and weighted F1."""
        return ClassificationMetrics(self.outputs, device)
