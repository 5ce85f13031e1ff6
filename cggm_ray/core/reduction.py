"""Sums over workers, with the gradient of one worker's share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


Reduce = Callable[[Tensor], Tensor]
"""Sums a detached vector over all workers. All that a strategy knows of distribution."""


def alone(sums: Tensor) -> Tensor:
    """The reduce of a single worker: nothing to add."""
    return sums


def all_reduce_with_local_gradient(local: Tensor, reduce: Reduce) -> Tensor:
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
    if reduce is alone:
        return local
    one = torch.ones(1, dtype=local.dtype, device=local.device)
    total = reduce(torch.cat([local.detach(), one]))
    return Totals(total[:-1], total[-1]).with_gradient_of(local)


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
