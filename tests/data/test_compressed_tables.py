"""Tables of text that are compressed as a whole: by split, and damaged ones. `test_table.py` compares their numbers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from tables import converted, products, table_config

from cggm_ray.core.errors import DataError


def test_compressed_files_by_split(tmp_path: Path) -> None:
    frame = products()
    for name, part in (("train", frame[:40]), ("val", frame[40:50]), ("test", frame[50:])):
        content = part.to_csv(index=False).encode("windows-1252")
        with pa.CompressedOutputStream(str(tmp_path / f"{name}.csv.zst"), "zstd") as file:
            file.write(content)
    _, splits = converted(table_config(tmp_path, tmp_path, column=("photo=drop",)))
    assert {name: len(split) for name, split in splits.items()} == {"train": 40, "valid": 10, "test": 10}


def test_damaged_compressed_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(products().to_csv(index=False).encode())
    for content, said in (
        (whole[:200], "the text file ends too early; expected a complete file"),
        (b"a,b\n1,2\n", "not a readable text file: Not a gzipped file"),
        (
            gzip.compress(b"a,b\n" + b"1,1\n" * 2**27),
            r"found [\d,]+ bytes of data in a file of [\d,]+; .* \(unpack it first\)",
        ),
    ):
        (tmp_path / "t.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=rf"t\.csv\.gz: {said}"):
            converted(table_config(tmp_path, tmp_path / "t.csv.gz"))
    (tmp_path / "t.parquet.gz").write_bytes(whole)
    with pytest.raises(DataError, match=r"t\.parquet\.gz: compressed by gzip; unpack it first; expected \.csv"):
        converted(table_config(tmp_path, tmp_path / "t.parquet.gz"))
