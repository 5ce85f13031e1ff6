"""The lists of an image and text set: finding the files that hold them, and reading their rows in any format.

A list is JSON (a list of objects), JSON lines, CSV or TSV. A CSV names its columns in a header, or has the columns of Kaggle's
Food-101: image file, title, label.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.data.formats.untrusted import parse_json, read_text, reading
from cggm_ray.data.split_names import SPLITS, split_of
from cggm_ray.storage.places import as_path

FIELDS = {
    "id": ("id", "sample_id", "uid"),
    "text_tokens": ("text_tokens", "tokens", "text", "title", "caption", "sentence"),
    "img_path": ("img_path", "img", "image_path", "image", "path", "file_name", "filename", "file", "image_name"),
    "label": ("label", "class", "class_name", "category", "dish"),
}
"""Names of a field, in upper or lower case. If a record has several of them, the first counts."""
KEYS = tuple(FIELDS)
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_HEADERLESS = ("image", "title", "label")
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
ALL = "all"
"""Name of the part of data to predict whose list is not named after a split."""
_LONGEST_CELL = 2**24
"""Largest number of characters of a cell. The default of the csv module, 131,072, is too small for some pages."""


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Lists that were found.

    Attributes:
        folder: that holds them.
        files: split to list, in the order of the splits.
        unread: other files there that look like lists of splits.
    """

    folder: Path
    files: dict[str, Path]
    unread: tuple[Path, ...] = ()


def find_lists(root: Path) -> Lists:
    """Returns the lists of train, test and maybe validation in a folder.

    If the folder has none, the only folder below it with such lists is used.

    The name of a list is that of its split (`train.json`, `val.csv`), or holds it in the same way as those of the other splits
    (`train_titles.csv`, `test_titles.csv`); where there are lists of both kinds, the first kind is read.

    Raises:
        DataError: train or test is missing, or two lists are of the same split.
    """
    found = _lists_in(root)
    if found is None:
        below = [lists for folder in _folders(root) if (lists := _lists_in(folder)) is not None]
        if len(below) > 1:
            raise DataError(
                f"{root}: found lists of samples in the folders {listed(lists.folder.name for lists in below)}; expected them "
                "in one, or one of these folders as data_path"
            )
        found = below[0] if below else Lists(folder=root, files={})
    lacking = [split for split in ("train", "test") if split not in found.files]
    if lacking:
        there = listed(path.name for path in found.files.values())
        raise DataError(
            f"{found.folder}: no list of {' and none of '.join(lacking)}; found {there}; expected lists of train and test and "
            "maybe of validation (val, valid, dev), as .json, .jsonl, .csv or .tsv"
        )
    return found


def find_new_lists(path: Path) -> Lists:
    """Returns the lists of data to predict.

    They are a file, the lists of a folder that are named after splits, or its only list.

    Raises:
        DataError: there is no list, or there are several and none is named after a split.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path}: found the suffix {path.suffix!r}; expected a list of samples, {', '.join(SUFFIXES)}"
            )
        return Lists(folder=path.parent, files={split_of(path.stem) or ALL: path})
    there = _candidates(path)
    found = _lists_in(path)
    if found is None and len(there) == 1:
        return Lists(folder=path, files={split_of(there[0].stem) or ALL: there[0]})
    if found is None:
        raise DataError(
            f"{path}: found {listed(file.name for file in there)}; expected one list of samples ({', '.join(SUFFIXES)}), or "
            "its path as data_path"
        )
    unread = tuple(file for file in there if file not in found.files.values())
    return Lists(folder=path, files=found.files, unread=unread)


def _candidates(folder: Path) -> list[Path]:
    """Returns the files of a folder that can be lists."""
    paths = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES)
    return [path for path in paths if not path.name.startswith(".") and path.is_file()]


def _lists_in(folder: Path) -> Lists | None:
    """Returns the lists of one folder, or None if it has none of train or test."""
    kinds: dict[str, dict[str, list[Path]]] = {}
    for path in _candidates(folder):
        named = _split_in(path.stem)
        if named is not None:
            kinds.setdefault(named[1], {}).setdefault(named[0], []).append(path)
    kinds = {
        kind: by_split for kind, by_split in kinds.items() if "train" in by_split or (kind == "" and "test" in by_split)
    }
    if not kinds:
        return None
    if len(kinds) > 1 and "" not in kinds:
        names = (path.name for by_split in kinds.values() for path in by_split.get("train", []))
        raise DataError(f"{folder}: found several lists of train: {listed(names)}; expected one")
    chosen = "" if "" in kinds else next(iter(kinds))
    for split, paths in kinds[chosen].items():
        if len(paths) > 1:
            raise DataError(
                f"{folder}: {listed(path.name for path in paths)} all mean the split {split}; expected one of them, so that no "
                "samples are left out"
            )
    files = {split: kinds[chosen][split][0] for split in SPLITS if split in kinds[chosen]}
    unread = [p for kind, by in kinds.items() if kind != chosen for paths in by.values() for p in paths]
    return Lists(folder=folder, files=files, unread=tuple(unread))


def _split_in(stem: str) -> tuple[str, str] | None:
    """Returns the split in the name of a list, and the rest of the name, which is '' if the name is the split's."""
    split = split_of(stem)
    if split is not None:
        return split, ""
    parts = re.split(r"([_\-. ])", stem)
    named = [number for number, part in enumerate(parts) if split_of(part) is not None]
    if len(named) != 1:
        return None
    split = split_of(parts[named[0]])
    rest = "".join("*" if number == named[0] else part.lower() for number, part in enumerate(parts))
    return None if split is None else (split, rest)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a list, each with its place for messages; keys are in lower case.

    Raises:
        DataError: names file and place.
    """
    if path.suffix.lower() in _DELIMITERS:
        return _csv_rows(path, read_text(path, "CSV file"))
    return _json_rows(path, read_text(path, "JSON file"))


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Other characters that Python takes for line ends, such as U+2028, may stand in a text.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if _is_lines(path, [line for _, line in lines]):
        entries = ((f"{path}, line {number}", _parsed(path, line, f", line {number}")) for number, line in lines)
    else:
        content = _parsed(path, text, "")
        if not isinstance(content, list):
            raise DataError(
                f"{path}: found a {type(content).__name__}; expected a list of records with {', '.join(KEYS)}"
            )
        entries = ((f"{path}, record {number}", entry) for number, entry in enumerate(content))
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(f"{where}: found a {type(entry).__name__}; expected an object with {', '.join(KEYS)}")
        yield where, {str(key).strip().lower(): value for key, value in entry.items()}


def _parsed(path: Path, text: str, place: str) -> Any:
    with reading(as_path(f"{path}{place}"), "JSON file"):
        return parse_json(text)


def _is_lines(path: Path, lines: list[str]) -> bool:
    """Returns whether a file holds JSON lines.

    The suffix decides, unless the file begins with a list; a .json file may also begin with two lines of objects.
    """
    if path.suffix.lower() != ".json":
        return not lines or not lines[0].lstrip().startswith("[")
    return len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines[:2])


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = _cells(path, text)
    if not rows:
        return
    names = [name.strip().lower() for name in rows[0][1]]
    known = {name for names in FIELDS.values() for name in names}
    if len(names) in (2, 3) and _is_image(names[0]):
        names = list(_HEADERLESS[: len(names)])
    elif known.isdisjoint(names):
        raise DataError(
            f"{path}, line 1: found {listed(rows[0][1])}; expected a header with names of image, text and label (such as "
            f"{', '.join(_HEADERLESS)}), or these three columns without one"
        )
    else:
        rows = rows[1:]
        twice = next((name for name in names if name in known and names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}, line 1: found the column {short_repr(twice)} twice; expected every column once")
    for line, cells in rows:
        yield f"{path}, line {line}", dict(zip(names, (cell.strip() for cell in cells), strict=True))


def _cells(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Returns the line and cells of every row, by the delimiter that gives all rows the same number of cells.

    Raises:
        DataError: the rows are of several lengths, or quotes are not closed.
    """
    problems = []
    for delimiter in _DELIMITERS[path.suffix.lower()]:
        rows, problem = _split_cells(text, delimiter)
        if problem is None and (not rows or len(rows[0][1]) > 1):
            return rows
        problems.append(problem or f"line {rows[0][0]}: found one column; expected image, text and label")
    raise DataError(f"{path}, {problems[0]}")


def _split_cells(text: str, delimiter: str) -> tuple[list[tuple[int, list[str]]], str | None]:
    """Splits rows by one delimiter and returns them with an error text."""
    csv.field_size_limit(_LONGEST_CELL)
    # The csv module needs unchanged line breaks, because those in quotes belong to the text.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append((line, cells))
                if len(cells) != len(rows[0][1]):
                    return rows, (
                        f"line {line}: found {len(cells)} columns; expected {len(rows[0][1])} as in line {rows[0][0]} (a text "
                        "with delimiters needs quotes)"
                    )
            line = reader.line_num + 1
    except csv.Error as error:
        return rows, f"line {line}: {error}; expected quotes that are closed, and doubled inside of quotes"
    return rows, None


def _is_image(name: str) -> bool:
    return PurePosixPath(PureWindowsPath(name.strip()).name).suffix.lower() in IMAGE_SUFFIXES
