"""Which samples of a file are in which split: as the file says it by a column or by row numbers, or drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.datasets.feature_files import FeatureTable
from cggm_ray.data.datasets.samples import Samples
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.split_names import SPLITS, says_rows, split_of

SPLIT = "split"
"""Name of a column that says splits without being named."""


def row_arrays(table: FeatureTable, column: str | None) -> list[str]:
    """Returns the arrays of a whole table that say the rows of splits, such as train_idx; none where a column says the splits.

    Args:
        table: of all samples.
        column: that the user names, or None.
    """
    if column is not None or SPLIT in table.available:
        return []
    return [name for name in table.columns if says_rows(name) is not None]


def stated_rows(
    tables: Mapping[str, FeatureTable], column: str | None, counted: str
) -> tuple[dict[str, np.ndarray] | None, str]:
    """Returns the rows of every split of a whole table, with what says them; None where nothing does.

    Args:
        tables: by split, or one under `WHOLE`.
        column: that the user names; None for the column `split`, or arrays such as train_idx, if there are any.
        counted: column with as many values as there are samples, such as the target.

    Raises:
        DataError: a column or array says no splits, or the file has splits of its own.
    """
    if WHOLE not in tables:
        if column is None:
            return None, "of the file"
        where = next(iter(tables.values())).where
        raise DataError(f"{where}: the file has splits of its own; leave out --split")
    table = tables[WHOLE]
    arrays = row_arrays(table, column)
    if not arrays and column is None and SPLIT not in table.available:
        return None, ""
    samples = len(table.column(counted, "target"))
    if arrays:
        return _rows_by_arrays(table, arrays, samples)
    column = column or SPLIT
    return _rows_by_column(table, column, samples), f"by column {column}"


def divide(
    tables: Mapping[str, FeatureTable],
    samples: Mapping[str, Samples],
    rows: Mapping[str, np.ndarray] | None,
    shares: tuple[float, float],
    seed: int,
) -> tuple[dict[str, Samples], str]:
    """Returns the samples by split: the file's own splits, those that it says, or drawn ones; and what was drawn.

    Validation is drawn from train if the file has no validation split.

    Args:
        tables: by split, or one under `WHOLE`.
        samples: of every table.
        rows: of every split of a whole table, from `stated_rows`; None to draw them.
        shares: of validation and test, where they are drawn.
        seed: of the draw; classes keep their shares.

    Raises:
        DataError: a split is missing or empty.
    """
    parts, said = dict(samples), ""
    where = next(iter(tables.values())).where
    drawing = f"drawn so that classes keep their shares, split_seed {seed}"
    if WHOLE in parts:
        whole = parts.pop(WHOLE)
        if whole.target.ndim > 1:
            drawing = f"drawn at random, split_seed {seed}"
        said = drawing if rows is None else ""
        rows = drawn(whole.target, shares, seed) if rows is None else rows
        parts = {split: whole.take(picked) for split, picked in rows.items() if len(picked)}
    if "train" in parts and "valid" not in parts:
        rows = drawn(parts["train"].target, (shares[0], 0.0), seed)
        parts |= {split: parts["train"].take(rows[split]) for split in ("train", "valid")}
        said = f"valid from train, {drawing}"
    for split in SPLITS:
        if split not in parts or not len(parts[split].target):
            raise DataError(f"{where}: split {split} has no samples; found {', '.join(parts) or 'none'}")
    return {split: parts[split] for split in SPLITS}, said


def _rows_by_column(table: FeatureTable, column: str, samples: int) -> dict[str, np.ndarray]:
    """Returns the rows of every split, from a column that names it in every row."""
    values = np.asarray(table.column(column, "split"))
    if values.shape != (samples,):
        raise DataError(
            f"{table.where}, split {column}: shape {values.shape}; expected a text for each of {samples} samples"
        )
    names = []
    for row, value in enumerate(values.tolist()):
        name = split_of(str(value))
        if name is None:
            raise DataError(
                f"{table.where}, split {column}, row {row}: found {short_repr(value)}; expected train, valid or test"
            )
        names.append(name)
    return {split: np.flatnonzero(np.array(names) == split) for split in SPLITS}


def _rows_by_arrays(table: FeatureTable, names: list[str], samples: int) -> tuple[dict[str, np.ndarray], str]:
    """Returns the rows that arrays such as train_idx or train_mask say, and their names."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        said = says_rows(name)
        if said is not None:
            split, flags = said
            found.setdefault(split, {})[name] = _rows_of(table, name, samples, flags=flags)
    for split in ("train", "test"):
        if split not in found:
            raise DataError(
                f"{table.where}: found {listed(names)}, which say rows of splits, and none for {split}; expected it too, or "
                "none of them, or a column --split"
            )
    rows: dict[str, np.ndarray] = {}
    for split in SPLITS:
        arrays = list(found.get(split, {}).items())
        rows[split] = arrays[0][1] if arrays else np.array([], np.int64)
        for name, other in arrays[1:]:
            if not np.array_equal(rows[split], other):
                raise DataError(
                    f"{table.where}: {arrays[0][0]} and {name} say different rows of {split}; expected one of them"
                )
    together = np.concatenate(list(rows.values()))
    seen, counts = np.unique(together, return_counts=True)
    if (counts > 1).any():
        row = seen[counts > 1][0]
        of = listed(name for split in rows if row in rows[split] for name in found[split])
        raise DataError(f"{table.where}: {of} both have row {row}; expected every row in one split")
    left = samples - len(seen)
    rest = f"; {left:,} rows that are in none are not used" if left else ""
    return rows, f"by {listed(names)}{rest}"


def _rows_of(table: FeatureTable, name: str, samples: int, *, flags: bool) -> np.ndarray:
    """Returns the rows that an array says, in increasing order, from row numbers or a flag for every row."""
    values, where = np.asarray(table.columns[name]), f"{table.where}, {name}"
    flat = values.reshape(-1)
    if values.size != max(values.shape, default=0) or values.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: shape {values.shape} of {values.dtype}; expected the numbers of the rows of one split, or a flag for "
            "every row"
        )
    if values.dtype.kind == "b" or flags:
        if len(flat) != samples or not np.isin(flat, (0, 1)).all():
            raise DataError(f"{where}: shape {values.shape}; expected a flag for each of {samples} samples")
        return np.flatnonzero(flat)
    wrong = flat[(flat != np.floor(flat)) | (flat < 0) | (flat >= samples)]
    if len(wrong):
        raise DataError(f"{where}: found {wrong[0]:g}; expected numbers of rows, from 0 to {samples - 1}")
    rows, counts = np.unique(flat.astype(np.int64), return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{where}: found row {rows[counts > 1][0]} twice; expected every row once")
    return rows


def drawn(target: np.ndarray, shares: tuple[float, float], seed: int) -> dict[str, np.ndarray]:
    """Returns the rows of a seeded split. Every class is spread over the splits as evenly as possible."""
    order = np.random.default_rng(derive_seed(seed, "split")).permutation(len(target))
    if target.ndim == 1:
        order = order[np.argsort(target[order], kind="stable")]
    # The k-th sample, class by class, goes where k times the share passes a whole number.
    place = np.arange(1, len(target) + 1)
    valid = np.floor(place * shares[0]) > np.floor((place - 1) * shares[0])
    test = np.zeros(len(target), bool)
    rest = np.flatnonzero(~valid)
    share = shares[1] / (1 - shares[0])
    count = np.arange(1, len(rest) + 1)
    test[rest] = np.floor(count * share) > np.floor((count - 1) * share)
    masks = {"train": ~valid & ~test, "valid": valid, "test": test}
    return {split: np.sort(order[mask]) for split, mask in masks.items()}
