"""A folder with one file of features for each modality, whose samples are known by their names or by splits.

set/text.pkl, set/audio.pkl     {'clip_1': array, 'clip_2': array, ...}, or {'train': array, 'test': array}
set/labels.csv                  id,label,split: the names of the samples, and columns about them
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.layouts import IDENTITY, alike, text_keys
from cggm_ray.data.formats.untrusted import read_text, reading
from cggm_ray.data.split_names import find_splits

CSV = (".csv", ".tsv")
"""Suffixes of the file about the samples."""


def modality_columns(files: Sequence[Path], root: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """Returns the columns of all samples by the names of the samples, or of every split.

    Args:
        files: one for each modality, named after it, and at most one CSV.
        root: folder of them.
        read: returns what a file of features holds.

    Raises:
        DataError: the files do not belong together.
    """
    about = [file for file in files if file.suffix.lower() in CSV]
    features = [file for file in files if file not in about]
    refused = (
        f"{root}: found {len(features)} feature files, {listed(file.name for file in features)}; expected parquet files, one "
        "other file, one for each split, such as train.npz and test.npz, or one for each modality, with arrays by split or by "
        "the names of the samples"
    )
    if len(about) > 1:
        raise DataError(f"{root}: found {listed(file.name for file in about)}; expected one CSV about the samples")
    contents = {file.stem: read(file) for file in features}
    if len(contents) < len(features) or not all(isinstance(one, Mapping) and one for one in contents.values()):
        raise DataError(refused)
    named = {stem: text_keys(one, str(file)) for file, (stem, one) in zip(features, contents.items(), strict=True)}
    splits = {stem: find_splits(one, str(file)) for file, (stem, one) in zip(features, named.items(), strict=True)}
    if all(len(splits[stem]) == len(one) for stem, one in named.items()) and not about:
        first = next(iter(splits.values()))
        for file, found in zip(features, splits.values(), strict=True):
            if set(found) != set(first):
                raise DataError(f"{file}: found the splits {listed(found)}; {features[0].name} has {listed(first)}")
        return {split: {stem: named[stem][name[split]] for stem, name in splits.items()} for split in first}
    samples = set().union(*named.values())
    if len(samples) <= len(features) or not all(alike(list(one.values())) for one in named.values()):
        raise DataError(refused)
    others = _columns_about(about[0]) if about else {}
    if twice := sorted(set(others) & set(named)):
        raise DataError(
            f"{about[0]}: found the column {twice[0]}, which is a file of features too; expected one of them"
        )
    unused = sorted(set().union(*others.values()) - samples)
    if unused:
        print(f"{about[0]}: not used are {len(unused):,} samples without features, {listed(unused)}", flush=True)
    columns = {**named, **others}
    for name, one in columns.items():
        if missing := sorted(samples - set(one)):
            raise DataError(
                f"{root}: {name} lacks the samples {listed(missing)}; expected the same samples in all files"
            )
    order = list(next(iter(named.values())))
    return {name: {sample: one[sample] for sample in order} for name, one in columns.items()}


def _columns_about(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the columns of a CSV by name and by name of the sample, which is its column `id`, or the first one."""
    text = read_text(path, "CSV file")
    with reading(path, "CSV file"):
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    header, *rows = [row for row in rows if row] or [[]]
    if len(header) < 2 or len(set(header)) < len(header):
        raise DataError(
            f"{path}: found the columns {listed(header)}; expected names of samples, and columns about them"
        )
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, row {line}: found {len(row)} cells; expected {len(header)}")
        if "" in row:
            raise DataError(f"{path}, row {line}, column {header[row.index('')]}: is empty; expected a value")
    of = header.index(IDENTITY) if IDENTITY in header else 0
    names = [row[of] for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: found the sample {twice!r} twice; expected every sample once")
    return {
        name: dict(zip(names, _values([row[column] for row in rows]), strict=True))
        for column, name in enumerate(header)
        if column != of
    }


def _values(cells: Sequence[str]) -> list[Any]:
    """Returns cells as whole numbers or as numbers, if all are some, else as texts."""
    # Python takes 1_2 for a number, which in a file is a name.
    if not any("_" in cell for cell in cells):
        for kind in (int, float):
            with suppress(ValueError):
                return [kind(cell) for cell in cells]
    return list(cells)
