"""Reads a large CSV by blocks, so that the file is not held beside the table that is made of it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

BLOCK_BYTES = 2**24
"""Bytes of a CSV that are parsed together."""
_READ_BYTES = 2**20
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def plain_encoding(path: Path, given: str | None, fallback: str) -> str | None:
    """Returns the encoding of a text file whose bytes can be read one after the other; None where it must be looked at whole.

    Args:
        path: of the file.
        given: encoding that the user names, or None.
        fallback: where none is given and the file is not UTF-8.
    """
    if given is not None:
        return given if _decodes(path, given) else None
    if _decodes(path, "utf-8"):
        return "utf-8"
    return fallback if _decodes(path, fallback) else None


def _decodes(path: Path, encoding: str) -> bool:
    try:
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        with path.open("rb") as file:
            first = True
            while part := file.read(_READ_BYTES):
                if b"\0" in part or (first and part.startswith(_MARKS)):
                    return False
                decoder.decode(part)
                first = False
        decoder.decode(b"", final=True)
        return True
    except (LookupError, UnicodeDecodeError):
        return False


def first_text(path: Path, encoding: str, characters: int) -> str:
    """Returns the beginning of a text file, without a byte order mark."""
    with path.open(encoding=encoding, newline="") as file:
        return file.read(characters).removeprefix("\ufeff")


def read_blocks(
    path: Path,
    encoding: str,
    delimiter: str,
    header: Sequence[str],
    names: Sequence[str],
    *,
    has_header: bool,
    clean: Callable[[pa.Table], pa.Table],
) -> pa.Table | None:
    """Returns the rows of a CSV, all of whose cells are texts; None where it cannot be read by blocks.

    Args:
        path: of the file.
        encoding: of it.
        delimiter: of it.
        header: names of the columns in the file, or those that the user gives.
        names: names of the columns of the table.
        has_header: whether the first row is one.
        clean: makes the rows of a block those of the table.
    """
    try:
        reader = pyarrow.csv.open_csv(
            str(path),
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                encoding=encoding,
                column_names=None if has_header else list(header),
            ),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), null_values=[], strings_can_be_null=False
            ),
        )
        parts = [clean(pa.Table.from_batches([batch]).rename_columns(list(names))) for batch in reader]
    # A row of another length, or a cell longer than a block: who reads the file whole says where.
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return pa.concat_tables(parts) if parts else None
