"""Arrays that are read by rows, so that a file of any size takes the memory of a few rows.

A `Column` stands for an array [N, ...] in a file. It has a shape and a type, `column[rows]` reads rows, and `np.asarray` reads
all of them. It is pickled as the place where its values lie, so that tasks on other machines read what they need.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK_BYTES = 2**22
"""Approximate bytes of the rows that are looked at together where a whole column is needed."""
LEAST_BYTES = 2**24
"""Smaller columns are read whole: there is one shard or few of them."""

Rows = slice | np.ndarray
"""Rows of a column: a slice without a step, or whole numbers in ascending order."""


class Column(ABC):
    """Values of N samples that are read by rows.

    Attributes:
        shape: [N, ...].
        dtype: of the values that are read; of texts only its kind means something.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def __getitem__(self, rows: Rows) -> np.ndarray:
        """Reads rows.

        Raises:
            DataError: the file cannot be read any more, or a value is wrong.
        """

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all rows."""
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def place(self, row: int) -> int | None:
        """Returns a number that is equal for rows which are best read one after the other; None where each is read alone."""
        return None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def row_numbers(rows: Rows, samples: int) -> np.ndarray:
    """Returns the numbers of rows of a column with so many samples."""
    return np.arange(*rows.indices(samples)) if isinstance(rows, slice) else rows


def blocks(values: np.ndarray | Column) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields all rows of a column in their order, some at a time, with their numbers; an array comes whole."""
    if isinstance(values, np.ndarray):
        yield slice(0, len(values)), values
        return
    row_bytes = math.prod(values.shape[1:]) * max(1, values.dtype.itemsize)
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, len(values), step):
        rows = slice(start, min(start + step, len(values)))
        yield rows, values[rows]


def every(values: np.ndarray | Column, holds: Callable[[np.ndarray], Any]) -> bool:
    """Returns whether something holds for all blocks of a column; the first for which it does not is the last that is read."""
    return all(bool(holds(block)) for _, block in blocks(values))


@dataclass(frozen=True)
class Mapped(Column):
    """A column whose rows are changed when they are read.

    Args:
        column: the other one.
        function: of (values, rows), where `rows` are their numbers; it is pickled.
        shape, dtype: of what it returns, for all rows.
    """

    column: Column
    function: Callable[[np.ndarray, Rows], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return self.function(self.column[rows], rows)

    def place(self, row: int) -> int | None:
        """Returns that of the other column."""
        return self.column.place(row)


def mapped(
    values: np.ndarray | Column,
    function: Callable[[np.ndarray, Rows], np.ndarray],
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype[Any] | None = None,
) -> Any:
    """Applies a function of (values, rows) now to an array, or to a column when its rows are read."""
    if isinstance(values, np.ndarray):
        return function(values, slice(0, len(values)))
    return Mapped(values, function, shape or values.shape, dtype or values.dtype)


class Taken(Column):
    """Some rows of a column.

    Args:
        column: the other one.
        rows: their numbers, in ascending order.
    """

    def __init__(self, column: Column, rows: np.ndarray) -> None:
        self.column, self.rows = column, rows
        self.shape, self.dtype = (len(rows), *column.shape[1:]), column.dtype

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return self.column[self.rows[rows]]

    def place(self, row: int) -> int | None:
        """Returns that of the other column."""
        return self.column.place(int(self.rows[row]))


class Joined(Column):
    """Columns with samples of one shape, one after the other.

    Args:
        columns: at least one.
    """

    def __init__(self, columns: Sequence[np.ndarray | Column]) -> None:
        self.columns = columns
        self.starts = np.cumsum([0, *map(len, columns)])
        self.shape = (int(self.starts[-1]), *columns[0].shape[1:])
        self.dtype = np.result_type(*(column.dtype for column in columns))

    def __getitem__(self, rows: Rows) -> np.ndarray:
        numbers = row_numbers(rows, len(self))
        cuts = np.searchsorted(numbers, self.starts)
        parts = [
            column[numbers[cuts[place] : cuts[place + 1]] - self.starts[place]]
            for place, column in enumerate(self.columns)
            if cuts[place] < cuts[place + 1]
        ]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)
