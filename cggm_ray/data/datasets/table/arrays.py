"""Columns of arrays: lists of numbers of one length, or tensors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.cells import Cells, is_list
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, ColumnKind, Context, Facts, State
from cggm_ray.data.formats.parquet import tensor_shape
from cggm_ray.data.formats.untrusted import finite
from cggm_ray.data.rounding import rounded_features, rounded_in_words

MOST_ROWS = 256
"""Rows whose numbers are looked at for what single precision changes."""


class Array(ColumnKind):
    """Arrays of numbers, all of one shape: a vector [D], a sequence [T, D] or an image."""

    order = 20

    def recognises(self, facts: Facts) -> bool:
        """Returns whether the cells are tensors, or lists of numbers."""
        return _innermost(facts.type) is not None

    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Returns lists of fixed length, nested by the axes; bytes (uint8) stay bytes, all others become single precision."""
        if cells.there.any() and _innermost(cells.values.type) is None:
            raise cells.wrong(int(np.flatnonzero(cells.there)[0]), "a list of numbers, or a tensor")
        there = np.flatnonzero(cells.there)
        rows = _rows(cells, there)
        shape = rows[0].shape if rows else (1,)
        for row, values in zip(there, rows, strict=True):
            if values.shape != shape or not values.size:
                raise cells.wrong(
                    int(row),
                    f"numbers of shape {list(shape)} as in row {there[0] + 1} (sequences of several lengths: recipe features)",
                )
            if not finite(values).all():
                raise cells.wrong(int(row), "finite numbers")
        small = bool(rows) and all(values.dtype == np.uint8 for values in rows)
        whole = np.zeros((len(cells), *shape), np.uint8 if small else np.float32)
        for row, values in zip(there, rows, strict=True):
            whole[row] = values
        found = rounded_features(np.stack(rows[:MOST_ROWS])) if rows and not small else {}
        if found and not any(line.startswith(f"rounded: {cells.name}, ") for line in context.remarks):
            context.remarks.append(f"rounded: {cells.name}, {rounded_in_words(found)}")
        made = pa.array(whole.reshape(-1))
        for axis in reversed(range(1, whole.ndim)):
            mask = pa.array(~cells.there) if axis == 1 else None
            made = pa.FixedSizeListArray.from_arrays(made, whole.shape[axis], mask=mask)
        return made

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the shape."""
        if cells.null_count == len(cells):
            raise DataError(
                f"column {name}: has no array in the training split; leave it out with --column {name}=drop"
            )
        return {"shape": list(_shape(cells.type))}

    def problem(self, cells: pa.Array, state: State) -> str | None:
        """Returns that the arrays have another shape, unless all are missing."""
        found, expected = list(_shape(cells.type)), list(state["shape"])
        if found == expected or cells.null_count == len(cells):
            return None
        return f"found arrays of shape {found}; expected {expected} as in training"

    def encode(self, cells: pa.Array, state: State) -> np.ndarray:
        """Returns [N, ...]; bytes are scaled to [0, 1]."""
        shape = tuple(state["shape"])
        if cells.null_count == len(cells):
            return np.zeros((len(cells), *shape), np.float32)
        kept = cells.drop_null()
        while is_list(kept.type):
            kept = kept.flatten()
        numbers = np.asarray(kept)
        values = np.zeros((len(cells), *shape), np.float32)
        there = cells.is_valid().to_numpy(zero_copy_only=False)
        values[there] = numbers.reshape(-1, *shape) / np.float32(255 if numbers.dtype == np.uint8 else 1)
        return values

    def about(self, state: State) -> str:
        """Returns the shape."""
        return f"arrays of shape {state['shape']}"


def _innermost(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type of the numbers in a tensor or in nested lists of numbers; None for anything else."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type if tensor_shape(pa.field("x", kind)) is not None else None
    if not is_list(kind):
        return None
    while is_list(kind):
        kind = kind.value_type
    return kind if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def _rows(cells: Cells, there: np.ndarray) -> list[np.ndarray]:
    """Returns the arrays of the cells that are not missing."""
    shape = tensor_shape(pa.field("x", cells.values.type))
    values = cells.values.storage if isinstance(cells.values, pa.ExtensionArray) else cells.values
    found = []
    for row in there:
        cell = values[int(row)]
        try:
            array = np.asarray(cell.values) if not is_list(cell.type.value_type) else np.array(cell.as_py())
        except ValueError:
            raise cells.wrong(int(row), "nested lists of one length") from None
        if array.dtype.kind not in "biuf":
            raise cells.wrong(int(row), "numbers, without missing ones")
        found.append(array if shape is None else array.reshape(shape))
    return found


def _shape(kind: pa.DataType) -> tuple[int, ...]:
    """Returns the shape of nested lists of fixed length."""
    return (kind.list_size, *_shape(kind.value_type)) if is_list(kind) else ()


COLUMN_KINDS.register("array")(Array())
