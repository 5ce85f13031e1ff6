"""Reads the files of tables: CSV, JSON lines, parquet, Arrow files of the library `datasets`, npz. No code in them runs.

A CSV has texts alone, so its numbers are recognised later, column by column; a wrong cell is then named by its row.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.data.datasets.table.cells import FileRows, is_text, without_missing
from cggm_ray.data.datasets.table.csv_blocks import first_text, plain_encoding, read_blocks
from cggm_ray.data.datasets.table.json_records import HALF_CHARACTER, check_characters, read_lines, records_table
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.datasets.table.places import large_media, places
from cggm_ray.data.formats.columns import LEAST_BYTES
from cggm_ray.data.formats.npz import read_npz
from cggm_ray.data.formats.packed import is_packed, read_unpacked, suffix_of
from cggm_ray.data.formats.untrusted import check_size, parse_json, read_encoded, reading
from cggm_ray.storage.places import is_local

DELIMITERS = ",;\t|"
FALLBACK = "windows-1252"
_FALLBACK_SAID = "Windows-1252, because it is not UTF-8 (--encoding names another)"
_NAMES = {"\t": "tab"}
CSV = (".csv", ".tsv", ".txt")
JSON = (".json", ".jsonl", ".ndjson")
MEDIA_KINDS = ("image", "audio", "video")
_SAMPLE = 2**16
"""Characters from which the delimiter is chosen."""
_RECORDS = 100


def read_table(path: Path, options: TableOptions) -> FileRows:
    """Returns the rows of a file.

    Raises:
        DataError: it cannot be read; a row of a text file is named.
    """
    suffix = suffix_of(path)
    large = _large_csv if suffix in CSV and is_local(path) else _large_json_lines if suffix in JSON else None
    found = None if large is None or is_packed(path) else large(path, options)
    if found is None:
        table, about = _READERS[suffix](path, options)
        found = without_missing(table, options.missing_values), about
    table, about = found
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: found the column {short_repr(twice[0])} twice; expected every column once")
    if not table.num_rows:
        raise DataError(f"{path}: found no row; expected at least one")
    return FileRows(path=path, table=table, about=about)


def _large_csv(path: Path, options: TableOptions) -> tuple[pa.Table, str] | None:
    """Returns the rows of a large file without missing cells; None for a small one, and for one that must be read whole."""
    with reading(path, "CSV file"):
        if path.stat().st_size < LEAST_BYTES:
            return None
        encoding = plain_encoding(path, options.encoding, FALLBACK)
        if encoding is None:
            return None
        start = first_text(path, encoding, _SAMPLE)
    delimiter = _delimiter(start, path.suffix.lower(), options.delimiter)
    header = _header(path, start, delimiter, options.column_names)
    clean = functools.partial(without_missing, tokens=options.missing_values)
    names, given = _column_names(header), options.column_names is None
    table = read_blocks(path, encoding, delimiter, header, names, has_header=given, clean=clean)
    said = _encoding_in_words(encoding, options.encoding)
    return None if table is None else (table, f"CSV in {said}, delimiter {_NAMES.get(delimiter, repr(delimiter))}")


def _large_json_lines(path: Path, options: TableOptions) -> tuple[pa.Table, str] | None:
    """Returns the rows of a large file without missing cells; None for a small one, and for one that must be read whole."""
    with reading(path, "JSON file"):
        if path.stat().st_size < LEAST_BYTES:
            return None
        encoding = plain_encoding(path, options.encoding, FALLBACK)
        if encoding is None or first_text(path, encoding, _SAMPLE).lstrip().startswith("["):
            return None
    clean = functools.partial(without_missing, tokens=options.missing_values)
    table = read_lines(path, encoding, clean)
    return None if table is None else (table, f"JSON lines in {_encoding_in_words(encoding, options.encoding)}")


def _encoding_in_words(encoding: str, given: str | None) -> str:
    return "UTF-8" if encoding == "utf-8" else given or _FALLBACK_SAID


def _header(path: Path, text: str, delimiter: str, given: Sequence[str] | None) -> list[str]:
    """Returns the names of the columns: the given ones, or those in the first row.

    Raises:
        DataError: there is none, their number is another one, or a name stands there twice.
    """
    csv.field_size_limit(2**31 - 1)
    with reading(path, "CSV file"):
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), None)
    if not header:
        raise DataError(f"{path}: the file is empty; expected a header with the names of the columns, and rows")
    if given is not None and len(given) != len(header):
        raise DataError(f"{path}: found {len(header)} columns in the first row; expected {len(given)}, {listed(given)}")
    if given is not None:
        header = list(given)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}: found the column {short_repr(twice)} twice in the header; expected every column once")
    return header


def _column_names(header: Sequence[str]) -> list[str]:
    return [name.strip() or f"Unnamed: {number}" for number, name in enumerate(header)]


def _csv(path: Path, options: TableOptions) -> tuple[pa.Table, str]:
    text, encoding = _decoded(path, options.encoding)
    delimiter = _delimiter(text, suffix_of(path), options.delimiter)
    given = options.column_names
    header = _header(path, text, delimiter, given)
    content = text.encode()
    wrong: list[Any] = []

    def refuse(row: Any) -> str:
        wrong.append(row)
        return "error"

    try:
        with reading(path, "CSV file"):
            table = pyarrow.csv.read_csv(
                pa.BufferReader(content),
                # One block, so that no cell is cut and rows are counted.
                pyarrow.csv.ReadOptions(
                    use_threads=False,
                    block_size=max(2**20, len(content) + 1),
                    column_names=None if given is None else header,
                ),
                pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
                pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()), null_values=[], strings_can_be_null=False
                ),
            )
    except DataError:
        if not wrong:
            raise
        row = wrong[0].number - (given is None)
        raise DataError(
            f"{path}, row {row}: found {wrong[0].actual_columns} columns; expected {len(header)} as "
            f"in the first row, {short_repr(wrong[0].text)} (a text with delimiters needs quotes)"
        ) from None
    shown = _NAMES.get(delimiter, repr(delimiter))
    return table.rename_columns(_column_names(header)), f"CSV in {encoding}, delimiter {shown}"


def _delimiter(text: str, suffix: str, given: str | None) -> str:
    """Returns the given delimiter, or the one that cuts the first rows into the same number of columns, the most of them."""
    if given is not None:
        return "\t" if given == "tab" else given
    best, choice = (0.0, 0), "\t" if suffix == ".tsv" else ","
    for delimiter in DELIMITERS if suffix != ".tsv" else "\t,;|":
        # The last record of the sample may be cut.
        reader = csv.reader(io.StringIO(text[:_SAMPLE], newline=""), delimiter=delimiter)
        try:
            records = [record for record in itertools.islice(reader, _RECORDS) if record]
        except csv.Error:
            continue
        records = records[:-1] if len(text) > _SAMPLE and len(records) > 1 else records
        if not records or len(records[0]) < 2:
            continue
        same = sum(len(record) == len(records[0]) for record in records) / len(records)
        if (same, len(records[0])) > best:
            best, choice = (same, len(records[0])), delimiter
    return choice


def _decoded(path: Path, encoding: str | None) -> tuple[str, str]:
    """Returns the text of a file and the name of its encoding.

    Raises:
        DataError: it is in another encoding than the given one, or in none that is known.
    """
    if encoding is None:
        try:
            return read_encoded(path, "text file", read_unpacked)
        except DataError as error:
            if "which is not utf-8" not in str(error):
                raise
    try:
        name = codecs.lookup(encoding or FALLBACK).name
    except LookupError:
        raise DataError(f"encoding: unknown {encoding!r}; expected a name such as utf-8 or windows-1252") from None
    with reading(path, "text file"):
        content = read_unpacked(path)
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: found byte 0x{content[error.start]:02x}, which is not {name}; expected the encoding of the "
            "file as --encoding"
        ) from None
    return text, encoding or _FALLBACK_SAID


def _json(path: Path, options: TableOptions) -> tuple[pa.Table, str]:
    text, encoding = _decoded(path, options.encoding)
    if suffix_of(path) == ".json" and text.lstrip().startswith("["):
        with reading(path, "JSON file"):
            records = parse_json(text)
        about = f"JSON in {encoding}"
    else:
        records, about = [], f"JSON lines in {encoding}"
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    with reading(path, "JSON file"):
                        records.append(parse_json(line))
                except DataError as error:
                    raise DataError(str(error).replace(f"{path}:", f"{path}, line {number}:", 1)) from None
    if HALF_CHARACTER in text.lower():
        check_characters(path, records)
    return records_table(path, records), about


def _parquet(path: Path, options: TableOptions) -> tuple[pa.Table, str]:
    with reading(path, "parquet file"):
        with pq.ParquetFile(path) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
        texts = [field.name for field in schema if is_text(field.type)]
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        values = sum(group.column(n).num_values for group in groups for n in range(group.num_columns))
        held = path.stat().st_size
        check_size(max(4 * values, sum(group.total_byte_size for group in groups)), held, str(path))
        with pq.ParquetFile(path, read_dictionary=texts) as parquet:
            kept = [name for name in large_media(parquet) if _stays(path, options.kinds().get(name))]
            found = {name: places(path, name) for name in kept}
            found = {name: cells for name, cells in found.items() if cells is not None}
            table = parquet.read([name for name in schema.names if name not in found])
            for name, cells in found.items():
                table = table.append_column(name, cells)
            table = table.select(schema.names)
            # Texts of a damaged file may be none.
            table.validate(full=True)
        for name in texts:
            _check_texts(table.column(name), held, f"{path}, column {name}")
    return _with_class_names(table, path), "parquet"


def _stays(path: Path, kind: str | None) -> bool:
    """Returns whether contents of media may stay in a file: it is no copy, and no kind of a user's own wants them."""
    own = any(COLUMN_KINDS.place(name) is not None for name in COLUMN_KINDS.names())
    return is_local(path) and not own and kind in (None, *MEDIA_KINDS)


def _check_texts(column: pa.ChunkedArray, held: int, where: str) -> None:
    """Raises a DataError where texts, which a dictionary may repeat, are far larger than their file."""
    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            lengths = pc.binary_length(chunk.dictionary).to_numpy(zero_copy_only=False)
            codes = chunk.indices.drop_null().to_numpy(zero_copy_only=False)
            total += int(np.asarray(lengths, np.int64)[codes].sum()) if len(lengths) else 0
    check_size(total, held, where)


def _arrow(path: Path, options: TableOptions) -> tuple[pa.Table, str]:
    with reading(path, "Arrow file"):
        # Not mapped into memory: a file that shrinks meanwhile would end the process.
        content = pa.py_buffer(path.read_bytes())
        try:
            table = pa.ipc.open_stream(content).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(content).read_all()
        # Offsets of a damaged file may lead anywhere.
        table.validate(full=True)
    check_size(table.nbytes, len(content), str(path))
    return _with_class_names(table, path), "Arrow"


def _npz(path: Path, options: TableOptions) -> tuple[pa.Table, str]:
    arrays, _ = read_npz(path, lambda name: True)
    lengths = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: found {listed(f'{n} of {k}' for n, k in lengths.items())}; expected one length")
    columns: dict[str, pa.Array] = {}
    for name, values in ((name, np.asarray(values)) for name, values in arrays.items()):
        if values.ndim > 1:
            columns[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
        else:
            columns[name] = pa.array(values.tolist() if values.dtype.kind == "U" else values)
    return pa.table(columns), "npz"


def _with_class_names(table: pa.Table, path: Path) -> pa.Table:
    """Returns the table with the names of classes in place of their numbers, where the library `datasets` wrote these names.

    The number -1 stands for a label that is not known.
    """
    for column, names in class_labels(table.schema.metadata or {}).items():
        if column not in table.column_names or not pa.types.is_integer(table.schema.field(column).type):
            continue
        numbers = table.column(column).to_pylist()
        bad = next((row for row, v in enumerate(numbers) if v is not None and not -1 <= v < len(names)), None)
        if bad is not None:
            raise DataError(
                f"{path}, row {bad + 1}, column {column}: found {numbers[bad]}; expected the number of a class"
            )
        texts = pa.array([None if v is None or v < 0 else names[v] for v in numbers], pa.string())
        table = table.set_column(table.column_names.index(column), column, texts)
    return table


def class_labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Returns the names of classes that the library `datasets` keeps in the metadata of a schema, by column."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel" and all(isinstance(one, str) for one in feature["names"])
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


_READERS: Mapping[str, Callable[[Path, TableOptions], tuple[pa.Table, str]]] = {
    **dict.fromkeys(CSV, _csv),
    **dict.fromkeys(JSON, _json),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".npz": _npz,
}
