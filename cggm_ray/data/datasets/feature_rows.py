"""What becomes of the rows of a modality before they are in a shard, at once or when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.sentiment import unlimited
from cggm_ray.data.formats.columns import Column, Rows, mapped, row_numbers
from cggm_ray.data.formats.untrusted import finite


def padded(values: np.ndarray | Column, length: int) -> Any:
    """Returns sequences [N, T, ...] with zeros behind them up to a length of at least T."""
    gap = length - values.shape[1]
    if not gap:
        return values
    shape = (len(values), length, *values.shape[2:])
    return mapped(values, partial(_pad, ((0, 0), (0, gap), *[(0, 0)] * (values.ndim - 2))), shape)


def _pad(width: Sequence[tuple[int, int]], values: np.ndarray, rows: Rows) -> np.ndarray:
    return np.pad(values, width)


def silence_as_zero(values: np.ndarray, rows: Rows) -> np.ndarray:
    """Returns audio with 0 in place of what is infinite."""
    silent = unlimited(values)
    return np.where(silent, values.dtype.type(0), values) if silent.any() else values


@dataclass(frozen=True)
class CheckFinite:
    """Raises a DataError for a row with a value that is not finite.

    Attributes:
        there: bool [N], rows that are not missing.
        where: file and modality.
        names: of the rows, for the message.
    """

    there: np.ndarray
    where: str
    names: Sequence[str] | Column | None

    def __call__(self, values: np.ndarray, rows: Rows) -> np.ndarray:
        """Returns some rows unchanged."""
        bad = np.flatnonzero(self.there[rows] & ~finite(values).all(tuple(range(1, values.ndim))))
        if len(bad):
            row = int(row_numbers(rows, len(self.there))[bad[0]])
            raise DataError(
                f"{self.where}, row {row_in_words(row, self.names)}: a value that is not finite; expected numbers"
            )
        return values


def as_names(values: np.ndarray, rows: Rows) -> np.ndarray:
    """Returns a text for each sample."""
    return np.array([" ".join(map(str, np.atleast_1d(value).ravel().tolist())) for value in values], dtype=object)


def row_in_words(row: int, names: Sequence[str] | Column | None) -> str:
    """Returns the number of a row, and its name if rows have names."""
    if names is None or not len(names):
        return str(row)
    return f"{row} ({names[row : row + 1][0]})"
