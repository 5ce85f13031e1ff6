"""The samples of a split, as arrays, and as raw shards."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.data.formats.columns import Column
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    PRESENT,
    STEPS,
    TARGET,
    RawShard,
    tensor_column,
)

ROW, SOURCE = "row", "source"
"""Columns of raw shards whose inputs are read by rows."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of a split.

    Attributes:
        inputs: modality to [N, ...], or to a column whose rows are those of the file.
        present: modality to bool [N], where samples of any split lack it.
        steps: modality to int64 [N], 0 where it is missing, for sequences with padding in any split.
        target: [N] of classes or [N, 1] of values.
        names: of the samples, if they have any.
        rows: [N], where these samples are in the columns of the file; None where every input is an array.
        source: name of the table that the columns are of.
    """

    inputs: dict[str, np.ndarray | Column]
    present: dict[str, np.ndarray] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    target: np.ndarray
    names: Sequence[str] | Column | None = None
    rows: np.ndarray | None = None
    source: str = ""

    @property
    def by_rows(self) -> bool:
        """Whether some input is read by rows."""
        return any(isinstance(values, Column) for values in self.inputs.values())

    def take(self, rows: np.ndarray) -> Samples:
        """Returns the samples of these rows."""

        def part(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[rows] for name, values in arrays.items()}

        inputs = {name: v if isinstance(v, Column) else v[rows] for name, v in self.inputs.items()}
        return Samples(
            inputs=inputs,
            present=part(self.present),
            steps=part(self.steps),
            target=self.target[rows],
            names=self.names
            if self.names is None or isinstance(self.names, Column)
            else [self.names[row] for row in rows],
            rows=None if self.rows is None else self.rows[rows],
            source=self.source,
        )

    def _together(self, row: int) -> str:
        """Returns the key of a shard. Shards with equal keys read the same part of a file, one after the other."""
        if self.rows is None:
            return ""
        places = [v.place(int(self.rows[row])) for v in self.inputs.values() if isinstance(v, Column)]
        known = [place for place in places if place is not None]
        return f"{self.source}/{known[0]}" if known else ""

    def shards(
        self, split: str, incomplete: Collection[str] = (), labelled: np.ndarray | None = None
    ) -> Iterator[RawShard]:
        """The raw shards of a split that these samples make.

        Inputs that are read by rows are not in them. They have the name of the table and the rows in it, and `ReadRows` reads
        those.

        Args:
            split: name of it.
            incomplete: modalities that some sample of the set lacks; those with steps have 0 of them there.
            labelled: bool [N], whether a sample has a label; None where all do.
        """
        sample_bytes = sum(4 * math.prod(values.shape[1:]) for values in self.inputs.values() if len(values))
        for number, rows in chunks(len(self.target), sample_bytes):
            columns: dict[str, Any] = {
                name: tensor_column(values[rows])
                for name, values in self.inputs.items()
                if not isinstance(values, Column)
            }
            columns |= {STEPS + name: pa.array(steps[rows]) for name, steps in self.steps.items()}
            columns |= {
                PRESENT + name: pa.array(flags[rows])
                for name, flags in self.present.items()
                if name in incomplete and name not in self.steps
            }
            columns[TARGET] = tensor_column(self.target[rows])
            if labelled is not None:
                columns[LABELLED] = pa.array(labelled[rows])
            columns[INDEX] = pa.array(np.arange(rows.start, rows.stop))
            if self.names is not None and not isinstance(self.names, Column):
                columns[IDENTITY] = pa.array(self.names[rows])
            if self.by_rows and self.rows is not None:
                columns[ROW] = pa.array(self.rows[rows])
                columns[SOURCE] = pa.array([self.source] * (rows.stop - rows.start))
            yield RawShard(split=split, number=number, table=pa.table(columns), together=self._together(rows.start))


@dataclass(frozen=True)
class ReadRows:
    """Reads the inputs of raw shards that name rows; it is called with such a shard and returns it with its inputs.

    Attributes:
        inputs: table to modality to its column, or to an array, which the shards have already.
        names: table to the names of its samples, for tables that have them by rows.
    """

    inputs: Mapping[str, Mapping[str, Column | None]]
    names: Mapping[str, Column]

    @classmethod
    def of(cls, parts: Iterable[Samples]) -> ReadRows:
        """Returns what reads the inputs of these samples."""
        inputs: dict[str, Mapping[str, Column | None]] = {}
        names = {}
        for part in parts:
            inputs[part.source] = {n: v if isinstance(v, Column) else None for n, v in part.inputs.items()}
            if isinstance(part.names, Column):
                names[part.source] = part.names
        return cls(inputs, names)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Reads the rows of one raw shard.

        Raises:
            DataError: a value is wrong, or the file cannot be read.
        """
        rows, source = table.column(ROW).to_numpy(), table.column(SOURCE)[0].as_py()
        columns = {
            name: table.column(name) if column is None else tensor_column(column[rows])
            for name, column in self.inputs[source].items()
        }
        rest = [name for name in table.column_names if name not in (*columns, ROW, SOURCE)]
        columns |= {name: table.column(name) for name in rest}
        if source in self.names:
            columns[IDENTITY] = pa.array(self.names[source][rows].tolist())
        return pa.table(columns)
