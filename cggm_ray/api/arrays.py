"""Data in memory, written to a file under the name of its content, so that a run can be continued and verified later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cggm_ray.core.errors import UsageError, short_repr
from cggm_ray.storage.files import whole_file

INPUTS = "inputs"
"""Folder of the written data, beside the runs."""


def data_file(data: Any, storage: Path) -> Path:
    """Returns the file of some data, which is written unless it is a path.

    Args:
        data: a path; arrays by name, each of N samples; or a table of pandas or pyarrow, whose cells may be arrays.
        storage: folder of the runs; the file lies in `inputs/` there.

    Raises:
        UsageError: the data is none of these, has no column, or its columns differ in length.
    """
    if isinstance(data, str | Path):
        return Path(data)
    table = data if isinstance(data, pa.Table) else _table(data)
    if table is None:
        arrays = _arrays(data)
        digest = hashlib.sha256()
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        path = storage / INPUTS / f"{digest.hexdigest()[:16]}.npz"
        return _written(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    if not table.num_columns:
        raise UsageError("data: found a table without columns; expected modalities and a target")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    path = storage / INPUTS / f"{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    return _written(path, lambda file: file.write(content))


def _written(path: Path, write: Any) -> Path:
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial, partial.open("wb") as file:
                write(file)
        except OSError as error:
            raise UsageError(f"data: {path} cannot be written: {error.strerror}") from None
    return path


def _table(data: Any) -> pa.Table | None:
    """Returns a pandas table as one of Arrow, or None for something else.

    Raises:
        UsageError: a column has values of several kinds, or arrays of several shapes with more than one axis.
    """
    if not (hasattr(data, "columns") and hasattr(data, "dtypes")):
        return None
    columns = {}
    for name in data.columns:
        values = data[name].to_numpy()
        if len(values) and all(isinstance(value, np.ndarray) and value.ndim > 1 for value in values):
            shapes = {value.shape for value in values}
            if len(shapes) > 1:
                raise UsageError(f"data: column {name} has arrays of {len(shapes)} shapes; expected one shape")
            columns[str(name)] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(values))
        else:
            try:
                # pandas keeps a missing text as NaN.
                columns[str(name)] = pa.array(values, from_pandas=values.dtype == object)
            except pa.ArrowException as error:
                raise UsageError(
                    f"data: column {name} cannot be stored: {error}; expected values of one kind"
                ) from None
    return pa.table(columns)


def _arrays(data: Any) -> dict[str, np.ndarray]:
    if not isinstance(data, Mapping) or not data:
        raise UsageError(
            f"data: found {short_repr(data)}; expected a path, arrays by name, or a table of pandas or pyarrow"
        )
    arrays = {}
    for name, values in data.items():
        # Tensors too: those of torch on the CPU have the protocol of numpy.
        try:
            array = np.asarray(values)
        except ValueError:  # sequences of different lengths
            array = np.empty(1, dtype=object)
        if array.dtype == object and all(isinstance(value, str) for value in values):
            array = np.asarray(values, dtype=str)
        if array.dtype == object:
            raise UsageError(
                f"data: {name} has values of different kinds or lengths; expected one array [N, ...], or a table for "
                "sequences of different lengths"
            )
        if array.ndim == 0:
            raise UsageError(f"data: {name} is a single value; expected one for each sample")
        arrays[str(name)] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"data: columns of different lengths: {found}; expected one value of each for every sample")
    return arrays
