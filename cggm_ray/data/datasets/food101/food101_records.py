"""The records of an image and text set: checked records with their image files, their classes, and a drawn validation split."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.datasets.food101.lists import FIELDS, KEYS, Lists, read_rows
from cggm_ray.data.formats.untrusted import is_text
from cggm_ray.data.split_names import split_of

IMAGE_FOLDERS = ("images", "image", "imgs", "img")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A sample as its list names it.

    Attributes:
        id: as listed, or the path of the image where the list has no ids.
        text: the pieces joined with spaces.
        image: relative to the data folder; as listed where there is no such file.
        file: of the image, or None.
        label: or None where labels are not needed.
    """

    id: str
    text: str
    image: str
    file: Path | None
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A list after reading.

    Attributes:
        path: of the list.
        records: at least one.
        names: those that the fields have in it, with each field once in the order of `FIELDS`.
    """

    path: Path
    records: list[Record]
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Returns one line about the list, for the user who starts a run."""
        empty = [record.id for record in self.records if not record.text.strip()]
        without = f"; {len(empty)} without text: {listed(empty, 3)}" if empty else ""
        return f"{len(self.records)} records of {self.path} ({', '.join(self.names)}){without}"


def read_lists(lists: Lists, root: Path, labelled: bool = True) -> dict[str, Listed]:
    """Reads the records of all splits with `read_records`."""
    return {
        split: read_records(path, ImageFinder(root, path.parent, split), labelled)
        for split, path in lists.files.items()
    }


def read_records(path: Path, images: ImageFinder, labelled: bool = True) -> Listed:
    """Reads the records of one list.

    Args:
        path: of the list.
        images: finds their files.
        labelled: every record must have a label; else records may lack it.

    Raises:
        DataError: names file, record and field.
    """
    records: list[Record] = []
    seen: set[str] = set()
    used: dict[str, None] = {}
    for where, entry in read_rows(path):
        names = {field: next((name for name in FIELDS[field] if name in entry), None) for field in KEYS}
        for field in ("text_tokens", "img_path", *(("label",) if labelled else ())):
            if names[field] is None:
                raise DataError(
                    f"{where}: field {field} is missing; found {listed(entry)}; expected one of {', '.join(FIELDS[field])}"
                )
        used |= dict.fromkeys(name for name in names.values() if name is not None)
        values = {field: (name, entry[name]) for field, name in names.items() if name is not None}
        image = _text(where, *values["img_path"])
        name, file = images.find(image, where, values["img_path"][0], label := _label(where, values, labelled))
        identity = _identity(where, values, name, seen)
        seen.add(identity)
        text = _joined(where, *values["text_tokens"])
        records.append(Record(id=identity, text=text, image=name, file=file, label=label))
    if not records:
        raise DataError(f"{path}: the list is empty; expected at least one record")
    return Listed(path=path, records=records, names=tuple(used))


def _label(where: str, values: dict[str, tuple[str, Any]], labelled: bool) -> str | None:
    """Returns the label as a text; whole numbers are accepted too."""
    name, value = values.get("label", ("label", None))
    if not labelled and (value is None or value == ""):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(where, name, value)


def _text(where: str, name: str, value: Any) -> str:
    if not is_text(value) or not value.strip():
        raise DataError(f"{where}, field {name}: found {short_repr(value)}; expected a text")
    return str(value)


def _joined(where: str, name: str, value: Any) -> str:
    """Returns a text, or its pieces with spaces between them."""
    if is_text(value):
        return value
    if not isinstance(value, list) or not all(is_text(piece) for piece in value):
        raise DataError(f"{where}, field {name}: found {short_repr(value)}; expected a text or a list of texts")
    return " ".join(value)


def _identity(where: str, values: dict[str, tuple[str, Any]], image: str, seen: set[str]) -> str:
    """Returns the id of a record.

    A record without an id is named by its image, with a number if the image is listed again.
    """
    if "id" not in values:
        number, identity = 1, image
        while identity in seen:
            number, identity = number + 1, f"{image} ({number + 1})"
        return identity
    name, value = values["id"]
    if isinstance(value, bool) or not (isinstance(value, int) or is_text(value)):
        raise DataError(f"{where}, field {name}: found {short_repr(value)}; expected a text or a number")
    if str(value) in seen:
        raise DataError(f"{where}, field {name}: found {short_repr(str(value))} twice; expected every id once")
    return str(value)


class ImageFinder:
    """Finds the files that a list names, and none outside of the data folder.

    A name is searched below the folder of the list and below the data folder, unchanged and below a folder of images, of the
    split and of the label (`images/train/pie/pie_0.jpg`). Of an absolute path, which is of the machine where the list was made,
    the longest end counts that is a file there. Paths of Windows are read too.

    Args:
        root: the data folder.
        folder: of the list, which is the root or below it.
        split: of the list, or None where it is of no split.
    """

    def __init__(self, root: Path, folder: Path, split: str | None) -> None:
        self._root, self._folder = root, folder
        tops = list(dict.fromkeys((folder, root)))
        images = [child for top in tops for child in _folders(top) if child.name.lower() in IMAGE_FOLDERS]
        splits = [
            child for top in (*images, *tops) for child in _folders(top) if split and split_of(child.name) == split
        ]
        places = (*tops, *splits, *images)
        self._places = {str(place.relative_to(root)): {entry.name for entry in place.iterdir()} for place in places}
        self._ends_of: dict[str, str] = {}

    def find(self, name: str, where: str, field: str, label: str | None) -> tuple[str, Path | None]:
        """Returns the path relative to the data folder, and the file.

        If there is no such file, it returns the name unchanged and None.

        Args:
            name: as listed.
            where: the record is, for messages.
            field: that holds the name, for messages.
            label: of the record, or None.

        Raises:
            DataError: the name leads out of the data folder, or two absolute paths lead to one file in it.
        """
        windows = PureWindowsPath(name)
        parts = tuple(part for part in windows.parts if part != windows.anchor)
        if "\0" in name or not parts or (".." in parts and (windows.anchor or not self._stays(parts))):
            raise DataError(
                f"{where}, field {field}: found {short_repr(name)}; expected a path that is relative to {self._folder} and "
                f"stays below {self._root}"
            )
        if windows.anchor:
            found = next(
                (file for start in range(len(parts)) for file in self._files(parts[start:], label, True)), None
            )
            other = self._ends_of.setdefault(found, name) if found is not None else name
            if other != name:
                raise DataError(
                    f"{where}, field {field}: found {short_repr(name)}, and {short_repr(other)} above; {self._root} has "
                    f"{found} alone for both"
                )
            return found or name, None if found is None else self._root / found
        # A name with a backslash can be a file of its own on other systems than Windows.
        literal = [str(self._folder.relative_to(self._root) / name)] if "\\" in name and ".." not in parts else []
        found = next((file for file in (*literal, *self._files(parts, label, False)) if self._is_file(file)), None)
        return found or "/".join(parts), None if found is None else self._root / found

    def _files(self, parts: tuple[str, ...], label: str | None, listed_only: bool) -> Iterator[str]:
        """Yields the possible places of a file with this path, the most likely first, relative to the data folder.

        Args:
            parts: of the path.
            label: of the record, or None.
            listed_only: only existing files; it checks the cached names of the folders before it queries the file system.
        """
        if ".." in parts:
            yield os.path.normpath(os.path.join(self._folder.relative_to(self._root), *parts))
            return
        named = label is not None and label not in (".", "..") and not any(mark in label for mark in "/\\\0")
        for place, there in self._places.items():
            for path in (parts, (label, *parts)) if named else (parts,):
                if not listed_only or path[0] in there:
                    file = os.path.normpath(os.path.join(place, *map(str, path)))
                    if not listed_only or self._is_file(file):
                        yield file

    def _is_file(self, file: str) -> bool:
        try:
            return (self._root / file).is_file()
        except OSError as error:
            # No file can have such a name.
            if error.errno == errno.ENAMETOOLONG:
                return False
            raise

    def _stays(self, parts: tuple[str, ...]) -> bool:
        """Returns whether a path with `..`, from the folder of the list, is below the data folder."""
        path = os.path.normpath(os.path.join(self._folder.relative_to(self._root), *parts))
        return path != ".." and not path.startswith(f"..{os.sep}")


def _folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


def check_labels(splits: dict[str, Listed], known: Sequence[str] | None = None) -> list[str]:
    """Returns the classes: the sorted labels of train, or the known classes. Records without a label are not checked.

    Args:
        splits: by name.
        known: the classes of a run; None for those of train.

    Raises:
        DataError: a label is none of the classes.
    """
    source = "the run" if known is not None else splits["train"].path.name
    labels = (
        {record.label for record in splits["train"].records if record.label is not None} if known is None else set()
    )
    classes = sorted(labels) if known is None else list(known)
    among = {None, *classes}
    for found in splits.values():
        for record in found.records:
            if record.label not in among:
                raise DataError(
                    f"{found.path}, id {record.id}, field label: {short_repr(record.label)} is not among the {len(classes)} "
                    f"classes of {source}"
                )
    return classes


def shared_images(splits: Mapping[str, Iterable[Record]]) -> list[str]:
    """Returns a line for every two splits that have images in common."""
    files = {split: {record.file for record in records} - {None} for split, records in splits.items()}
    names = list(files)
    pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    return [f"{a} and {b} have {len(files[a] & files[b])} images in common" for a, b in pairs if files[a] & files[b]]


def stratified(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Returns train and validation.

    Of every class the share, rounded, is drawn for validation, and at least one record stays in train.

    Raises:
        DataError: no class is large enough.
    """
    by_label: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        by_label.setdefault(str(record.label), []).append(row)
    chosen: set[int] = set()
    for number, label in enumerate(sorted(by_label)):
        rows = by_label[label]
        rng = np.random.default_rng(derive_seed(seed, "split", number))
        take = min(len(rows) - 1, max(1, round(share * len(rows))))
        chosen.update(rng.permutation(rows)[:take].tolist())
    if not chosen:
        raise DataError(
            "the list of train: every class has a single record; there is none left for validation, add a list of validation"
        )
    return (
        [record for row, record in enumerate(records) if row not in chosen],
        [record for row, record in enumerate(records) if row in chosen],
    )
