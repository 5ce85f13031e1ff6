"""Sums over workers, with the gradient of one worker's share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a detached vector over all workers. All that a strategy knows of distribution."""


class Reduction:
    """A `Reduce` that knows whether there is anything to add.

    Args:
        all_reduce: sums a detached vector over all workers and leaves its argument as it is; None for a single worker.
        world_size: number of workers; None where a function of the caller's own does not say it.

    Raises:
        ValueError: several workers without a function that sums over them.
    """

    def __init__(self, all_reduce: Reduce | None = None, world_size: int | None = 1) -> None:
        if all_reduce is None and world_size != 1:
            raise ValueError(
                f"world_size: found {world_size} without a function that sums over the workers; expected 1"
            )
        self._all_reduce = all_reduce
        self.world_size = world_size

    @property
    def is_single(self) -> bool:
        """Whether a sum over workers is the worker's own. A function of the caller's own is called in any case."""
        return self.world_size == 1

    def __call__(self, sums: Tensor) -> Tensor:
        """The vector, summed over all workers."""
        return sums if self._all_reduce is None or self.is_single else self._all_reduce(sums)


SINGLE_WORKER = Reduction()
"""The reduction of a single worker: it returns its argument."""


def as_reduction(reduce: Reduce) -> Reduction:
    """A function of the caller's own as a `Reduction`, whose world size is not known; a `Reduction` as it is."""
    return reduce if isinstance(reduce, Reduction) else Reduction(reduce, world_size=None)


def all_reduce_with_local_gradient(local: Tensor, reduce: Reduction) -> Tensor:
    """Sums over workers whose value is global and whose gradient is local.

    The gradient is multiplied by the number of workers, because DistributedDataParallel divides by it: after its
    averaging, a loss formed from the result has exactly the gradient of the loss of the global batch, also when the
    workers hold different numbers of samples.

    Args:
        local: this worker's sums, 1-D.
        reduce: sums a vector over workers.

    Returns:
        The sums over all workers.
    """
    if reduce.is_single:
        return local
    return global_sums(local.detach(), reduce).with_gradient_of(local)


class Totals(NamedTuple):
    """Sums of the global batch.

    Attributes:
        sums: 1-D, without gradient.
        shares: by how many the gradients of the shares are divided when they are put together.
    """

    sums: Tensor
    shares: Tensor | float

    def with_gradient_of(self, local: Tensor) -> Tensor:
        """The sums, with the gradient of one share of them."""
        return self.sums + self.shares * (local - local.detach())


def global_sums(local: Tensor, reduce: Reduction, parts: int = 1) -> Totals:
    """The sums over all workers, for batches that every worker takes in the same number of parts.

    Args:
        local: sums over this worker's parts, 1-D, detached.
        reduce: sums a vector over workers.
        parts: of every worker's batch.
    """
    if reduce.is_single:
        return Totals(local, float(parts))
    # The number of workers is summed too, because a function of the caller's own does not say it.
    total = reduce(torch.cat([local, local.new_ones(1)]))
    return Totals(total[:-1], total[-1] * parts)
