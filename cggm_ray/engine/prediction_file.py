"""The file of predictions, which is written some samples at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cggm_ray.data.shards.shards import IDENTITY, INDEX, TARGET, tensor_column
from cggm_ray.engine.evaluation import PREDICTION, Predictions


class PredictionFile:
    """Predictions as parquet, or as CSV.

    The columns are index, id if samples have names, target (null without a label) and prediction (a value, or the logits);
    for classes also probability [C] and class, the name of the most probable one. The names of all stand in the metadata of
    the file as `classes`. For several labels of a sample the target is a list of 0 and 1, and `labels` has the names of those
    that are more probable than not.

    Args:
        path: of the file.
        samples: in all.
        names: of the samples, where they have any.
        classes: their names, where classes were predicted.
        labels: their names, where a sample may have several.
        as_csv: write a CSV, as `flattened` says.
    """

    def __init__(
        self,
        path: Path,
        samples: int,
        names: Sequence[str] | None,
        classes: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        *,
        as_csv: bool = False,
    ) -> None:
        self._path, self._samples, self._names = path, samples, names
        self._classes, self._labels, self._as_csv = classes, labels, as_csv
        self._writer: Any = None

    def add(self, part: Predictions) -> None:
        """Writes the next samples.

        Raises:
            OSError: the file cannot be written.
        """
        table = self._table(part)
        if self._as_csv:
            table = flattened(table, self._classes or self._labels)
        if self._writer is None:
            make = pyarrow.csv.CSVWriter if self._as_csv else pq.ParquetWriter
            self._writer = make(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Completes the file."""
        if self._writer is not None:
            self._writer.close()

    def _table(self, part: Predictions) -> pa.Table:
        start, stop = part.start, part.start + len(part.target)
        columns = {INDEX: pa.array(np.arange(start, stop))}
        if self._names is not None:
            columns[IDENTITY] = pa.array(self._names[start:stop])
        target, there = part.target.numpy(), part.labelled.numpy()
        if target.shape[1] > 1:
            rows = [row.tolist() if known else None for row, known in zip(target, there, strict=True)]
            # A part without any label has the type of the others.
            columns[TARGET] = pa.array(rows, None if len(rows) == self._samples else pa.list_(pa.float64()))
        else:
            columns[TARGET] = pa.array(target[:, 0], mask=~there)
        logits, metadata = part.logits, None
        columns[PREDICTION] = tensor_column((logits[:, 0] if logits.shape[1] == 1 else logits).numpy())
        if self._classes is not None:
            columns["probability"] = tensor_column(logits.softmax(1).numpy())
            columns["class"] = pa.array([self._classes[number] for number in logits.argmax(1).tolist()])
            metadata = {"classes": json.dumps(list(self._classes))}
        if self._labels is not None:
            columns["probability"] = tensor_column(logits.sigmoid().numpy())
            found = [[self._labels[number] for number in row.nonzero()[:, 0].tolist()] for row in logits > 0]
            columns["labels"] = pa.array(found, pa.list_(pa.string()))
            metadata = {"classes": json.dumps(list(self._labels))}
        return pa.table(columns, metadata=metadata)


def write_predictions(path: Path, names: Sequence[str] | None, collected: Predictions) -> None:
    """Writes the predictions of a whole split at once; see `PredictionFile`.

    Raises:
        OSError: the file cannot be written.
    """
    file = PredictionFile(path, len(collected.target), names)
    file.add(collected)
    file.close()


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
