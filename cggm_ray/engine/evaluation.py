"""Metrics of a split, and the predictions from which they follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Reduction
from cggm_ray.data.loading.collector import Collector
from cggm_ray.data.loading.sampler import InOrder, Plan
from cggm_ray.data.loading.split import Split
from cggm_ray.engine.runtime import Record, Runtime
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Strategy
from cggm_ray.tasks import Task

PREDICTION = "prediction"
"""Column of the predictions."""
PART_BYTES = 2**26
"""Bytes of predictions and targets that are held before they are written."""


@dataclass
class Predictions:
    """Predictions of the network for samples of a split, in float64, in which every value is exact.

    Attributes:
        logits: [samples, C].
        target: [samples, values].
        labelled: bool [samples], False where there is no label; the target is 0 there.
        start: number of the first of these samples in the split.
    """

    logits: Tensor
    target: Tensor
    labelled: Tensor
    start: int = 0

    @classmethod
    def empty(cls, samples: int, task: Task, start: int = 0) -> Predictions:
        """Zeros, to be filled with what a task predicts of so many samples."""
        return cls(
            torch.zeros(samples, task.outputs, dtype=torch.float64),
            torch.zeros(samples, task.values, dtype=torch.float64),
            torch.ones(samples, dtype=torch.bool),
            start,
        )

    def take(self, batch: Batch, logits: Tensor) -> None:
        """Stores the logits and targets of a batch in the rows of its samples."""
        rows = batch.index - self.start
        self.logits[rows] = logits.double().cpu()
        self.target[rows] = batch.target.double().reshape(len(batch), -1).cpu()
        if batch.labelled is not None:
            self.labelled[rows] = batch.labelled.cpu()

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Adds up the rows of all workers, so that each has every prediction. Every sample has a label then."""
        for part in (self.logits, self.target):
            part.copy_(reduce(part.to(device)))


class Parts:
    """Predictions of a split that are handed on some at a time, in their order, so that memory does not grow with the split.

    Args:
        samples: of the split.
        task: what is predicted.
        batch_size: of the global batches.
        give: called with every part, by all workers.
    """

    def __init__(self, samples: int, task: Task, batch_size: int, give: Callable[[Predictions], object]) -> None:
        self._samples, self._task, self._give = samples, task, give
        batches = PART_BYTES // (8 * (task.outputs + task.values) * batch_size)
        self._most = max(1, batches) * batch_size
        self._part = Predictions.empty(min(self._most, samples), task)

    def take(self, batch: Batch, logits: Tensor) -> None:
        """Stores the logits and targets of a batch in the part that is being filled."""
        self._part.take(batch, logits)

    def add(self, rows: Tensor, logits: Tensor, target: Tensor, labelled: Tensor) -> None:
        """Takes the next samples in one process, where they do not come as a batch; `rows` are their numbers, [n]."""
        places = rows - self._part.start
        self._part.logits[places], self._part.target[places], self._part.labelled[places] = logits, target, labelled
        self.passed(int(rows[-1]) + 1, SINGLE_WORKER, torch.device("cpu"))

    def passed(self, samples: int, reduce: Reduction, device: torch.device) -> None:
        """Hands a part on when it is complete; all workers call it when so many samples of the split have passed."""
        part = self._part
        if samples < part.start + len(part.target):
            return
        if not reduce.is_single:
            part.share(reduce, device)
        self._give(part)
        self._part = Predictions.empty(min(self._most, self._samples - samples), self._task, samples)

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Does nothing: every part was shared when it was complete."""


class Observer:
    """The sums of `Strategy.observe` over a split.

    Args:
        strategy: whose `observe` is called for every batch.

    Attributes:
        sums: over the split and all workers, after `evaluate`; None before.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.sums: Tensor | None = None

    def see(self, features: dict[str, Feature], batch: Batch) -> None:
        """Adds a batch."""
        seen = self.strategy.observe(features, batch)
        self.sums = seen if self.sums is None else self.sums + seen


@torch.no_grad()
def evaluate(
    settings: TrainConfig,
    net: MultimodalNet,
    task: Task,
    split: Split,
    runtime: Runtime,
    collected: Collector | None = None,
    observer: Observer | None = None,
) -> Record:
    """Loss and metrics of the samples of a split that have a label, each worker taking its part; empty where none has.

    Args:
        settings: batch size and precision of the run.
        net: the bare network.
        task: what is predicted.
        split: to evaluate.
        runtime: where the loop runs.
        collected: given the predictions of all workers.
        observer: filled with what its strategy observes if given.
    """
    net.eval()
    if observer is not None:
        observer.strategy.eval()
    metrics = task.metrics(runtime.device, split.groups)
    loss_sums = torch.zeros(task.n_sums, dtype=torch.float64, device=runtime.device)
    labelled = 0
    plan = Plan(InOrder(len(split)), settings.batch_size, runtime.rank, runtime.world_size)
    reduce, passed = runtime.reduce(), 0
    for part, batch in zip(plan, split.batches(plan, epoch=0), strict=True):
        logits = predicted(settings.precision, net, batch, observer)
        metrics.update(logits, batch)
        loss_sums += task.sums(logits, batch)
        labelled += len(batch) if batch.labelled is None else int(batch.labelled.sum())
        if collected is not None and not batch.is_filler:
            collected.take(batch, logits)
        passed += part.samples
        if isinstance(collected, Parts):
            collected.passed(passed, reduce, runtime.device)
    seen = [] if observer is None or observer.sums is None else [observer.sums]
    total = reduce(torch.cat([loss_sums, metrics.sums, *seen]))
    if observer is not None:
        total, observer.sums = total.split([len(loss_sums) + len(metrics.sums), sum(map(len, seen))])
    if collected is not None and not reduce.is_single:
        collected.share(reduce, runtime.device)
    if runtime.world_size == 1 and not labelled:
        return {}
    return {"loss": float(task.combine(total[: task.n_sums])), **metrics.compute(total[task.n_sums :])}


def predicted(precision: str, net: MultimodalNet, batch: Batch, observer: Observer | None = None) -> Tensor:
    """Logits [N, C, ...] of a batch in the precision of the run, single at least; an observer sees its features."""
    with torch.autocast(batch.target.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = net.encode(batch)
        logits = net.fuse(features, batch.masks).logits
        if observer is not None:
            observer.see(features, batch)
    return in_precision(logits)
