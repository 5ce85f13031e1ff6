"""Metrics as sums.

Every metric here is computed from sums over samples, so that the sums of several batches, or of several workers, can be
added before the metric is formed: the result does not depend on how the samples were split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, check_takes_batch
from cggm_ray.core.errors import DataError


class Metrics(ABC):
    """Additive state of a group of metrics.

    `sums` is a float64 vector. Add the vectors of all workers, then call `compute` on the result.
    """

    sums: Tensor

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_takes_batch(cls.__name__, {name: vars(cls)[name] for name in ("update",) if name in vars(cls)})

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)

    @abstractmethod
    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds the predictions [N, C, ...] of a batch. Its `sample_weights` say which samples count."""

    @abstractmethod
    def compute(self, sums: Tensor) -> dict[str, float]:
        """Forms the metrics from the added sums."""


def confusion_counts(truth: Tensor, predicted: Tensor, classes: int, weight: Tensor | None = None) -> Tensor:
    """Returns the confusion matrix, flattened row by row: counts [classes * classes] with the truth as the row."""
    cells = truth.long() * classes + predicted.long()
    counts = torch.zeros(classes * classes, dtype=torch.float64, device=truth.device)
    ones = torch.ones_like(cells, dtype=torch.float64) if weight is None else weight.double()
    return counts.index_add_(0, cells, ones)


def accuracy_of(confusion: Tensor) -> float:
    """Returns the share of samples on the diagonal of a confusion matrix [classes, classes]."""
    return float(confusion.diagonal().sum() / confusion.sum())


def weighted_f1(confusion: Tensor) -> float:
    """Returns the mean of the F1 of all classes, weighted by their true samples (sklearn: average='weighted')."""
    truth, predicted, hit = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    f1 = torch.where(truth + predicted > 0, 2 * hit / (truth + predicted).clamp(min=1), 0.0)
    return float((f1 * truth).sum() / truth.sum())


class RegressionMetrics(Metrics):
    """MAE and Pearson's r of a scalar target."""

    def __init__(self, device: torch.device | str = "cpu", extra: int = 0) -> None:
        super().__init__(7 + extra, device)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch of predictions [N, 1] or [N] and targets with as many values."""
        p, y, w = flat(logits, batch)
        self.sums[:7] += torch.stack([w.sum(), *(torch.sum(w * v) for v in ((p - y).abs(), p, y, p * p, y * y, p * y))])

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns `mae` and `corr`; `corr` is NaN if predictions or targets are constant."""
        n, error, p, y, pp, yy, py = sums[:7].tolist()
        covariance, variance = py - p * y / n, (pp - p * p / n) * (yy - y * y / n)
        return {"mae": error / n, "corr": covariance / variance**0.5 if variance > 1e-24 * n * n else float("nan")}


SENTIMENT_RANGE = 3
"""Acc-7 clips sentiments to plus and minus this value."""


class SentimentMetrics(RegressionMetrics):
    """The metrics of CMU-MOSI: a sentiment in [-3, 3].

    Acc-7 and Acc-5 clip to [-3, 3] and [-2, 2] and round half to even. Acc-2 and F1 come in the field's two conventions:
    `nonneg` puts 0 with the positives and counts all samples, `nozero` leaves out samples whose truth is 0.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device, extra=2 + 4 + 4)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch of predictions [N, 1] or [N] and targets with as many values."""
        super().update(logits, batch)
        p, y, w = flat(logits, batch)
        same = [(p.clamp(-k, k).round() == y.clamp(-k, k).round()) * w for k in (SENTIMENT_RANGE, 2)]
        self.sums[7:9] += torch.stack([s.sum() for s in same])
        self.sums[9:13] += confusion_counts(y >= 0, p >= 0, 2, w)
        self.sums[13:17] += confusion_counts(y > 0, p > 0, 2, w * (y != 0))

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns mae, corr, acc7, acc5, acc2_nonneg, f1_nonneg, acc2_nozero and f1_nozero."""
        n = float(sums[0])
        nonneg, nozero = sums[9:13].reshape(2, 2), sums[13:17].reshape(2, 2)
        return super().compute(sums) | {
            "acc7": float(sums[7]) / n,
            "acc5": float(sums[8]) / n,
            "acc2_nonneg": accuracy_of(nonneg),
            "f1_nonneg": weighted_f1(nonneg),
            "acc2_nozero": accuracy_of(nozero),
            "f1_nozero": weighted_f1(nozero),
        }


class ClassificationMetrics(Metrics):
    """Accuracy, unweighted accuracy (mean recall over classes) and weighted F1."""

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        super().__init__(classes * classes, device)
        self.classes = classes

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch of logits [N, classes] and class numbers [N]; ties go to the lowest class."""
        self.sums += confusion_counts(batch.target, logits.argmax(1), self.classes, batch.sample_weights())

    def confusion(self, sums: Tensor) -> Tensor:
        """Returns the confusion matrix [classes, classes], with the truth as rows."""
        return sums.reshape(self.classes, self.classes)

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns accuracy, unweighted_accuracy and f1."""
        matrix = self.confusion(sums)
        truth = matrix.sum(1)
        recall = matrix.diagonal()[truth > 0] / truth[truth > 0]
        return {
            "accuracy": accuracy_of(matrix),
            "unweighted_accuracy": float(recall.mean()),
            "f1": weighted_f1(matrix),
        }


class MultiLabelMetrics(Metrics):
    """Micro and macro F1 of labels that apply where their logit is above 0, and the share of samples that are right as a whole.

    Args:
        labels: L.
        device: of the sums.
    """

    def __init__(self, labels: int, device: torch.device | str = "cpu") -> None:
        super().__init__(2 + 3 * labels, device)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch of logits [N, L] and targets [N, L]."""
        predicted, truth, w = logits > 0, batch.target > 0.5, batch.sample_weights()
        counts = [w @ part.to(w) for part in (predicted & truth, predicted, truth)]
        exact = (w * (predicted == truth).all(1)).sum()
        self.sums += torch.cat([w.sum()[None], exact[None], *counts])

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns f1_micro, f1_macro and exact_match; the F1 of a label that neither truth nor prediction has is 0."""
        hit, predicted, truth = sums[2:].reshape(3, -1)
        f1 = 2 * hit / (predicted + truth).clamp(min=1)
        return {
            "f1_micro": float(2 * hit.sum() / (predicted.sum() + truth.sum()).clamp(min=1)),
            "f1_macro": float(f1.mean()),
            "exact_match": float(sums[1] / sums[0]),
        }


TUMOUR_REGIONS: dict[str, tuple[int, ...]] = {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}
"""BraTS regions by class number: enhancing tumour, tumour core, whole tumour."""
CAVITY_REGIONS = TUMOUR_REGIONS | {"rc": (4,)}
"""BraTS regions of 2024, with the resection cavity, which is no part of the tumour."""


Regions = Mapping[str, tuple[int, ...]]
"""Names of regions, and their classes."""


def region_dice(labels: Tensor, target: Tensor, smooth: float, regions: Regions = TUMOUR_REGIONS) -> Tensor:
    """Returns the Dice per sample and tumour region, 2 (I + smooth) / (A + B + 2 smooth).

    Args:
        labels: predicted classes [N, ...].
        target: true classes [N, ...].
        smooth: keeps the ratio defined, and equal to 1, where both are empty.
        regions: that are scored, R of them.

    Returns:
        [N, R] in the order of the regions.
    """
    both, predicted, true = region_counts(labels, target, regions).unbind(2)
    return 2 * (both + smooth) / (predicted + true + 2 * smooth)


def region_counts(labels: Tensor, target: Tensor, regions: Regions = TUMOUR_REGIONS) -> Tensor:
    """Returns the pixels per sample and region that are (in both, predicted, true), float64 [N, R, 3].

    Args:
        labels: predicted classes [N, ...].
        target: true classes [N, ...].
        regions: that are scored.
    """
    counts = []
    for classes in regions.values():
        # By comparison: a list of classes would have to be copied to the device.
        a, b = (reduce(or_, [maps == label for label in classes]).flatten(1) for maps in (labels, target))
        counts.append(torch.stack([(a & b).sum(1), a.sum(1), b.sum(1)], 1))
    return torch.stack(counts, 1).double()


class DiceMetrics(Metrics):
    """Dice of the regions, averaged over samples (slices or volumes), smooth 0.001 as in the released code."""

    def __init__(self, device: torch.device | str = "cpu", regions: Regions = TUMOUR_REGIONS) -> None:
        super().__init__(1 + len(regions), device)
        self.regions = regions

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds logits [N, C, ...] and class maps [N, ...]."""
        dice = region_dice(logits.argmax(1), batch.target, smooth=1e-3, regions=self.regions)
        w = batch.sample_weights()
        self.sums += torch.cat([w.sum()[None], w @ dice])

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns dice_et, dice_tc, dice_wt, those of further regions, and dice_mean."""
        return _named_dice(sums[1:] / sums[0], self.regions)


class VolumeDiceMetrics(Metrics):
    """Dice in three dimensions: of every volume from all of its slices, averaged over volumes.

    A region that neither truth nor prediction has counts as 1, as in the BraTS challenge. Volumes without a slice of weight
    above 0 do not count.

    Args:
        volumes: in the split.
        device: of the sums.
        regions: that are scored, R of them.
    """

    def __init__(self, volumes: int, device: torch.device | str = "cpu", regions: Regions = TUMOUR_REGIONS) -> None:
        # Three counts of every region, and the slices that count.
        super().__init__(volumes * (len(regions) * 3 + 1), device)
        self.volumes, self.regions = volumes, regions

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds slices: logits [N, C, H, W], class maps [N, H, W], the volume of each slice [N]."""
        counts = region_counts(logits.argmax(1), batch.target, self.regions).flatten(1)
        counts = torch.cat([counts, torch.ones_like(counts[:, :1])], 1) * batch.sample_weights()[:, None]
        self.sums.reshape(self.volumes, -1).index_add_(0, _volume(batch), counts)

    def per_volume(self, sums: Tensor) -> Tensor:
        """Returns the Dice [volumes, R] in the order of the regions."""
        both, predicted, true = sums.reshape(self.volumes, -1)[:, :-1].unflatten(1, (-1, 3)).unbind(2)
        size = predicted + true
        return torch.where(size > 0, 2 * both / size.clamp(min=1), 1.0)

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns dice_et, dice_tc, dice_wt, those of further regions, and dice_mean."""
        counted = sums.reshape(self.volumes, -1)[:, -1] > 0
        return _named_dice(self.per_volume(sums)[counted].mean(0), self.regions)


class SliceDiceMetrics(Metrics):
    """Dice in two dimensions: of every slice, smooth 0.001, averaged over the slices of a volume, then over volumes.

    Over the slices with tumour this is what the released code estimates from one random slice of each volume.

    Args:
        volumes: in the split; those without a slice do not count.
        device: of the sums.
        regions: that are scored.
    """

    def __init__(self, volumes: int, device: torch.device | str = "cpu", regions: Regions = TUMOUR_REGIONS) -> None:
        super().__init__(volumes * (1 + len(regions)), device)
        self.volumes, self.regions = volumes, regions

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds slices: logits [N, C, H, W], class maps [N, H, W], the volume of each slice [N]."""
        dice = region_dice(logits.argmax(1), batch.target, smooth=1e-3, regions=self.regions)
        values = torch.cat([torch.ones_like(dice[:, :1]), dice], 1) * batch.sample_weights()[:, None]
        self.sums.reshape(self.volumes, -1).index_add_(0, _volume(batch), values)

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Returns dice_et, dice_tc, dice_wt, those of further regions, and dice_mean."""
        values = sums.reshape(self.volumes, -1)
        values = values[values[:, 0] > 0]
        return _named_dice((values[:, 1:] / values[:, :1]).mean(0), self.regions)


def _named_dice(dice: Tensor, regions: Regions) -> dict[str, float]:
    named = {f"dice_{name}": float(value) for name, value in zip(regions, dice, strict=True)}
    return named | {"dice_mean": sum(named.values()) / len(named)}


def _volume(batch: Batch) -> Tensor:
    if batch.group is None:
        raise DataError("slices without the number of their volume; expected Batch.group")
    return batch.group


def flat(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns predictions, targets and weights of all values, float64, 1-D.

    Raises:
        DataError: predictions and targets differ in number.
    """
    p, y = logits.detach().reshape(-1).double(), batch.target.reshape(-1).double()
    if len(p) != len(y):
        raise DataError(f"{len(p)} predictions for {len(y)} targets")
    values = batch.target[0].numel() if len(batch.target) else 1
    return p, y, batch.sample_weights().repeat_interleave(values)
