"""Tasks whose loss is a weighted mean over samples, and utilities that are one.

What such a task adds up is known of every sample by itself. So the predictions of several heads can be added up together, which
on a GPU takes a few kernels for all of them and not for each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.base import Task, Utility

OfSamples = Callable[[Tensor, Batch], Tensor]
"""A function of logits and batch that returns what every sample adds to sums, float64 [N, K]."""


class MeanTask(Task):
    """A task with two sums, that of the weighted losses and that of the weights, whose ratio is the loss."""

    n_sums = 2

    @abstractmethod
    def of_samples(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns what every sample adds to the two sums, float64 [N, 2], differentiable in the logits.

        Args:
            logits: [N, C].
            batch: see `sums`; it may come without inputs, and have the samples several times, for the guides of several
                modalities.
        """

    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the sum of the weighted losses and that of the weights."""
        return self.of_samples(logits, batch).sum(0)

    def combine(self, sums: Tensor) -> Tensor:
        """Returns the weighted mean of the losses."""
        losses, weights = sums.unbind()
        return losses / weights

    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns 1 / sum of the weights."""
        return (1 / sums[1])[None]


class MeanUtility:
    """A utility that is the weighted mean of a value of every sample.

    Args:
        value: of logits and batch, float64 [N].
    """

    def __init__(self, value: Callable[[Tensor, Batch], Tensor]) -> None:
        self._value = value

    def of_samples(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns what every sample adds to numerator and count, float64 [N, 2]."""
        weight = batch.sample_weights()
        return torch.stack([weight * self._value(logits, batch), weight], 1)

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns numerator and count."""
        return self.of_samples(logits, batch).sum(0)


def of_samples(of: Task | Utility) -> OfSamples | None:
    """Returns the function `of_samples` of a task or a utility; None where its sums are not made of that."""
    if isinstance(of, MeanUtility):
        return of.of_samples
    # A subclass that overrides `sums` may add up something else than `of_samples`.
    return of.of_samples if isinstance(of, MeanTask) and type(of).sums is MeanTask.sums else None


def combine_each(task: Task, sums_MK: Tensor) -> Tensor:
    """Returns the losses [M] of several heads from their sums."""
    if type(task).combine is MeanTask.combine:
        return task.combine(sums_MK.T)
    return torch.stack([task.combine(sums) for sums in sums_MK])


def slopes_of_each(task: Task, sums_MK: Tensor) -> Tensor:
    """Returns `Task.sum_slopes` of several heads, [M, J]."""
    if type(task).sum_slopes is MeanTask.sum_slopes:
        return task.sum_slopes(sums_MK.T).T
    return torch.stack([task.sum_slopes(sums) for sums in sums_MK])
