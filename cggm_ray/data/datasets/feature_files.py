"""Reads arrays by name from files of features: a pickle, an npz, or parquet with tensor columns.

The result is the same for all of them: `FeatureTable`s by split, or a single one that is not split yet.
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
from cggm_ray.data.formats.foreign import foreign_kind
from cggm_ray.data.formats.layouts import WHOLE, columns_by_split
from cggm_ray.data.formats.parquet import read_parquet, tensor_shape
from cggm_ray.data.formats.safe_pickle import check_npy, load_pickle, npy_header
from cggm_ray.data.formats.stacked import column_of, names_of, stack_rows
from cggm_ray.data.formats.untrusted import check_size, decoded, reading
from cggm_ray.data.split_names import find_splits, split_of

PRESENT_SUFFIX = "_present"
SUFFIXES = (".npz", ".pkl", ".pickle", ".parquet")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Suffixes of files that the recipe `table` reads."""
PICKLES = (".pkl", ".pickle")
IDENTITY = "id"


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Columns of the same samples.

    Attributes:
        where: file and split, for messages.
        columns: name to [N, ...]; rows that are missing are zero.
        present: name to bool [N], for columns in which rows are missing.
        steps: name to int64 [N], for sequences that were padded with zeros to the longest.
        available: names of all columns of the file, also of those that were not read.
        unread: name to the reason why a column was not read.
    """

    where: str
    columns: dict[str, np.ndarray]
    available: tuple[str, ...]
    present: dict[str, np.ndarray] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def column(self, name: str, what: str) -> np.ndarray:
        """Returns a column by name; `what` is the option that named it.

        Raises:
            DataError: there is none; the message lists the columns.
        """
        if name in self.unread:
            raise DataError(self.unread[name])
        if name in self.available and name not in self.columns:
            raise DataError(
                f"{self.where}: {what} {name!r} holds other things; expected numbers, texts, lists or tensors"
            )
        if name not in self.columns:
            raise DataError(f"{self.where}: {what} {name!r} is missing; found {listed(self.available)}")
        return self.columns[name]


def find_files(path: Path) -> list[Path]:
    """Returns the feature files under a path: the path itself, all parquet files of a folder, or its single other file.

    Raises:
        DataError: nothing that can be read.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            with reading(path, "file"):
                kind = foreign_kind(path)
            what = f"unknown suffix {path.suffix!r}" if kind is None else kind
            other = "; cggm train table reads it" if path.suffix.lower() in TABLES else ""
            raise DataError(f"{path}: {what}; expected one of {', '.join(SUFFIXES)}{other}")
        return [path]
    found = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    if not found:
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(found) != 1 and not split_pickles(found, path):
            raise DataError(
                f"{path}: found {len(found)} feature files; expected parquet files, one .npz or .pkl, or a .pkl for each split"
            )
    return found


def read_tables(files: Sequence[Path], root: Path, wanted: Callable[[str], bool]) -> dict[str, FeatureTable]:
    """Returns the tables in the files, by split, or under `WHOLE`.

    Args:
        files: from `find_files(root)`.
        root: the path that the user gave.
        wanted: whether a column is of use; others are not read where the format allows it.

    Raises:
        DataError: names file and column.
    """
    if files[0].suffix == ".parquet":
        return _read_parquet(files, root, wanted)
    if files[0].suffix == ".npz":
        (path,) = files
        return {WHOLE: column_table(*read_npz(path, wanted), str(path), wanted)}
    where = str(files[0] if len(files) == 1 else root)
    return pickle_tables({file: load_pickle(file) for file in files}, where, wanted)


def pickle_tables(contents: Mapping[Path, Any], where: str, wanted: Callable[[str], bool]) -> dict[str, FeatureTable]:
    """Returns the tables in one pickle, or in several pickles that are named after splits.

    Raises:
        DataError: it is no set, or a column of features cannot be read.
    """
    return {
        split: column_table(fields, fields, f"{where}: split {split}" if split else where, wanted)
        for split, fields in columns_by_split(contents, where).items()
    }


def split_pickles(files: Sequence[Path], folder: Path) -> bool:
    """Returns whether each of these pickles is named after a split, such as train.pkl, dev.pkl and test.pkl.

    Raises:
        DataError: two are named after the same one.
    """
    pickles = len(files) > 1 and all(file.suffix in PICKLES for file in files)
    return pickles and len(find_splits([file.stem for file in files], str(folder))) == len(files)


def read_npz(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the wanted arrays, and the names of all."""
    with reading(path, ".npz file"):
        kind = foreign_kind(path)
        if kind is not None and not kind.endswith("name it .npz") and path.stat().st_size:
            raise DataError(f"{path}: no .npz file but {kind}")
    with reading(path, ".npz file"), zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
        chosen = {name: member for name, member in members.items() if wanted(name)}
        declared = sum(member.file_size for member in chosen.values())
        check_size(
            declared, path.stat().st_size, f"{path}: arrays {listed(chosen)}", "np.savez keeps them uncompressed"
        )
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


def column_table(
    fields: Mapping[str, Any], available: Iterable[str], where: str, wanted: Callable[[str], bool]
) -> FeatureTable:
    """Returns the columns by name, with `<name>_present` beside them, as a table.

    An unreadable column is an error only if it is used, because sets also hold columns without features.

    Args:
        fields: name to what a file holds.
        available: names of all columns of the file.
        where: file and split, for messages.
        wanted: whether a column is of use.

    Raises:
        DataError: a column about presence is none.
    """
    columns, missing, steps, unread = {}, {}, {}, {}
    for name, value in fields.items():
        if not wanted(name):
            continue
        try:
            if name == IDENTITY:
                columns[name] = names_of(value, f"{where}, field {name}")
                continue
            columns[name], there, lengths = column_of(value, f"{where}, field {name}")
        except DataError as error:
            unread[name] = str(error)
            continue
        if there is not None:
            missing[name] = there
        if lengths is not None:
            steps[name] = lengths
    single = {name for name, values in columns.items() if not values.ndim}
    columns = {name: values for name, values in columns.items() if name not in single}
    present = missing
    for name in list(columns):
        flags = columns.pop(name + PRESENT_SUFFIX, None) if name in columns else None
        if flags is None:
            continue
        if flags.shape != columns[name].shape[:1] or not np.isin(flags, (0, 1)).all():
            raise DataError(
                f"{where}, field {name + PRESENT_SUFFIX}: shape {flags.shape} of {flags.dtype}; expected a bool for each of "
                f"the {len(columns[name])} samples"
            )
        present[name] = flags.astype(bool) & present.get(name, True)
        columns[name] = _blank(columns[name], present[name])
    names = tuple(name for name in available if name not in single and not name.endswith(PRESENT_SUFFIX))
    return FeatureTable(where=where, columns=columns, present=present, steps=steps, available=names, unread=unread)


def _blank(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Returns the values with zeros in the rows that are missing."""
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
    """Returns the split that a folder below the root, or the start of the name, states: train/x.parquet, train-00.parquet."""
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
        columns[name], lengths = stack_rows(rows, valid, place)
        if not valid.all():
            present[name] = valid
        if lengths is not None:
            steps[name] = lengths
    return FeatureTable(
        where=where, columns=columns, present=present, steps=steps, available=tuple(pq.read_schema(files[0]).names)
    )


def _column(column: pa.ChunkedArray, schema: pa.Field, file: Path, where: str) -> tuple[list[Any], np.ndarray]:
    """Returns the rows of a column that are not null, each an array or a scalar, and their positions."""
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
    """Returns the texts of a column that was read as a dictionary, so that repeated texts share memory."""
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
