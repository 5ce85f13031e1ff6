"""Chooses the samples of every worker and step, as a function of (seed, epoch) only.

The k-th global batch is the k-th slice of a seeded permutation, and each worker takes its part of every slice. So one, two
or four workers, and a run that was resumed, process the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.core.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One worker's part of a global batch.

    Attributes:
        index: rows of the split, int64 [n], n >= 1.
        weight: zeros [1] where the worker has no part in the batch and `index` only fills the place; None otherwise.
        samples: size of the global batch.
    """

    index: Tensor
    weight: Tensor | None
    samples: int


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """Returns the shuffled order of a split in one epoch, int64 [samples]."""
    return torch.randperm(samples, generator=generator(seed, "order", epoch))


def slices(order: Tensor, batch_size: int, rank: int, world_size: int) -> Iterator[Slice]:
    """Yields a worker's part of every global batch.

    Parts differ by at most one sample. Where the last batch has fewer samples than there are workers, those left over get
    one sample of weight 0, so that every worker takes the same number of steps.
    """
    # Nothing is left of an epoch that was interrupted after its last step; `split` would make an empty batch of it.
    for batch in order.split(batch_size) if len(order) else ():
        part = batch.tensor_split(world_size)[rank]
        if len(part):
            yield Slice(index=part, weight=None, samples=len(batch))
        else:
            yield Slice(index=batch[:1], weight=torch.zeros(1), samples=len(batch))
