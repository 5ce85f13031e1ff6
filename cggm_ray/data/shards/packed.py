"""Tensors in parquet as bytes.

Arrow writes a tensor column as nested lists, and parquet then stores and decodes two levels for every single number. A sample
that is one value of fixed length is copied, in a third of the time. Shape and type are in the metadata of the field.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

SPEC = b"cggm_ray.tensor"


def pack(table: pa.Table) -> pa.Table:
    """Returns the table with every tensor column as bytes; other columns and the metadata do not change."""
    for number, field in enumerate(table.schema):
        if not isinstance(field.type, pa.FixedShapeTensorType):
            continue
        kind = np.dtype(field.type.value_type.to_pandas_dtype())
        width = math.prod(field.type.shape) * kind.itemsize
        spec = {SPEC: json.dumps({"shape": list(field.type.shape), "dtype": kind.name})}
        chunks = [
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(width), len(chunk), [None, pa.py_buffer(np.ascontiguousarray(chunk.to_numpy_ndarray()))]
            )
            for chunk in table.column(number).chunks
        ]
        packed = pa.field(field.name, pa.binary(width), metadata=spec)
        table = table.set_column(number, packed, pa.chunked_array(chunks, type=packed.type))
    return table


def unpack(table: pa.Table) -> pa.Table:
    """Reverses `pack`, without copying.

    Raises:
        ValueError: a cell is empty, or the bytes do not have the shape and type of the field's metadata.
    """
    for number, field in enumerate(table.schema):
        if not _is_packed(field):
            continue
        kind, shape = tensor_type(field)
        unpacked = pa.fixed_shape_tensor(kind, shape)
        width, size = field.type.byte_width, math.prod(shape)
        chunks = []
        for chunk in table.column(number).chunks:
            if chunk.null_count:
                raise ValueError("a cell is empty")
            content = chunk.buffers()[1].slice(chunk.offset * width, len(chunk) * width)
            values = pa.Array.from_buffers(kind, len(chunk) * size, [None, content])
            chunks.append(pa.ExtensionArray.from_storage(unpacked, pa.FixedSizeListArray.from_arrays(values, size)))
        table = table.set_column(number, pa.field(field.name, unpacked), pa.chunked_array(chunks, type=unpacked))
    return table


def tensor_type(field: pa.Field) -> tuple[pa.DataType, tuple[int, ...]]:
    """Returns the type of the numbers and the shape of a sample in a column, packed or not.

    Raises:
        ValueError: the field's metadata is not valid.
    """
    if isinstance(field.type, pa.FixedShapeTensorType):
        return field.type.value_type, tuple(field.type.shape)
    if not _is_packed(field):
        return field.type, ()
    try:
        stated: dict[str, Any] = json.loads(field.metadata[SPEC])
        shape, kind = tuple(stated["shape"]), np.dtype(stated["dtype"])
        fits = all(type(length) is int and length > 0 for length in shape)
        fits = fits and math.prod(shape) * kind.itemsize == field.type.byte_width
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"column {field.name}: no description of a tensor: {error}") from None
    if not fits:
        raise ValueError(f"column {field.name}: {field.type.byte_width} bytes are no {kind} of shape {shape}")
    return pa.from_numpy_dtype(kind), shape


def _is_packed(field: pa.Field) -> bool:
    return pa.types.is_fixed_size_binary(field.type) and SPEC in (field.metadata or {})
