"""The length of a run in optimizer steps, and its division into epochs.

A set of thousands of samples is trained for so many passes. A set of 30 samples needs as many optimizer steps as a larger one,
so its budget is a number of steps, and an epoch, after which the run is validated and saved, is several passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cggm_ray.core.batch import Order
from cggm_ray.core.errors import UsageError
from cggm_ray.data.loading.sampler import Passes, WindowOrder, epoch_order
from cggm_ray.engine.settings import TrainConfig

SMALLEST, USUAL, LARGEST = 32, 64, 256
"""Samples of a batch that is chosen by the size of the set."""
FEWEST_BATCHES, BATCHES_IN_A_PASS = 5, 32
"""Batches in a pass from which a batch is of the usual size, and from which it is larger. Passes of one or two large batches
were worse on small sets (docs/defaults.md)."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The optimizer steps of a run.

    Attributes:
        samples: of the training split.
        batch_size: samples of a step, over all workers.
        passes: over the training split in an epoch.
        total: steps of the whole run.
        scheduled: steps that the learning rate's schedule is made for; None for those of the run. A run that is trained
            for a share of its steps has more.
        window: shards whose samples are shuffled together; 0 for all.
        shard_rows: samples of every shard of the split, where there is a window.
    """

    samples: int
    batch_size: int
    passes: int
    total: int
    scheduled: int | None = None
    window: int = 0
    shard_rows: tuple[int, ...] = ()

    @property
    def steps_per_pass(self) -> int:
        """Steps of one pass over the training split; the last batch may be smaller."""
        return -(-self.samples // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.samples * self.passes // self.batch_size)

    @property
    def epochs(self) -> int:
        """Epochs of the run; the last one may be shorter."""
        return -(-self.total // self.steps)

    def order(self, seed: int, epoch: int, before: int) -> Order:
        """Returns the samples of an epoch in their order, as far as the run still has steps.

        Every pass has an order of its own, a function of the seed and the pass, and batches go on from one pass into the next.

        Args:
            seed: of the run.
            epoch: counted from 0.
            before: steps of the run before this epoch.

        Returns:
            [samples of the epoch].
        """
        first = epoch * self.passes
        passes = [self._pass(seed, number) for number in range(first, first + self.passes)]
        return Passes(passes, (self.total - before) * self.batch_size)

    def _pass(self, seed: int, number: int) -> Order:
        if not self.window:
            return epoch_order(self.samples, seed, number)
        return WindowOrder(torch.tensor(self.shard_rows), self.window, seed, number)


def with_window(budget: Budget, window: int, shard_rows: Sequence[int]) -> Budget:
    """Returns the budget with an order by windows of shards, or unchanged without a window.

    Args:
        budget: of the run.
        window: shards whose samples are shuffled together; 0 for all.
        shard_rows: rows of every shard of the training split.

    Raises:
        UsageError: the samples of the split are no rows of its shards.
    """
    if window and sum(shard_rows) != budget.samples:
        raise UsageError(
            f"window: found {window}; expected 0, because this dataset draws its samples from whole shards"
        )
    return replace(budget, window=window, shard_rows=tuple(shard_rows)) if window else budget


def budget_of(settings: TrainConfig, samples: int) -> Budget:
    """Returns the length of a run.

    Args:
        settings: with the number of passes, the smallest and the largest number of steps, and the steps between two
            validations. Its batch size is not 0.
        samples: of the training split.
    """
    per_pass = -(-samples // settings.batch_size)
    total = max(settings.num_epochs * per_pass, settings.min_steps or 0)
    total = min(total, settings.max_steps or total)
    interval = min(settings.valid_interval or 1, total)
    passes = max(1, -(-interval * settings.batch_size // samples)) if per_pass < interval else 1
    steps = max(1, round(settings.refit * total)) if settings.refit else total
    return Budget(samples=samples, batch_size=settings.batch_size, passes=passes, total=steps, scheduled=total)


def batch_size_for(samples: int, workers: int) -> int:
    """Returns the batch size for a training split of that many samples: a power of two, and at least one sample a worker.

    Raises:
        UsageError: there are more workers than samples.
    """
    if workers > samples:
        raise UsageError(
            f"workers: found {workers} for {samples} training samples; expected at most one worker a sample"
        )
    size = USUAL if samples >= FEWEST_BATCHES * USUAL else SMALLEST
    while size < LARGEST and 2 * size * BATCHES_IN_A_PASS <= samples:
        size *= 2
    return max(size, workers)


def planned_epochs(settings: TrainConfig, samples: int, workers: int = 1) -> int:
    """Returns the epochs of a run that nothing stops early.

    Args:
        settings: of the run; a batch size of 0 is chosen here.
        samples: of the training split.
        workers: of the run.

    Raises:
        UsageError: there are more workers than samples.
    """
    if not settings.in_steps:
        return settings.num_epochs
    size = settings.batch_size or batch_size_for(samples, workers)
    return budget_of(replace(settings, batch_size=size), samples).epochs
