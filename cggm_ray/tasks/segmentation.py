"""Segmentation of tumours with weighted cross-entropy and pooled Dice (BraTS)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import Task, per_sample
from cggm_ray.tasks.metrics import (
    TUMOUR_REGIONS,
    DiceMetrics,
    Metrics,
    Regions,
    SliceDiceMetrics,
    VolumeDiceMetrics,
    region_dice,
)

CLASS_WEIGHTS = (0.2, 0.3, 0.25, 0.25)
"""Class weights of the cross-entropy, as released: background, necrotic core, oedema, enhancing tumour."""


def mean_dice(logits: Tensor, batch: Batch, regions: Regions = TUMOUR_REGIONS) -> Tensor:
    """Returns the utility `dice`: the mean Dice of the regions per image, smooth 0.001."""
    weight = batch.sample_weights()
    dice = region_dice(logits.argmax(1), batch.target, smooth=1e-3, regions=regions).mean(1)
    return torch.stack([(weight * dice).sum(), weight.sum()])


class Segmentation(Task):
    """0.5 CE + 0.5 (1 - Dice), the loss of the released code.

    Dice is 2 I / (P + Y + smooth), pooled over the batch and all classes but 0: I sums softmax * onehot, P sums softmax and Y
    counts true pixels. CE is the class-weighted mean.

    Args:
        class_weights: weights of the cross-entropy.
        alpha: share of the Dice part.
        smooth: added to the Dice denominator.
        by_slice: volumes are scored slice by slice, as the released code does, instead of in three dimensions.
        regions: that the metrics score.
    """

    n_sums = 5
    dense = True
    default_utility = "dice"
    released_utility = "dice"
    selection = ("dice_mean", "max")

    def __init__(
        self,
        class_weights: tuple[float, ...] = CLASS_WEIGHTS,
        *,
        alpha: float = 0.5,
        smooth: float = 0.01,
        by_slice: bool = False,
        regions: Regions = TUMOUR_REGIONS,
    ) -> None:
        self.outputs = len(class_weights)
        self.class_weights = class_weights
        self.alpha = alpha
        self.smooth = smooth
        self.by_slice = by_slice
        self.regions = regions
        self.utilities = {"dice": partial(mean_dice, regions=regions)}

    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns [weighted CE, sum of CE weights, I, P, Y]."""
        w, target = batch.sample_weights(), batch.target
        ce_weight = self._class_weights(target, logits.dtype)
        ce = F.cross_entropy(logits, target, reduction="none") * ce_weight
        softmax = logits.softmax(1)
        of_truth = softmax.gather(1, target[:, None])[:, 0]
        tumour = (target > 0).to(logits.dtype)
        maps = (ce, ce_weight, of_truth * tumour, 1 - softmax[:, 0], tumour)
        return torch.stack([(m.flatten(1).sum(1).double() * w).sum() for m in maps])

    def _class_weights(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of every pixel's class. By comparison: an index into a list would copy the list to the device."""
        weights = torch.zeros(target.shape, dtype=dtype, device=target.device)
        for label, weight in enumerate(self.class_weights):
            weights.masked_fill_(target == label, weight)
        return weights

    def combine(self, sums: Tensor) -> Tensor:
        """Returns (1 - alpha) CE + alpha (1 - Dice)."""
        ce, ce_weight, inter, predicted, true = sums
        dice = 2 * inter / (predicted + true + self.smooth)
        return (1 - self.alpha) * ce / ce_weight + self.alpha * (1 - dice)

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the slopes of the weighted CE, of I and of P in the logits, J = 3."""
        target = batch.target
        softmax = logits.softmax(1)
        onehot = F.one_hot(target, self.outputs).movedim(-1, 1).to(logits.dtype)
        ce_weight = self._class_weights(target, logits.dtype)[:, None]
        of_truth = softmax.gather(1, target[:, None]) * (target > 0)[:, None]
        background = torch.zeros_like(softmax)
        background[:, 0] = 1
        deltas = torch.stack(
            [
                ce_weight * (softmax - onehot),
                of_truth * (onehot - softmax),
                softmax[:, :1] * (softmax - background),
            ]
        )
        return deltas * per_sample(batch, softmax)

    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns d loss / d (CE sum, I, P)."""
        _, ce_weight, inter, predicted, true = sums
        union = predicted + true + self.smooth
        return torch.stack([(1 - self.alpha) / ce_weight, -2 * self.alpha / union, 2 * self.alpha * inter / union**2])

    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of the Dice of the regions and their mean: of volumes if the split has any, otherwise of
        images.
        """
        if groups is None:
            return DiceMetrics(device, self.regions)
        kind = SliceDiceMetrics if self.by_slice else VolumeDiceMetrics
        return kind(groups, device, self.regions)
