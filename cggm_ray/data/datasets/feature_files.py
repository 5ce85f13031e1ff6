"""Reads arrays by name from files of features: pickles, npz, npy, safetensors, h5, torch's, or parquet with tensor columns.

The result is the same for all of them: `FeatureTable`s by split, or a single one that is not split yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.datasets.feature_parquet import read_columns
from cggm_ray.data.datasets.modality_files import CSV, modality_columns
from cggm_ray.data.formats.columns import Column, Rows, mapped
from cggm_ray.data.formats.foreign import foreign_kind
from cggm_ray.data.formats.h5_arrays import read_h5
from cggm_ray.data.formats.layouts import IDENTITY, WHOLE, columns_by_split, split_columns
from cggm_ray.data.formats.npz import read_npz
from cggm_ray.data.formats.safe_pickle import load_pickle
from cggm_ray.data.formats.stacked import column_of, names_of
from cggm_ray.data.formats.stored import read_npy, read_safetensors
from cggm_ray.data.formats.torch_file import read_torch
from cggm_ray.data.formats.untrusted import reading
from cggm_ray.data.split_names import find_splits, says_rows, split_of

PRESENT_SUFFIX = "_present"
PICKLES = (".pkl", ".pickle")
H5 = (".h5", ".hdf5")
TORCH = (".pt", ".pth")
NPY, PARQUET = ".npy", ".parquet"
SUFFIXES = (".npz", *PICKLES, PARQUET, ".safetensors", *H5, *TORCH)
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Suffixes of files that the recipe `table` reads."""


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Columns of the same samples.

    Attributes:
        where: file and split, for messages.
        columns: name to [N, ...], some of which are read by rows; rows that are missing are zero.
        present: name to bool [N], for columns in which rows are missing.
        steps: name to int64 [N], for sequences that were padded with zeros to the longest.
        available: names of all columns of the file, also of those that were not read.
        unread: name to the reason why a column was not read.
    """

    where: str
    columns: dict[str, np.ndarray | Column]
    available: tuple[str, ...]
    present: dict[str, np.ndarray] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def column(self, name: str, what: str) -> np.ndarray | Column:
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
            hint = " (--target names the column)" if what == "target" else ""
            raise DataError(f"{self.where}: {what} {name!r} is missing; found {listed(self.available)}{hint}")
        return self.columns[name]


def find_files(path: Path) -> list[Path]:
    """Returns the feature files under a path: the path itself, all parquet files of a folder, its other file, one for each
    split or modality, or all .npy files.

    Raises:
        DataError: nothing that can be read.
    """
    if path.is_file():
        if path.suffix not in (*SUFFIXES, NPY):
            with reading(path, "file"):
                kind = foreign_kind(path)
            what = f"unknown suffix {path.suffix!r}" if kind is None else kind
            other = "; cggm train table reads it" if path.suffix.lower() in TABLES else ""
            raise DataError(f"{path}: {what}; expected one of {', '.join(SUFFIXES)}{other}")
        return [path]
    found = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    if not found:
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not found:
            found = sorted(file for file in path.rglob("*.npy") if not file.name.startswith((".", "_")))
        elif len(found) > 1 and not split_files(found, path):
            found += sorted(file for file in path.iterdir() if file.suffix.lower() in CSV)
    if not found:
        raise DataError(
            f"{path}: found 0 feature files; expected parquet files, one of {', '.join(SUFFIXES)}, one for each split, or .npy "
            "files"
        )
    return found


def read_tables(
    files: Sequence[Path], root: Path, wanted: Callable[[str], bool], about: Collection[str]
) -> dict[str, FeatureTable]:
    """Returns the tables in the files, by split, or under `WHOLE`.

    Large columns are not read here, but when their rows are. A pickle is read whole.

    Args:
        files: from `find_files(root)`.
        root: the path that the user gave.
        wanted: whether a column is of use; others are not read where the format allows it.
        about: columns that say something about every sample, such as the target; if they hold texts they are read here.

    Raises:
        DataError: names file and column.
    """
    if files[0].suffix == PARQUET:
        return _read_parquet(files, root, wanted, about)
    if len(files) == 1 and files[0].suffix == ".npz":
        (path,) = files
        _, names = read_npz(path, lambda name: False)
        if split_columns(dict.fromkeys(names)):
            return content_tables({path: _content(path)}, str(path), wanted)
        return {WHOLE: column_table(*read_npz(path, wanted, by_rows=True), str(path), wanted)}
    where = str(files[0] if len(files) == 1 else root)
    if files[0].suffix == NPY and files[0] != root:
        return content_tables({root: npy_columns(files, root)}, where, wanted)
    if len(files) > 1 and not split_files(files, root):
        return content_tables({root: modality_columns(files, root, _content)}, where, wanted)
    return content_tables({file: _content(file) for file in files}, where, wanted)


def _content(path: Path) -> Any:
    """Returns what a file holds by name, or the content of a pickle."""
    if path.suffix == ".npz":
        return read_npz(path, lambda name: True, by_rows=True)[0]
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in TORCH:
        return read_torch(path)
    if path.suffix == NPY:
        return _pickled_npy(path)
    return read_h5(path) if path.suffix in H5 else load_pickle(path)


def _pickled_npy(path: Path) -> Any:
    """Returns the dict or list that np.save wrote."""
    content = read_npy(path)
    if isinstance(content, Column) or content.dtype.kind != "O":
        raise DataError(
            f"{path}: one array of np.save; write modalities and target together with np.savez, or give a folder of .npy files"
        )
    return content.item() if content.ndim == 0 else content


def npy_columns(files: Sequence[Path], root: Path) -> dict[str, Any]:
    """Returns the arrays of .npy files by name, or by split and name where their names or folders say a split.

    train/audio.npy, audio/train.npy, train_audio.npy and audio-train.npy are the column audio of the split train;
    audio.npy is that of all samples, and train_idx.npy says rows of a split.

    Args:
        files: of one set.
        root: folder of the set.

    Raises:
        DataError: some files belong to a split and others to none, or two are the same column.
    """
    places: dict[tuple[str, str], Path] = {}
    for file in files:
        parts = [*file.relative_to(root).parts[:-1], file.stem]
        if says_rows(file.stem) is None and not any(map(split_of, parts)):
            parts = [*parts[:-1], *re.split(r"[_\-. ]+", file.stem)]
        splits = [split for split in map(split_of, parts) if split is not None]
        split = splits[0] if len(splits) == 1 else WHOLE
        name = file.stem if not splits else "_".join(part for part in parts if split_of(part) is None)
        if not splits and file.parent != root:
            name = "_".join(parts)
        if (split, name) in places:
            raise DataError(
                f"{root}: {places[split, name]} and {file} are both the column {name}; expected one of them"
            )
        places[split, name] = file
    by_split = {split for split, _ in places}
    if WHOLE in by_split and len(by_split) > 1:
        alone = next(file for (split, _), file in places.items() if split == WHOLE)
        raise DataError(
            f"{alone}: belongs to no split, while others do; expected names or folders train, valid, test, or none"
        )
    if by_split == {WHOLE}:
        return {name: read_npy(file) for (_, name), file in places.items()}
    return {
        split: {name: read_npy(file) for (of, name), file in places.items() if of == split}
        for split in sorted(by_split)
    }


def content_tables(contents: Mapping[Path, Any], where: str, wanted: Callable[[str], bool]) -> dict[str, FeatureTable]:
    """Returns the tables in what one file holds, or several files that are named after splits.

    Raises:
        DataError: it is no set, or a column of features cannot be read.
    """
    return {
        split: column_table(fields, fields, f"{where}: split {split}" if split else where, wanted)
        for split, fields in columns_by_split(contents, where).items()
    }


def split_files(files: Sequence[Path], folder: Path) -> bool:
    """Returns whether each of these files is named after a split, such as train.pkl, dev.pkl and test.pkl, and all are of one
    format.

    Raises:
        DataError: two are named after the same split.
    """
    formats = {next((kind for kind in (PICKLES, H5, TORCH) if file.suffix in kind), (file.suffix,)) for file in files}
    if len(files) < 2 or len(formats) > 1:
        return False
    return len(find_splits([file.stem for file in files], str(folder))) == len(files)


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
    columns: dict[str, np.ndarray | Column] = {}
    missing, steps, unread = {}, {}, {}
    for name, value in fields.items():
        if not wanted(name):
            continue
        try:
            if isinstance(value, Column):
                columns[name] = value
                continue
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
        flags = np.asarray(flags)
        if flags.shape != columns[name].shape[:1] or not np.isin(flags, (0, 1)).all():
            raise DataError(
                f"{where}, field {name + PRESENT_SUFFIX}: shape {flags.shape} of {flags.dtype}; expected a bool for each of "
                f"the {len(columns[name])} samples"
            )
        present[name] = flags.astype(bool) & present.get(name, True)
        if not present[name].all() and columns[name].dtype.kind in "biuf":
            columns[name] = mapped(columns[name], Blank(present[name]))
    names = tuple(name for name in available if name not in single and not name.endswith(PRESENT_SUFFIX))
    return FeatureTable(where=where, columns=columns, present=present, steps=steps, available=names, unread=unread)


@dataclass(frozen=True)
class Blank:
    """Writes zeros into the rows of a column that are missing.

    Attributes:
        present: bool [N], which are not.
    """

    present: np.ndarray

    def __call__(self, values: np.ndarray, rows: Rows) -> np.ndarray:
        """Returns a copy of some rows."""
        values = values.copy()
        values[~self.present[rows]] = 0
        return values


def _read_parquet(
    files: Sequence[Path], root: Path, wanted: Callable[[str], bool], about: Collection[str]
) -> dict[str, FeatureTable]:
    grouped: dict[str, list[Path]] = {}
    for file in files:
        grouped.setdefault(_split_of(file, root), []).append(file)
    if WHOLE in grouped and len(grouped) > 1:
        raise DataError(
            f"{grouped[WHOLE][0]}: belongs to no split, while others do; expected folders or names train, valid, test, or none"
        )
    return {split: _read_table(paths, split, root, wanted, about) for split, paths in grouped.items()}


def _split_of(file: Path, root: Path) -> str:
    """Returns the split that a folder below the root, or the start of the name, states: train/x.parquet, train-00.parquet."""
    places = [*file.relative_to(root).parts[:-1], file.stem] if root.is_dir() else [file.stem]
    for place in places:
        split = split_of(place.replace("_", "-").split("-")[0])
        if split is not None and root.is_dir():
            return split
    return WHOLE


def _read_table(
    files: Sequence[Path],
    split: str,
    root: Path,
    wanted: Callable[[str], bool],
    about: Collection[str],
) -> FeatureTable:
    where = f"{root}: split {split}" if split else str(files[0] if len(files) == 1 else root)
    found, available = read_columns(files, where, wanted, lambda name: name in about)
    return FeatureTable(
        where=where,
        columns={name: values for name, (values, _, _) in found.items()},
        present={name: valid for name, (_, valid, _) in found.items() if valid is not None},
        steps={name: steps for name, (_, _, steps) in found.items() if steps is not None},
        available=available,
    )
