"""Reads the columns of a parquet file that can be features or describe them, with bounded memory.

A few bytes of parquet can stand for any number of rows: values that repeat, texts from a dictionary, tensors that are null. So
the sizes in its footer are added up before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.untrusted import check_size, reading

RAY_TENSOR = "ray.data.arrow_tensor"
BUFFER_BYTES = 2**20
"""Bytes that are read at once of a column of a row group, which would be read whole otherwise."""


@dataclass(frozen=True, kw_only=True)
class Usable:
    """The columns of a parquet file that can be features or describe them.

    Attributes:
        fields: as they are read: texts come as dictionaries.
        available: names of all columns of the file.
        rows: of every row group.
        declared: bytes of these columns in memory, by name.
        nulls: number of values that are missing, lists without values included, by name; None where the file does not say it.
    """

    fields: dict[str, pa.Field]
    available: tuple[str, ...]
    rows: tuple[int, ...]
    declared: dict[str, int]
    nulls: dict[str, int | None]


def usable_columns(file: Path, wanted: Callable[[str], bool]) -> Usable:
    """Returns the wanted columns that hold numbers, texts, lists of numbers or tensors, from the footer of the file.

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
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        chosen = set(names)
        declared, nulls, leaf = {}, {}, 0
        for field in schema:
            leaves = _leaves(field.type)
            if field.name in chosen:
                values = sum(group.column(leaf).num_values for group in groups)
                declared[field.name] = max(values, metadata.num_rows * _slots(field.type)) * _width(field.type)
                counts = [_nulls(group.column(leaf)) for group in groups]
                nulls[field.name] = None if None in counts else sum(filter(None, counts))
            leaf += leaves
        check_size(sum(declared.values()), file.stat().st_size, f"{file}: columns {listed(names)}")
        with open_parquet(file, names, fields) as parquet:
            read = {field.name: field for field in parquet.schema_arrow if field.name in chosen}
        return Usable(
            fields=read,
            available=tuple(schema.names),
            rows=tuple(group.num_rows for group in groups),
            declared=declared,
            nulls=nulls,
        )


def open_parquet(file: Path, names: Sequence[str], fields: Iterable[pa.Field]) -> pq.ParquetFile:
    """Opens a file so that these columns are decoded page by page, and texts among them come as dictionaries."""
    texts = [field.name for field in fields if field.name in names and is_text(field.type)]
    return pq.ParquetFile(file, read_dictionary=texts, buffer_size=BUFFER_BYTES, pre_buffer=False)


def read_parquet(file: Path, wanted: Callable[[str], bool]) -> pa.Table:
    """Returns the columns that `usable_columns` finds.

    Raises:
        DataError: the file cannot be read, has a wanted name twice, or declares more than it can.
    """
    found = usable_columns(file, wanted)
    with reading(file, "parquet file"), open_parquet(file, list(found.fields), found.fields.values()) as parquet:
        return parquet.read(list(found.fields))


def _nulls(chunk: Any) -> int | None:
    """Returns the number of missing values of a column of a row group, or None where the file does not say it."""
    found = chunk.statistics
    return found.null_count if found is not None and found.has_null_count else None


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
    return numbers or is_text(field.type)


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column holds texts."""
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
    return 4 if is_text(kind) else max(4, kind.bit_width // 8)
