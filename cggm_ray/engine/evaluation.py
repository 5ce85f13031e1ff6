"""Scores of a split, and the predictions that they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.reduction import Reduce
from cggm_ray.data.loading.collector import Collector
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.shards import IDENTITY, INDEX, TARGET, tensor_column
from cggm_ray.engine.runtime import Record, Runtime
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Strategy
from cggm_ray.tasks import Task

PREDICTION = "prediction"
"""Column of the predictions."""


@dataclass
class Predictions:
    """What the network says about every sample of a split, in float64, the type in which every value is exact.

    Attributes:
        logits: [samples, C].
        target: [samples, values].
        labelled: bool [samples], False where there is no label; the target is 0 there.
    """

    logits: Tensor
    target: Tensor
    labelled: Tensor

    @classmethod
    def empty(cls, samples: int, task: Task) -> Predictions:
        """Zeros, to be filled with what a task predicts of so many samples."""
        return cls(
            torch.zeros(samples, task.outputs, dtype=torch.float64),
            torch.zeros(samples, task.values, dtype=torch.float64),
            torch.ones(samples, dtype=torch.bool),
        )

    def take(self, batch: Batch, logits: Tensor) -> None:
        """See `Collector`."""
        self.logits[batch.index] = logits.double().cpu()
        self.target[batch.index] = batch.target.double().reshape(len(batch), -1).cpu()
        if batch.labelled is not None:
            self.labelled[batch.index] = batch.labelled.cpu()

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """See `Collector`. Where there are several workers every sample has a label."""
        for part in (self.logits, self.target):
            part.copy_(reduce(part.to(device)))


class Observer:
    """What a strategy wants to know of a split.

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
    plan = list(slices(torch.arange(len(split)), settings.batch_size, runtime.rank, runtime.world_size))
    for batch in split.batches(plan, epoch=0):
        logits = predicted(settings.precision, net, batch, observer)
        metrics.update(logits, batch)
        loss_sums += task.sums(logits, batch)
        labelled += len(batch) if batch.labelled is None else int(batch.labelled.sum())
        if collected is not None and not batch.is_filler:
            collected.take(batch, logits)
    reduce = runtime.reduce()
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
    return logits.float() if logits.dtype.itemsize < 4 else logits


def write_predictions(
    path: Path,
    names: Sequence[str] | None,
    collected: Predictions,
    classes: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    *,
    as_csv: bool = False,
) -> None:
    """Predictions as parquet, or as CSV.

    The columns are index, id if samples have names, target (null without a label) and prediction (a value, or the logits);
    for classes also probability [C] and class, the name of the most probable one. The names of all stand in the metadata of
    the file as `classes`. For several labels of a sample the target is a list of 0 and 1, and `labels` has the names of those
    that are more probable than not.

    Args:
        path: of the file.
        names: of the samples, where they have any.
        collected: what was predicted.
        classes: their names, where classes were predicted.
        labels: their names, where a sample may have several.
        as_csv: write a CSV, as `flattened` says.

    Raises:
        OSError: the file cannot be written.
    """
    columns = {INDEX: pa.array(np.arange(len(collected.target)))}
    if names is not None:
        columns[IDENTITY] = pa.array(names)
    target, there = collected.target.numpy(), collected.labelled.numpy()
    if target.shape[1] > 1:
        columns[TARGET] = pa.array([row.tolist() if known else None for row, known in zip(target, there, strict=True)])
    else:
        columns[TARGET] = pa.array(target[:, 0], mask=~there)
    logits = collected.logits
    columns[PREDICTION] = tensor_column((logits[:, 0] if logits.shape[1] == 1 else logits).numpy())
    metadata = None
    if classes is not None:
        columns["probability"] = tensor_column(logits.softmax(1).numpy())
        columns["class"] = pa.array([classes[number] for number in logits.argmax(1).tolist()])
        metadata = {"classes": json.dumps(list(classes))}
    if labels is not None:
        columns["probability"] = tensor_column(logits.sigmoid().numpy())
        columns["labels"] = pa.array(
            [[labels[number] for number in row.nonzero()[:, 0].tolist()] for row in logits > 0], pa.list_(pa.string())
        )
        metadata = {"classes": json.dumps(list(labels))}
    table = pa.table(columns, metadata=metadata)
    if as_csv:
        pyarrow.csv.write_csv(flattened(table, classes or labels), path)
    else:
        pq.write_table(table, path)


def flattened(table: pa.Table, names: Sequence[str] | None) -> pa.Table:
    """Returns predictions without lists: a column for each probability, and names of classes and labels in place of numbers.

    Args:
        table: of predictions.
        names: of classes or labels, where there are any.
    """
    columns: dict[str, Any] = {name: table.column(name) for name in table.column_names}
    if names is None:
        return table
    del columns[PREDICTION]
    probability = columns.pop("probability").combine_chunks().to_numpy_ndarray()
    target = columns[TARGET].to_pylist()
    if "labels" in columns:
        rows = [None if row is None else [names[n] for n, there in enumerate(row) if there] for row in target]
        columns[TARGET] = [None if row is None else "|".join(row) for row in rows]
        columns["labels"] = ["|".join(row) for row in columns["labels"].to_pylist()]
    else:
        columns[TARGET] = [None if number is None else names[int(number)] for number in target]
    columns[TARGET] = pa.array(columns[TARGET], pa.string())
    return pa.table(columns | {f"probability {name}": probability[:, n] for n, name in enumerate(names)})
