"""Tensor columns as bytes and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cggm_ray.data.shards.packed import SPEC, pack, tensor_type, unpack
from cggm_ray.data.shards.shards import column_values, tensor_column

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64"])
@pytest.mark.parametrize("shape", [(1,), (3, 4), (2, 1, 5)])
def test_through_a_file(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 100, (7, *shape)).astype(dtype)
    table = pa.table({"index": pa.array(np.arange(7)), "x": tensor_column(values), "id": list("abcdefg")})
    table = table.replace_schema_metadata({"facts": "kept"})
    pq.write_table(pack(table), tmp_path / "file", row_group_size=3)
    with pq.ParquetFile(tmp_path / "file") as file:
        assert pa.types.is_fixed_size_binary(file.schema_arrow.field("x").type)
        assert tensor_type(file.schema_arrow.field("x")) == (pa.from_numpy_dtype(dtype), shape)
        read, group = unpack(file.read()), unpack(file.read_row_group(1, columns=["x"]))
    assert read.schema.metadata[b"facts"] == b"kept"
    assert read.schema.field("x").type == table.schema.field("x").type
    np.testing.assert_array_equal(column_values(read.column("x")), values)
    np.testing.assert_array_equal(column_values(group.column("x")), values[3:6])
    assert read.column("id").to_pylist() == list("abcdefg")


def test_several_chunks_and_offsets() -> None:
    values = RNG.standard_normal((10, 2, 3)).astype(np.float32)
    whole = pa.table({"x": tensor_column(values)})
    table = pa.concat_tables([whole.slice(1, 4), whole.slice(6, 3)])
    packed = pack(table)
    np.testing.assert_array_equal(column_values(unpack(packed).column("x")), values[[1, 2, 3, 4, 6, 7, 8]])
    np.testing.assert_array_equal(column_values(unpack(packed.slice(2, 4)).column("x")), values[[3, 4, 6, 7]])


def test_bytes_of_somebody_else_stay_bytes() -> None:
    table = pa.table({"digest": pa.array([b"abcd"], pa.binary(4))})
    assert unpack(table).equals(table)


@pytest.mark.parametrize(
    "told",
    [
        {"shape": [2], "dtype": "float32"},
        {"shape": [-1, -3], "dtype": "float32"},
        {"shape": [3.0], "dtype": "float32"},
        {"shape": [3], "dtype": "float3"},
        {"shape": [3], "dtype": "object"},
        {"shape": [3]},
        {"shape": 3, "dtype": "float32"},
        [],
    ],
)
def test_a_description_that_cannot_be(told: object) -> None:
    field = pa.field("x", pa.binary(12), metadata={SPEC: json.dumps(told)})
    table = pa.table({"x": pa.array([b"x" * 12], pa.binary(12))}, schema=pa.schema([field]))
    with pytest.raises(ValueError, match=r"^column x: "):
        unpack(table)


def test_an_empty_cell() -> None:
    packed = pack(pa.table({"x": tensor_column(np.ones((2, 3), np.float32))}))
    table = pa.table({"x": pa.array([b"x" * 12, None], pa.binary(12))}, schema=packed.schema)
    with pytest.raises(ValueError, match="a cell is empty"):
        unpack(table)
