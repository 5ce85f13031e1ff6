"""Makes a table of the records of JSON and JSON lines; large JSON lines are read by blocks of them.

A record in Python takes many times the bytes of its text. So of a large file one block of records is there at a time, beside
the table that is made of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cggm_ray.core.errors import DataError, short_repr
from cggm_ray.data.formats.untrusted import parse_json, reading

BLOCK_CHARACTERS = 2**23
"""Characters of the lines that are parsed together."""
HALF_CHARACTER = "\\ud"
"""Beginning of the name of half a character, in lower case."""


def records_table(path: Path, records: Sequence[Any]) -> pa.Table:
    """Returns the rows of records; a column is there if some record names it.

    Args:
        path: of their file, for errors.
        records: what JSON holds.

    Raises:
        DataError: a record is no object, or the values of a column have several structures; the row is named.
    """
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {number}: found a {type(record).__name__}; expected an object with columns")
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: _column(path, name, [record.get(name) for record in records]) for name in names}
    return pa.table(columns)


def check_characters(path: Path, records: Sequence[Any]) -> None:
    """Raises a DataError for a record with half a character, which JSON can name in keys and texts and no text can hold."""
    for number, record in enumerate(records, 1):
        try:
            with reading(path, "JSON file"):
                whole = json.dumps(record, ensure_ascii=False)
            whole.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}, row {number}: found {error.object[error.start]!r}, half a character; expected Unicode"
            ) from None


def read_lines(path: Path, encoding: str, clean: Callable[[pa.Table], pa.Table]) -> pa.Table | None:
    """Returns the rows of JSON lines, read by blocks; None where only the whole file says what its table, or its fault, is.

    Args:
        path: of the file.
        encoding: in which every byte of it can be decoded.
        clean: makes the rows of a block those of the table.
    """
    parts: list[pa.Table] = []
    try:
        for lines in _blocks(path, encoding):
            records = [parse_json(line) for line in lines if line.strip()]
            if any(HALF_CHARACTER in line.lower() for line in lines):
                check_characters(path, records)
            if records:
                parts.append(clean(records_table(path, records)))
        return _joined(parts)
    # Who reads the file whole says where the fault is.
    except (DataError, OSError, ValueError, RecursionError, pa.ArrowException):
        return None


def _blocks(path: Path, encoding: str) -> Iterator[list[str]]:
    with path.open(encoding=encoding, newline="\n") as file:
        first = True
        while lines := file.readlines(BLOCK_CHARACTERS):
            if first:
                lines[0] = lines[0].removeprefix("\ufeff")
            first = False
            yield lines


def _joined(parts: Sequence[pa.Table]) -> pa.Table | None:
    """Returns the rows of all parts, with the types of all values together; None where these depend on more than the types."""
    names = list(dict.fromkeys(name for part in parts for name in part.column_names))
    fields = []
    for name in names:
        kind = pa.null()
        for part in parts:
            found = part.schema.field(name).type if name in part.column_names else pa.null()
            common = _common_type(kind, found)
            if common is None:
                return None
            kind = common
        fields.append(pa.field(name, kind))
    schema = pa.schema(fields)
    return pa.concat_tables([_with_schema(part, schema) for part in parts]) if parts else None


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type of values of both types together, or None where that depends on more than the types."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _common_type(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def _with_schema(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns a table with the columns of a schema; raises ArrowInvalid for an integer that no number of it can hold."""
    columns = [
        part.column(field.name).cast(field.type)
        if field.name in part.column_names
        else pa.nulls(part.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _column(path: Path, name: str, values: Sequence[Any]) -> pa.Array:
    """Returns the values of a column; plain values of several types become texts.

    Raises:
        DataError: names the row of the first that is of another structure than the others.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        nested = [row for row, value in enumerate(values) if isinstance(value, list | dict)]
        if not nested:
            return pa.array([None if value is None else str(value) for value in values], pa.string())
    kinds = {type(value) for value in values if value is not None}
    start = next(value for value in values if value is not None)
    row = next((row for row, v in enumerate(values) if v is not None and type(v) is not type(start)), nested[0])
    what = "lists of one kind of values" if kinds == {list} else f"a {type(start).__name__} as in the rows before"
    raise DataError(f"{path}, row {row + 1}, column {name}: found {short_repr(values[row])}; expected {what}")
