"""Finds the files of a table, and the split that each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.foreign import foreign_kind
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.formats.packed import is_packed, suffix_of
from cggm_ray.data.formats.untrusted import inside, is_text, read_json, reading
from cggm_ray.data.split_names import SPLITS, split_of

TEXTS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
SUFFIXES = (*TEXTS, ".parquet", ".arrow", ".npz")
DATASET, DATASETS = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` of the library `datasets` writes into the folder of one split, and of several."""
_EXPECTED = (
    "expected .csv, .tsv, .jsonl, .json (also .csv.gz and the like), .parquet or .npz, files of these named after splits "
    "(train.csv, test.csv), or a folder that save_to_disk of datasets wrote"
)


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """The files of a table.

    Attributes:
        root: folder that holds them all.
        files: of every split, or of `WHOLE`.
        unread: files beside them that are no part of the table.
    """

    root: Path
    files: dict[str, tuple[Path, ...]]
    unread: tuple[Path, ...] = ()

    @property
    def all(self) -> list[Path]:
        """All files, in the order of the splits."""
        return [path for split in (WHOLE, *SPLITS) for path in self.files.get(split, ())]


def find_tables(path: Path) -> TableFiles:
    """Returns the files of the table at a path: the file, or those of a folder by their splits.

    Raises:
        DataError: there is no table, or some files belong to a split and others of the same kind to none.
    """
    if path.is_file():
        if _format(path) is None:
            with reading(path, "file"):
                kind = foreign_kind(path)
            what = f"unknown suffix {path.suffix!r}" if kind is None else kind
            raise DataError(f"{path}: {what}; {_EXPECTED}")
        return TableFiles(root=path.parent, files={WHOLE: (path,)})
    if (path / DATASETS).is_file():
        return TableFiles(root=path, files=_saved_splits(path))
    if (path / DATASET).is_file():
        return TableFiles(root=path, files={WHOLE: _saved(path)})
    there = [file for file in sorted(path.iterdir()) if _is_table(file)]
    if not there:
        there = [file for file in sorted(path.rglob("*.parquet")) if _is_table(file)]
    named = {file: split for file in there if (split := _split(file, path)) is not None}
    if named:
        files = {split: tuple(file for file in named if named[file] == split) for split in SPLITS}
        files = {split: found for split, found in files.items() if found}
        for split, found in files.items():
            _check_one_format(found, f"{path}: split {split}")
        return TableFiles(root=path, files=files, unread=tuple(file for file in there if file not in named))
    if not there:
        raise DataError(f"{path}: found no table; {_EXPECTED}")
    _check_one_format(there, str(path))
    if len(there) > 1 and there[0].suffix != ".parquet":
        raise DataError(f"{path}: found {listed(file.name for file in there)}; {_EXPECTED}")
    return TableFiles(root=path, files={WHOLE: tuple(there)})


def _is_table(file: Path) -> bool:
    hidden = file.name.startswith((".", "_"))
    return not hidden and _format(file) not in (None, ".txt") and file.is_file()


def _format(file: Path) -> str | None:
    """Returns the suffix of a file that can be read, such as .csv of train.csv.gz; None for another file."""
    suffix = suffix_of(file)
    return suffix if suffix in (TEXTS if is_packed(file) else SUFFIXES) else None


def _split(file: Path, root: Path) -> str | None:
    """Returns the split that a folder below the root, or the beginning of the name, says: train/x.parquet, train_titles.csv."""
    for place in (*file.relative_to(root).parts[:-1], file.stem):
        split = split_of(place.replace("_", "-").replace(".", "-").split("-")[0])
        if split is not None:
            return split
    return None


def _check_one_format(files: Sequence[Path], where: str) -> None:
    suffixes = {_format(file) for file in files}
    if len(suffixes) > 1:
        raise DataError(f"{where}: found {listed(file.name for file in files)}; expected files of one format")


def _saved_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    content = read_json(folder / DATASETS)
    names = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(is_text(name) and inside(name) for name in names):
        raise DataError(f"{folder / DATASETS}, field splits: expected a list of names of folders")
    if len(names) == 1 and split_of(names[0]) in (None, "train"):
        return {WHOLE: _saved(folder / names[0])}
    found: dict[str, tuple[Path, ...]] = {}
    for name in names:
        split = split_of(name)
        if split is None or split in found:
            raise DataError(
                f"{folder / DATASETS}: found the splits {listed(names)}; expected train, validation and test, each once"
            )
        found[split] = _saved(folder / name)
    return found


def _saved(folder: Path) -> tuple[Path, ...]:
    path = folder / DATASET
    content = read_json(path)
    entries = content.get("_data_files") if isinstance(content, dict) else None
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not names or not all(is_text(name) and inside(str(name)) for name in names):
        raise DataError(f"{path}, field _data_files: expected the names of .arrow files in {folder}")
    return tuple(folder / str(name) for name in names)
