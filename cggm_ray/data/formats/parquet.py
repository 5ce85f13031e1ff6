"""Reads the columns of a parquet file that can be features or describe them, with bounded memory.

A few bytes of parquet can stand for any number of rows: values that repeat, texts from a dictionary, tensors that are null. So
the sizes in its footer are added up before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.untrusted import check_size, reading

RAY_TENSOR = "ray.data.arrow_tensor"


def read_parquet(file: Path, wanted: Callable[[str], bool]) -> pa.Table:
    """Returns the wanted columns that hold numbers, texts, lists of numbers or tensors; texts come as dictionaries.

    Args:
        file: path.
        wanted: whether a column is of use, by its name.

    Raises:
        DataError: the file cannot be read, has a wanted name twice, or declares more than it can.
    """
    with reading(file, "parquet file"):
        with pq.ParquetFile(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
        fields = [field for field in schema if wanted(field.name) and _usable(field)]
        names = [field.name for field in fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{file}: found the columns {listed(twice)} twice; expected every name once")
        chosen = set(names)
        declared, leaf = 0, 0
        for field in schema:
            leaves = _leaves(field.type)
            if field.name in chosen:
                values = sum(metadata.row_group(g).column(leaf).num_values for g in range(metadata.num_row_groups))
                declared += max(values, metadata.num_rows * _slots(field.type)) * _width(field.type)
            leaf += leaves
        check_size(declared, file.stat().st_size, f"{file}: columns {listed(names)}")
        texts = [field.name for field in fields if _is_text(field.type)]
        with pq.ParquetFile(file, read_dictionary=texts) as parquet:
            return parquet.read(names)


def tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    """Returns the shape of a sample in a column of Arrow's or Ray's tensors.

    Ray's tensors are recognised by their name if Ray is not loaded.
    """
    if isinstance(field.type, pa.FixedShapeTensorType):
        return tuple(field.type.shape)
    if str(getattr(field.type, "extension_name", "")).startswith(RAY_TENSOR):
        return tuple(field.type.shape)
    metadata = field.metadata or {}
    if metadata.get(b"ARROW:extension:name", b"").startswith(RAY_TENSOR.encode()):
        return tuple(json.loads(metadata[b"ARROW:extension:metadata"]))
    return None


def _usable(field: pa.Field) -> bool:
    if tensor_shape(field) is not None:
        return True
    kind = _innermost(field.type)
    if isinstance(field.type, pa.BaseExtensionType):
        return False
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or _is_text(field.type)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _innermost(kind: pa.DataType) -> pa.DataType:
    kind = _storage(kind)
    return _innermost(kind.value_type) if _is_list(kind) else kind


def _leaves(kind: pa.DataType) -> int:
    """Returns the number of parquet columns of an Arrow column."""
    kind = _storage(kind)
    if _is_list(kind):
        return _leaves(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_leaves(kind.field(place).type) for place in range(kind.num_fields))
    if pa.types.is_map(kind):
        return _leaves(kind.key_type) + _leaves(kind.item_type)
    return 1


def _slots(kind: pa.DataType) -> int:
    """Returns the smallest number of values in a row, which a null row has too."""
    kind = _storage(kind)
    if not _is_list(kind):
        return 1
    return (kind.list_size if pa.types.is_fixed_size_list(kind) else 1) * _slots(kind.value_type)


def _width(kind: pa.DataType) -> int:
    """Returns the bytes of a value, at least four; for texts that is the size of their index in the dictionary."""
    kind = _innermost(kind)
    return 4 if _is_text(kind) else max(4, kind.bit_width // 8)
