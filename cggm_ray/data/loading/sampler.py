"""Chooses the samples of every worker and step, as a function of (seed, epoch) only.

The k-th global batch is the k-th slice of a seeded permutation, and each worker takes its part of every slice. So one, two
or four workers, and a run that was resumed, process the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, Order
from cggm_ray.core.seeding import generator

STRETCH = 2**16
"""Samples of an order that are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One worker's part of a global batch.

    Attributes:
        index: rows of the split, int64 [n], n >= 1.
        weight: zeros [1] where the worker has no part in the batch and `index` only fills the place; None otherwise.
        samples: size of the global batch.
        largest: samples of the worker that has most of it; the others have at most one less.
        given: see `Batch.given`; on the host.
    """

    index: Tensor
    weight: Tensor | None
    samples: int
    largest: int
    given: Mapping[str, Tensor] | None = None

    @classmethod
    def whole(cls, index: Tensor) -> Slice:
        """Returns the batch of a single worker."""
        return cls(index=index, weight=None, samples=len(index), largest=len(index))


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """Returns the shuffled order of a split in one epoch, int64 [samples]."""
    return torch.randperm(samples, generator=generator(seed, "order", epoch))


class WindowOrder:
    """The shuffled order of a split in one epoch, in which near samples are of few shards.

    The shards are permuted, and the samples within windows of that many shards. Every stretch is computed by itself, so nothing
    here is as long as the split. A shard has the samples that follow those of the shard before it.

    Args:
        shard_rows: samples of every shard, int64 [shards].
        window: shards whose samples are shuffled together.
        seed: of the run.
        epoch: or the number of the pass.
    """

    def __init__(self, shard_rows: Tensor, window: int, seed: int, epoch: int) -> None:
        self._window, self._seed, self._epoch = window, seed, epoch
        self._shards = torch.randperm(len(shard_rows), generator=generator(seed, "shards", epoch))
        self._rows = shard_rows[self._shards]
        self._first = (shard_rows.cumsum(0) - shard_rows)[self._shards]
        # Where every window begins, and the end.
        sizes = torch.stack([part.sum() for part in self._rows.split(window)])
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, places: slice) -> Tensor:
        """Returns the samples at some places of the order, int64."""
        start, stop, _ = places.indices(len(self))
        if start >= stop:
            return torch.zeros(0, dtype=torch.int64)
        first, last = torch.searchsorted(self._starts, torch.tensor([start, stop - 1]), right=True) - 1
        parts = [self._samples(number) for number in range(int(first), int(last) + 1)]
        begin = int(self._starts[first])
        return torch.cat(parts)[start - begin : stop - begin]

    def _samples(self, number: int) -> Tensor:
        """Returns the samples of one window in their order."""
        members = slice(number * self._window, (number + 1) * self._window)
        pairs = zip(self._first[members].tolist(), self._rows[members].tolist(), strict=True)
        samples = torch.cat([torch.arange(first, first + rows) for first, rows in pairs])
        return samples[torch.randperm(len(samples), generator=generator(self._seed, "window", self._epoch, number))]


class Passes:
    """Orders one after the other, as one.

    Args:
        parts: the orders.
        samples: of them that count; the rest is left out.
    """

    def __init__(self, parts: Sequence[Order], samples: int) -> None:
        self._parts = parts
        self._samples = min(samples, sum(map(len, parts)))

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, places: slice) -> Tensor:
        """Returns the samples at some places, int64."""
        start, stop, _ = places.indices(self._samples)
        found, begun = [torch.zeros(0, dtype=torch.int64)], 0
        for part in self._parts:
            here = slice(max(0, start - begun), max(0, min(len(part), stop - begun)))
            if here.start < here.stop:
                found.append(part[here])
            begun += len(part)
        return torch.cat(found)


class InOrder:
    """The rows of a split as they are.

    Args:
        samples: of the split.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, places: slice) -> Tensor:
        """Returns the samples at some places, int64."""
        start, stop, _ = places.indices(self._samples)
        return torch.arange(start, max(start, stop))


@dataclass(frozen=True)
class Plan:
    """A worker's part of every global batch of an order, computed some batches at a time whenever it is iterated over.

    Attributes:
        order: rows of the split.
        batch_size: of the global batch.
        rank: of the worker.
        world_size: number of workers.
        given: name to [samples, ...], what the samples bring beside their inputs.
        start: samples of the order that are left out, which were seen before.
    """

    order: Order
    batch_size: int
    rank: int
    world_size: int
    given: Mapping[str, Tensor] | None = None
    start: int = 0

    def __iter__(self) -> Iterator[Slice]:
        stretch = max(1, STRETCH // self.batch_size) * self.batch_size
        for start in range(self.start, len(self.order), stretch):
            here = slice(start, min(start + stretch, len(self.order)))
            given = {name: values[here] for name, values in (self.given or {}).items()}
            yield from slices(self.order[here], self.batch_size, self.rank, self.world_size, given)


def slices(
    order: Tensor, batch_size: int, rank: int, world_size: int, given: Mapping[str, Tensor] | None = None
) -> Iterator[Slice]:
    """Yields a worker's part of every global batch.

    Parts differ by at most one sample. Where the last batch has fewer samples than there are workers, those left over get
    a filler, one sample of weight 0 (`Batch.is_filler`), so that every worker takes the same number of steps.

    Args:
        order: rows of the split, int64 [samples].
        batch_size: of the global batch.
        rank: of the worker.
        world_size: number of workers.
        given: name to [samples, ...], what the samples bring beside their inputs; see `EpochPlan`.
    """
    places = torch.arange(len(order))
    # Nothing is left of an epoch that was interrupted after its last step; `split` would make an empty batch of it.
    for batch in places.split(batch_size) if len(order) else ():
        parts = batch.tensor_split(world_size)
        mine, weight = (parts[rank], None) if len(parts[rank]) else (batch[:1], torch.zeros(1))
        yield Slice(
            index=order[mine],
            weight=weight,
            samples=len(batch),
            largest=len(parts[0]),
            given={name: values[mine] for name, values in given.items()} if given else None,
        )


def with_given(batch: Batch, part: Slice) -> Batch:
    """Returns the batch of a slice with what its samples were given, on the device of the batch."""
    if part.given is None:
        return batch
    given = {name: values.to(batch.target.device, non_blocking=True) for name, values in part.given.items()}
    return replace(batch, given=given)
