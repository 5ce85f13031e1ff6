"""Rows of a table as they come from files, and the cells of one of its columns, each of which knows its file and row."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.core.registry import nearest
from cggm_ray.data.formats.packed import suffix_of


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """The rows of one file.

    Attributes:
        path: of the file.
        table: whose column names are unique; texts that mean a missing cell are null.
        about: format of the file in words.
    """

    path: Path
    table: pa.Table
    about: str


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where rows come from.

    Attributes:
        files: of the rows, one after the other.
        counts: rows of each file.
        kept: numbers of the rows that are still there, counted over all files; None for all.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    kept: np.ndarray | None = None

    def of(self, row: int) -> str:
        """Returns file and row in words; the first row of a file, after its header, is row 1."""
        number = row if self.kept is None else int(self.kept[row])
        ends = list(accumulate(self.counts))
        file = bisect.bisect_right(ends, number)
        return f"{self.files[file]}, row {number - (ends[file] - self.counts[file]) + 1}"

    def file(self, row: int) -> Path:
        """Returns the file of a row."""
        number = row if self.kept is None else int(self.kept[row])
        return self.files[bisect.bisect_right(list(accumulate(self.counts)), number)]


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of a column.

    Attributes:
        name: of the column.
        values: a null where a cell is missing.
        places: of the rows.
    """

    name: str
    values: pa.Array
    places: Places

    def __len__(self) -> int:
        return len(self.values)

    @property
    def there(self) -> np.ndarray:
        """Which cells are not missing, bool [N]."""
        there: np.ndarray = self.values.is_valid().to_numpy(zero_copy_only=False)
        return there

    def wrong(self, row: int, expected: str, found: object = None) -> DataError:
        """Returns the error for a cell: file, row, column, what was found and what was expected."""
        value = self.values[row].as_py() if found is None else found
        return DataError(f"{self.places.of(row)}, column {self.name}: found {short_repr(value)}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one split, or of all.

    Attributes:
        table: of them.
        places: where each comes from.
    """

    table: pa.Table
    places: Places

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def where(self) -> str:
        """The file, or the first of several, in words."""
        more = f" and {len(self.places.files) - 1} more" if len(self.places.files) > 1 else ""
        return f"{self.places.files[0]}{more}"

    def cells(self, column: str) -> Cells:
        """Returns the cells of a column; one that is missing in every row has no type that a kind could refuse."""
        values = combined(self.table.column(column))
        if values.null_count == len(values):
            values = pa.nulls(len(values))
        return Cells(name=column, values=values, places=self.places)

    def take(self, rows: np.ndarray) -> Rows:
        """Returns some of the rows."""
        kept = rows if self.places.kept is None else self.places.kept[rows]
        return Rows(table=self.table.take(pa.array(rows)), places=replace(self.places, kept=kept))

    def only(self, names: Collection[str | None]) -> Rows:
        """Returns the rows with those of the columns that there are."""
        return replace(self, table=self.table.select([name for name in self.table.column_names if name in names]))

    def check_column(self, what: str, name: str) -> None:
        """Raises a DataError where a column that an option names does not exist; the message lists the columns."""
        if name not in self.table.column_names:
            csv = suffix_of(self.places.files[0]) in (".csv", ".tsv", ".txt") and what == "target"
            hint = " (--column_names names those of a file without a header)" if csv else ""
            raise DataError(
                f"{self.where}: {what} {name!r} is missing{nearest(name, self.table.column_names)}; found the columns "
                f"{listed(self.table.column_names)}{hint}"
            )


def joined(parts: Sequence[FileRows]) -> Rows:
    """Returns the rows of several files of one split, which must have the same columns.

    Raises:
        DataError: a file lacks a column, or has it in another type.
    """
    first = parts[0]
    for part in parts[1:]:
        differing = set(first.table.column_names) ^ set(part.table.column_names)
        if differing:
            raise DataError(
                f"{part.path}: found the columns {listed(part.table.column_names)}; expected those of {first.path}; "
                f"{listed(sorted(differing))} differ"
            )
    names = first.table.column_names
    try:
        table = pa.concat_tables([part.table.select(names) for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{first.path} and {len(parts) - 1} more: columns of different types: {error}") from None
    places = Places(files=tuple(part.path for part in parts), counts=tuple(part.table.num_rows for part in parts))
    return Rows(table=table, places=places)


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns a column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def without_missing(table: pa.Table, tokens: Collection[str]) -> pa.Table:
    """Returns a table in which texts that mean a missing cell, NaN, and structures without content are null.

    Decimal numbers, as databases have them, become those of double precision, and parts of nested columns columns of their
    own: address.city.

    Args:
        table: as it was read.
        tokens: texts that mean a missing cell; so does a text of spaces only.
    """
    marks = pa.array(sorted({"", *tokens}))
    table = _unnested(table)
    for number, field in enumerate(table.schema):
        column = table.column(number)
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        if pa.types.is_large_string(column.type):
            column = column.cast(pa.string())
        if pa.types.is_string(column.type):
            gone = pc.is_in(pc.utf8_trim_whitespace(column), marks)
            column = pc.if_else(gone, pa.scalar(None, pa.string()), column)
        elif pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        elif pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column.cast(pa.float64())), pa.scalar(None, column.type), column)
        elif pa.types.is_struct(column.type) and is_media(column.type):
            gone = pc.and_(*(pc.is_null(pc.struct_field(column, [name])) for name in ("bytes", "path")))
            column = pc.if_else(gone, pa.scalar(None, column.type), column)
        table = table.set_column(number, field.name, column)
    return table


def _unnested(table: pa.Table) -> pa.Table:
    """Returns a table with the parts of its structures, which are no media, as columns in their place."""
    columns: list[tuple[str, pa.Array | pa.ChunkedArray]] = list(zip(table.column_names, table.columns, strict=True))
    while any(_is_nested(column.type) for _, column in columns):
        parts: list[tuple[str, pa.Array | pa.ChunkedArray]] = []
        for name, column in columns:
            if _is_nested(column.type):
                names = [f"{name}.{column.type.field(number).name}" for number in range(column.type.num_fields)]
                parts += zip(names, combined(column).flatten(), strict=True)
            else:
                parts.append((name, column))
        columns = parts
    return pa.table([column for _, column in columns], [name for name, _ in columns])


def _is_nested(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.num_fields > 0 and not is_media(kind)


def is_media(kind: pa.DataType) -> bool:
    """Returns whether a type is the structure of bytes and path in which the library `datasets` keeps media."""
    return pa.types.is_struct(kind) and {kind.field(n).name for n in range(kind.num_fields)} == {"bytes", "path"}


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a type holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    """Returns whether a type holds numbers, or true and false."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def as_texts(values: pa.Array) -> pa.Array:
    """Returns cells as texts, in the same way from every format: 3.0 and 3 are both '3', and lists of texts are joined."""
    if is_text(values.type):
        # A column of whole numbers in which some are missing is often written with decimals.
        return pc.replace_substring_regex(pc.utf8_trim_whitespace(values), r"^([+-]?\d+)\.0+$", r"\1")
    if pa.types.is_floating(values.type):
        wide = values.cast(pa.float64())
        texts = [None if v is None else str(int(v)) if v.is_integer() else repr(v) for v in wide.to_pylist()]
        return pa.array(texts, pa.string())
    if is_list(values.type):
        rows = values.to_pylist()
        return pa.array([None if row is None else " ".join(str(part) for part in row) for row in rows], pa.string())
    try:
        return values.cast(pa.string())
    # Structures, and bytes that are no text.
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())


def concatenated(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of several splits, one after the other; a column that some lack is missing there.

    Raises:
        DataError: a column has other types.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{parts[0].where}: columns of different types in several splits: {error}") from None
    files = tuple(file for part in parts for file in part.places.files)
    counts = tuple(count for part in parts for count in part.places.counts)
    return Rows(table=table, places=Places(files=files, counts=counts))
