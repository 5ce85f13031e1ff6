"""Divides the rows of a table into train, valid and test: by files, by a column, by groups, or drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.datasets.feature_splits import drawn
from cggm_ray.data.datasets.table.cells import Cells, Rows, as_texts
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.split_names import SPLITS, split_of

SPLIT = "split"
"""Name of a column that says splits without being named."""


def split_column(rows: Rows, options: TableOptions) -> str | None:
    """Returns the column that says the splits, if there is one: the named one, or `split` where all of its cells do."""
    if options.split_column is not None:
        rows.check_column("split_column", options.split_column)
        return options.split_column
    if options.group_column is not None or SPLIT not in rows.table.column_names:
        return None
    cells = rows.cells(SPLIT)
    names = as_texts(cells.values).unique().to_pylist() if not cells.values.null_count else [None]
    return SPLIT if all(name is not None and split_of(name) for name in names) else None


def divide(
    parts: Mapping[str, Rows], options: TableOptions, column: str | None, target: Callable[[Rows], np.ndarray]
) -> tuple[dict[str, Rows], str]:
    """Returns the rows of train, valid and test, and how they were divided.

    Args:
        parts: rows by split, or under `WHOLE`; each has a target.
        options: of the table.
        column: that says the splits of a whole table; None where there is none.
        target: returns the target of rows, [N] of classes or [N, 1] of values; the shares of classes are kept.

    Raises:
        DataError: a split is missing or empty, or a cell names no split.
    """
    found = dict(parts)
    about = "by files"
    if WHOLE in found:
        whole = found.pop(WHOLE)
        if column is not None:
            found, about = by_column(whole, whole.cells(column)), f"by column {column}"
        else:
            found = {"train": whole}
    if "train" not in found:
        raise DataError(f"{next(iter(found.values())).where}: found {', '.join(found)}; expected rows of train")
    lacking = [split for split in ("valid", "test") if split not in found]
    if lacking:
        shares = (options.valid_share * ("valid" in lacking), options.test_share * ("test" in lacking))
        rows, how = _drawn(found["train"], options, shares, target)
        whole = found["train"]
        found |= {split: whole.take(rows[split]) for split in ("train", *lacking)}
        what = "" if len(lacking) == 2 else f"{about}, {lacking[0]} "
        about = f"{what}drawn {how}, split_seed {options.split_seed}"
    for split in SPLITS:
        if not len(found[split]):
            raise DataError(
                f"{found['train'].where}: split {split} has no row, {about}; found "
                f"{listed(f'{name} {len(part)}' for name, part in found.items())}"
            )
    return {split: found[split] for split in SPLITS}, about


def by_column(rows: Rows, cells: Cells) -> dict[str, Rows]:
    """Returns the rows of every split that a column says.

    Raises:
        DataError: a cell names no split.
    """
    names = as_texts(cells.values).to_pylist()
    splits = [None if name is None else split_of(name) for name in names]
    wrong = next((row for row, split in enumerate(splits) if split is None), None)
    if wrong is not None:
        raise cells.wrong(wrong, "train, valid or test", names[wrong])
    of = np.array(splits)
    return {split: rows.take(np.flatnonzero(of == split)) for split in SPLITS if (of == split).any()}


def _drawn(
    rows: Rows, options: TableOptions, shares: tuple[float, float], target: Callable[[Rows], np.ndarray]
) -> tuple[dict[str, np.ndarray], str]:
    """Returns drawn rows of every split, with the reason in words."""
    if options.group_column is None:
        values = target(rows)
        how = "so that classes keep their shares" if values.ndim == 1 else "at random"
        return drawn(values, shares, options.split_seed), how
    rows.check_column("group_column", options.group_column)
    cells = rows.cells(options.group_column)
    missing = np.flatnonzero(~cells.there)
    if len(missing):
        raise cells.wrong(int(missing[0]), "a group in every row", "nothing")
    return by_groups(np.array(as_texts(cells.values).to_pylist()), shares, options.split_seed), (
        f"by groups of {short_repr(options.group_column)}"
    )


def by_groups(groups: np.ndarray, shares: tuple[float, float], seed: int) -> dict[str, np.ndarray]:
    """Returns the rows of every split, so that all rows of a group are in one.

    Groups come in random order; each goes to the split that lacks most rows of its share.

    Args:
        groups: name of the group of each row, [N].
        shares: of validation and test.
        seed: of the order.
    """
    names, of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(of)
    goal = np.array([1 - sum(shares), *shares]) * len(groups)
    filled = np.zeros(3)
    chosen = np.zeros(len(names), np.int64)
    for group in np.random.default_rng(derive_seed(seed, "split")).permutation(len(names)):
        chosen[group] = np.argmax(np.where(goal > 0, (goal - filled) / np.maximum(goal, 1e-9), -np.inf))
        filled[chosen[group]] += sizes[group]
    return {split: np.flatnonzero(chosen[of] == number) for number, split in enumerate(SPLITS)}
