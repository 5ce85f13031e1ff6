"""Reads arrays by name from the files that people keep features in: a pickle, an npz, or parquet with tensor columns.

What comes back is the same for all of them: `FeatureTable`s by split, or a single one that is not split yet.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.parquet import read_parquet, tensor_shape
from cggm_ray.data.formats.safe_pickle import check_npy, load_pickle, npy_header
from cggm_ray.data.formats.untrusted import check_size, decoded, plain_array, reading
from cggm_ray.data.split_names import find_splits, split_of

WHOLE = ""
"""Name of a table that is not split."""
PRESENT_SUFFIX = "_present"
SUFFIXES = (".npz", ".pkl", ".pickle", ".parquet")


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Columns of the same samples.

    Attributes:
        where: file and split, for messages.
        columns: name to [N, ...]; rows that are missing are zero.
        present: name to bool [N], for columns in which rows are missing.
        steps: name to int64 [N], for sequences that were padded with zeros to the longest.
        available: names of all columns of the file, also of those that were not read.
    """

    where: str
    columns: dict[str, np.ndarray]
    available: tuple[str, ...]
    present: dict[str, np.ndarray] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)

    def column(self, name: str, what: str) -> np.ndarray:
        """A column by name; `what` is the option that named it.

        Raises:
            DataError: there is none; the message lists the columns.
        """
        if name in self.available and name not in self.columns:
            raise DataError(
                f"{self.where}: {what} {name!r} holds other things; expected numbers, texts, lists or tensors"
            )
        if name not in self.columns:
            raise DataError(f"{self.where}: {what} {name!r} is missing; found {listed(self.available)}")
        return self.columns[name]


def find_files(path: Path) -> list[Path]:
    """The feature files under a path: itself, or all parquet files of a folder, or the one other file that it holds.

    Raises:
        DataError: nothing that can be read.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: unknown suffix {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
        return [path]
    found = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    if not found:
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(found) != 1:
            raise DataError(f"{path}: found {len(found)} feature files; expected parquet files, or one .npz or .pkl")
    return found


def read_tables(files: Sequence[Path], root: Path, wanted: Callable[[str], bool]) -> dict[str, FeatureTable]:
    """The tables in the files, by split, or under `WHOLE`.

    Args:
        files: from `find_files(root)`.
        root: the path that the user gave.
        wanted: whether a column is of use; others are not read where the format allows it.

    Raises:
        DataError: names file and column.
    """
    if files[0].suffix == ".parquet":
        return _read_parquet(files, root, wanted)
    (path,) = files
    if path.suffix == ".npz":
        return {WHOLE: _table(*_read_npz(path, wanted), str(path), wanted)}
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: found a {type(content).__name__}; expected a dict of arrays, or of splits of them")
    names = {str(key): value for key, value in content.items()}
    splits = {split: names[name] for split, name in find_splits(names, str(path)).items()}
    if splits and all(isinstance(value, Mapping) for value in splits.values()):
        return {split: _table(fields, fields, f"{path}: split {split}", wanted) for split, fields in splits.items()}
    return {WHOLE: _table(content, content, str(path), wanted)}


def _read_npz(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The wanted arrays, and the names of all."""
    with reading(path, ".npz file"), zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
        chosen = {name: member for name, member in members.items() if wanted(name)}
        claimed = sum(member.file_size for member in chosen.values())
        check_size(claimed, path.stat().st_size, f"{path}: arrays {listed(chosen)}", "np.savez keeps them uncompressed")
        columns = {}
        for name, member in chosen.items():
            where = f"{path}, field {name}"
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{where}: compressed by method {member.compress_type}; expected what np.savez writes")
            with archive.open(member) as file:
                shape, _, dtype = npy_header(file)
                if dtype.hasobject:
                    raise DataError(f"{where}: found an array of objects; expected numbers or texts")
                check_npy(shape, dtype, member.file_size - file.tell(), where)
            with archive.open(member) as file:
                columns[name] = npy.read_array(file, allow_pickle=False)
        return columns, list(members)


def _table(
    fields: Mapping[Any, Any], available: Iterable[Any], where: str, wanted: Callable[[str], bool]
) -> FeatureTable:
    """Arrays by name, with `<name>_present` beside them, as a table."""
    columns = {
        str(name): plain_array(value, f"{where}, field {name}") for name, value in fields.items() if wanted(str(name))
    }
    single = {name for name, values in columns.items() if not values.ndim}
    columns = {name: values for name, values in columns.items() if name not in single}
    present = {}
    for name in list(columns):
        flags = columns.pop(name + PRESENT_SUFFIX, None) if name in columns else None
        if flags is None:
            continue
        if flags.shape != columns[name].shape[:1] or not np.isin(flags, (0, 1)).all():
            raise DataError(
                f"{where}, field {name + PRESENT_SUFFIX}: shape {flags.shape} of {flags.dtype}; expected a bool for each of "
                f"the {len(columns[name])} samples"
            )
        present[name] = flags.astype(bool)
        columns[name] = _blank(columns[name], present[name])
    names = tuple(str(name) for name in available if name not in single and not str(name).endswith(PRESENT_SUFFIX))
    return FeatureTable(where=where, columns=columns, present=present, available=names)


def _blank(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The same with zeros in the rows that are missing."""
    if present.all() or values.dtype.kind not in "biuf":
        return values
    values = values.copy()
    values[~present] = 0
    return values


def _read_parquet(files: Sequence[Path], root: Path, wanted: Callable[[str], bool]) -> dict[str, FeatureTable]:
    grouped: dict[str, list[Path]] = {}
    for file in files:
        grouped.setdefault(_split_of(file, root), []).append(file)
    if WHOLE in grouped and len(grouped) > 1:
        raise DataError(
            f"{grouped[WHOLE][0]}: belongs to no split, while others do; expected folders or names train, valid, test, or none"
        )
    return {split: _read_table(paths, split, root, wanted) for split, paths in grouped.items()}


def _split_of(file: Path, root: Path) -> str:
    """The split that a folder below the root, or the beginning of the name, says: train/x.parquet, train-00.parquet."""
    places = [*file.relative_to(root).parts[:-1], file.stem] if root.is_dir() else [file.stem]
    for place in places:
        split = split_of(place.replace("_", "-").split("-")[0])
        if split is not None and root.is_dir():
            return split
    return WHOLE


def _read_table(files: Sequence[Path], split: str, root: Path, wanted: Callable[[str], bool]) -> FeatureTable:
    parts = [read_parquet(file, wanted) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.column_names != parts[0].column_names:
            raise DataError(
                f"{file}: found the columns {listed(part.column_names)}; expected those of {files[0]}, "
                f"{listed(parts[0].column_names)}"
            )
    where = f"{root}: split {split}" if split else str(files[0] if len(files) == 1 else root)
    columns, present, steps = {}, {}, {}
    for name in parts[0].column_names:
        place = f"{where}, column {name}"
        found = []
        for file, part in zip(files, parts, strict=True):
            with reading(file, "parquet file"):
                found.append(_column(part.column(name), part.schema.field(name), file, place))
        valid = np.concatenate([flags for _, flags in found])
        rows = [row for values, _ in found for row in values]
        columns[name], lengths = _stacked(rows, valid, place)
        if not valid.all():
            present[name] = valid
        if lengths is not None:
            steps[name] = lengths
    return FeatureTable(
        where=where, columns=columns, present=present, steps=steps, available=tuple(pq.read_schema(files[0]).names)
    )


def _column(column: pa.ChunkedArray, schema: pa.Field, file: Path, where: str) -> tuple[list[Any], np.ndarray]:
    """The rows of a column that are not null, each an array or a scalar, and which rows those are."""
    valid = np.concatenate(
        [chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in column.chunks] or [np.empty(0, bool)]
    )
    kept = column.drop_null()
    shape = tensor_shape(schema)
    if shape is not None:
        chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in kept.chunks]
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
        return [row for values in flat for row in values.reshape(-1, *shape)], valid
    if pa.types.is_dictionary(schema.type):
        return _texts(kept, file, where), valid
    values = [value for chunk in kept.chunks for value in chunk.to_numpy(zero_copy_only=False)]
    if not pa.types.is_nested(schema.type):
        return values, valid
    try:
        return [_nested(value) for value in values], valid
    except ValueError as error:
        raise DataError(f"{where}: lists that do not make an array: {error}") from None


def _texts(column: pa.ChunkedArray, file: Path, where: str) -> list[str]:
    """The texts of a column that was read as a dictionary, so that one which is there many times takes memory once."""
    texts: list[str] = []
    for chunk in column.chunks:
        entries = [decoded(entry) for entry in chunk.dictionary.to_pylist()]
        longest = max(map(len, entries), default=0)
        check_size(4 * len(column) * longest, file.stat().st_size, where, "one text is much longer than others")
        texts += [entries[code] for code in chunk.indices.to_pylist()]
    return texts


def _nested(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return np.stack([_nested(item) for item in array]) if array.dtype.kind == "O" and len(array) else array


def _stacked(rows: list[Any], valid: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows as one array [N, ...] with zeros where they are missing; sequences of several lengths padded, with the lengths.

    Raises:
        DataError: rows of several shapes that are not sequences of the same width.
    """
    arrays = [np.asarray(row) for row in rows]
    numbers = np.flatnonzero(valid)
    first = arrays[0] if arrays else np.zeros(())
    for row, array in zip(numbers, arrays, strict=True):
        if (
            array.ndim != first.ndim
            or array.shape[1:] != first.shape[1:]
            or (array.ndim == 1 and array.shape != first.shape)
        ):
            raise DataError(f"{where}, row {row}: shape {array.shape}; row {numbers[0]} has {first.shape}")
    if first.ndim == 0:
        scalars = np.array(rows) if rows else np.zeros(0)
        whole = np.zeros(len(valid), scalars.dtype)
        whole[valid] = scalars
        return whole, None
    lengths = np.zeros(len(valid), np.int64)
    lengths[valid] = [len(array) for array in arrays]
    stacked = np.zeros((len(valid), int(lengths.max(initial=0)), *first.shape[1:]), first.dtype)
    for row, array in zip(numbers, arrays, strict=True):
        stacked[row, : len(array)] = array
    return stacked, None if len(set(lengths[valid].tolist())) <= 1 else lengths
