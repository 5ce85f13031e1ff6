"""Brings the contents of pickles of multimodal sets to one form: split to column to values.

Known are dicts of splits of columns (CMU-MOSI as released, MulT, MMSA and Self-MM, with texts or bytes as keys), lists of
samples that are dicts, dicts of samples or of columns by the names of samples, columns whose names say a split (text_train,
y_test), and the lists of ((words, vision, audio[, words]), label, segment) of MAG-BERT and MISA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.data.formats.untrusted import decoded
from cggm_ray.data.split_names import SPLITS, find_splits, says_rows, says_split

WHOLE = ""
"""Name of samples that are not split."""
IDENTITY = "id"
"""Column with the names of samples."""
Columns = dict[str, Any]
"""Values by column, as in the pickle."""


def columns_by_split(contents: Mapping[Path, Any], where: str) -> dict[str, Columns]:
    """Returns the columns of every split of a set, or of all samples under `WHOLE`.

    Args:
        contents: of the one pickle, or of several, each with a split of the name of its file.
        where: the set, for messages.

    Raises:
        DataError: it is no such set.
    """
    if len(contents) > 1:
        named: dict[str, Any] = {path.stem: content for path, content in contents.items()}
    else:
        (content,) = contents.values()
        columns = columns_of(content, where)
        if columns is None:
            raise DataError(
                f"{where}: found a {type(content).__name__}; expected a dict of arrays, or of splits of them, or a "
                "list of samples"
            )
        named = columns
    splits = {}
    for split, name in find_splits(named, where).items():
        found = columns_of(named[name], f"{where}: split {split}")
        if found is None:
            # A column may have the name of a split; then the columns are not split.
            return {WHOLE: named}
        splits[split] = by_name(found, f"{where}: split {split}")
    if splits:
        return splits
    return split_columns(named) or {WHOLE: by_name(named, where)}


def split_columns(columns: Mapping[str, Any]) -> dict[str, Columns]:
    """Returns the columns of every split where all their names say one, such as text_train and y_test; nothing otherwise."""
    found: dict[str, Columns] = {}
    for name, value in columns.items():
        said = None if says_rows(name) else says_split(name)
        if said is None:
            return {}
        split, rest = said
        if rest in found.setdefault(split, {}):
            return {}
        found[split][rest] = value
    return {split: found[split] for split in SPLITS if split in found}


def by_name(columns: Columns, where: str) -> Columns:
    """Returns columns, from dicts of samples or of columns by the names of samples; other columns as they are.

    In a dict of dicts with the same keys one level is samples and the other columns. Values of a column are alike: texts, or
    numbers of one shape but for the time steps. Where that is so of both levels, there are more samples than columns.

    Raises:
        DataError: names that are one when written as text, or dicts with several, but not all keys in common.
    """
    inner = [text_keys(value, f"{where}, {name}") for name, value in columns.items() if isinstance(value, Mapping)]
    if not columns or len(inner) < len(columns) or not set(inner[0]).intersection(*inner):
        return columns
    for name, one in zip(columns, inner, strict=True):
        if set(one) != set(inner[0]):
            raise DataError(
                f"{where}, {short_repr(name)}: found {listed(one)}; {short_repr(next(iter(columns)))} has {listed(inner[0])}; "
                "expected the same names, and None for what is missing"
            )
    outer_names, inner_names = list(columns), list(inner[0])
    samples_outside = all(alike([one[name] for one in inner]) for name in inner_names)
    samples_inside = all(alike(list(one.values())) for one in inner)
    if samples_outside == samples_inside:
        samples_outside = len(outer_names) > len(inner_names)
    found: Columns
    if samples_outside:
        names, found = outer_names, {name: [sample[name] for sample in inner] for name in inner_names}
    else:
        names = inner_names
        found = {name: [one[row] for row in names] for name, one in zip(outer_names, inner, strict=True)}
    return found if IDENTITY in found else {IDENTITY: names, **found}


def alike(values: Sequence[Any]) -> bool:
    """Returns whether values can be those of one column: texts, or numbers of one shape but for the time steps."""
    forms: set[object] = set()
    for value in values:
        if value is None or isinstance(value, str | bytes):
            forms.add("text" if value is not None else None)
            continue
        array = value if isinstance(value, np.ndarray) else np.asarray(value) if _is_number(value) else None
        forms.add(type(value) if array is None else (array.ndim, array.shape[1:] if array.ndim > 1 else array.shape))
    return len(forms - {None}) <= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool)


def columns_of(content: Any, where: str) -> Columns | None:
    """Returns the columns of a dict or of a list of samples, or None for anything else.

    Raises:
        DataError: names that are one when written as text, or samples of several forms.
    """
    if isinstance(content, Mapping):
        return text_keys(content, where)
    if isinstance(content, np.ndarray) and content.dtype.kind == "O" and content.ndim == 1:
        content = content.tolist()
    if not isinstance(content, list | tuple) or not content:
        return None
    if all(isinstance(sample, Mapping) for sample in content):
        return _from_dicts([text_keys(sample, f"{where}, sample {row}") for row, sample in enumerate(content)], where)
    if _is_mag(content[0]):
        return _from_mag(content, where)
    return None


def text_keys(content: Mapping[Any, Any], where: str) -> Columns:
    """Returns a dict with its keys as texts, because Python 2 wrote bytes.

    Raises:
        DataError: two keys are the same text.
    """
    columns: Columns = {}
    for key, value in content.items():
        name = str(decoded(key))
        if name in columns:
            raise DataError(f"{where}: the key {short_repr(name)} is there twice, as text and as {type(key).__name__}")
        columns[name] = value
    return columns


def _from_dicts(samples: Sequence[Columns], where: str) -> Columns:
    names = list(samples[0])
    for row, sample in enumerate(samples):
        if set(sample) != set(names):
            raise DataError(f"{where}, sample {row}: found {listed(sample)}; sample 0 has {listed(names)}")
    return {name: [sample[name] for sample in samples] for name in names}


def _is_mag(sample: Any) -> bool:
    return (
        isinstance(sample, list | tuple)
        and len(sample) in (2, 3)
        and isinstance(sample[0], list | tuple)
        and len(sample[0]) in (3, 4)
    )


def _from_mag(samples: Sequence[Any], where: str) -> Columns:
    """Returns the columns of MAG-BERT's and MISA's samples.

    They have `text` if the words are features, otherwise `words`, which are no numbers to learn from.
    """
    first = samples[0]
    for row, sample in enumerate(samples):
        if not _is_mag(sample) or len(sample) != len(first) or len(sample[0]) != len(first[0]):
            raise DataError(
                f"{where}, sample {row}: found {short_repr(sample)}; expected ((words, vision, audio), label, segment) as "
                "in sample 0"
            )
    words = [sample[0][0] for sample in samples]
    columns: Columns = {
        "text" if all(isinstance(row, np.ndarray) and row.ndim == 2 for row in words) else "words": words,
        "vision": [sample[0][1] for sample in samples],
        "audio": [sample[0][2] for sample in samples],
        "labels": [np.asarray(sample[1]).reshape(-1) if _numbers(sample[1]) else sample[1] for sample in samples],
    }
    if len(first[0]) == 4:
        columns["actual_words"] = [sample[0][3] for sample in samples]
    if len(first) == 3:
        columns["id"] = [sample[2] for sample in samples]
    return columns


def _numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
