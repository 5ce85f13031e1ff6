"""What single precision, in which networks compute, makes of numbers that lie close together and far from zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats.columns import BLOCK_BYTES, Column

MOST_ROUNDING = 0.01
"""Largest rounding, in standard deviations, that is as good as none."""


def rounding(values: np.ndarray) -> str | None:
    """Returns in words what single precision does to numbers of any shape; None where it changes next to nothing.

    Args:
        values: finite numbers.
    """
    exact = values.astype(np.float64)
    with np.errstate(over="ignore"):
        change = np.abs(exact.astype(np.float32) - exact).max(initial=0.0)
    if not change or exact.min() == exact.max() or change <= MOST_ROUNDING * exact.std():
        return None
    spread = f"mean {exact.mean():.6g} and standard deviation {exact.std():.3g}"
    return f"{spread}, which single precision changes by up to {change:.3g}"


def check_target_rounding(values: np.ndarray, where: str) -> None:
    """Raises a DataError if targets of a regression differ by too little for single precision, in which they are trained.

    Args:
        values: finite numbers.
        where: file and column, for the message.
    """
    words = rounding(values)
    if words is not None:
        raise DataError(
            f"{where}: found {words}; expected values without this offset: subtract the mean, or take another unit"
        )


def rounded_features(values: np.ndarray | Column) -> dict[int, str]:
    """Returns the features that single precision changes, with what `rounding` says of each.

    An offset is in all rows, so the first `BLOCK_BYTES` of them are looked at. Zeros do not count, because padding and missing
    samples are zero.

    Args:
        values: [N, ..., D].
    """
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 4 or values.dtype == np.float32:
        return {}
    row_bytes = math.prod(values.shape[1:]) * values.dtype.itemsize
    first = values[: max(1, BLOCK_BYTES // max(1, row_bytes))]
    columns = first.reshape(-1, values.shape[-1] if values.ndim > 1 else 1).T
    found = {number: rounding(column[(column != 0) & np.isfinite(column)]) for number, column in enumerate(columns)}
    return {number: words for number, words in found.items() if words is not None}


def rounded_in_words(found: Mapping[int, str]) -> str:
    """Returns one text about the features that `rounded_features` found, at least one."""
    number = min(found)
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"feature {number}{others}: {found[number]}; subtract the mean to keep their differences"
