"""Regression of a sentiment in [-1, 1] with the metrics of CH-SIMS (Yu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.metrics import Metrics, RegressionMetrics, accuracy_of, confusion_counts, flat, weighted_f1
from cggm_ray.tasks.regression import Regression

EDGES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
"""Number of classes to the values between them; each belongs to the class below it (MMSA)."""


class SimsMetrics(RegressionMetrics):
    """MAE, correlation, accuracy in 2, 3 and 5 classes, and the weighted F1 of two."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device, extra=sum(classes**2 for classes in EDGES))

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch of predictions [N, 1] or [N] and targets with as many values."""
        super().update(logits, batch)
        p, y, w = flat(logits, batch)
        start = 7
        for classes, edges in EDGES.items():
            bounds = torch.tensor(edges, device=p.device)
            found, truth = (torch.bucketize(v.float(), bounds) for v in (p, y))
            self.sums[start : start + classes**2] += confusion_counts(truth, found, classes, w)
            start += classes**2

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns mae, corr, acc2_sims, f1_sims, acc3_sims and acc5_sims."""
        parts = sums[7:].split([classes**2 for classes in EDGES])
        matrices = {classes: part.reshape(classes, classes) for classes, part in zip(EDGES, parts, strict=True)}
        accuracies = {f"acc{classes}_sims": accuracy_of(matrix) for classes, matrix in matrices.items()}
        return super().compute(sums) | accuracies | {"f1_sims": weighted_f1(matrices[2])}


class SimsRegression(Regression):
    """L1 regression that reports the metrics of CH-SIMS."""

    def scaled(self, location: Tensor, unit: Tensor) -> Regression:
        """Returns the task for heads of that location and unit, [outputs] each."""
        return SimsRegression(self.outputs, location=location, unit=unit)

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of MAE, correlation, accuracies and F1."""
        return SimsMetrics(device)
