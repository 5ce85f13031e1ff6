"""The target of a table: the task that its values mean, its classes, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.data.datasets.table.cells import Cells, as_texts, is_list, is_number, is_text
from cggm_ray.data.datasets.table.kinds import MOSTLY
from cggm_ray.data.datasets.table.numbers import as_numbers, number_pattern
from cggm_ray.data.datasets.table.options import AUTO, TableOptions

REGRESSION, CLASSIFICATION = "regression", "classification"
MOST_NUMBERS = 20
"""Whole numbers are classes if there are at most so many different ones, each for two samples on average."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The values of a target.

    Attributes:
        values: int64 [N] of classes, or float32 [N, 1]; 0 where there is none.
        labelled: bool [N], whether there is one.
    """

    values: np.ndarray
    labelled: np.ndarray


def infer_task(cells: Cells, options: TableOptions) -> tuple[str, str]:
    """Returns the task and the reason for it.

    Raises:
        DataError: the column holds nothing that can be predicted.
    """
    values = cells.values.drop_null()
    if not len(values):
        raise DataError(f"{cells.places.files[0]}, target {cells.name}: has no value; expected one in every row")
    if is_list(values.type) or pa.types.is_struct(values.type) or isinstance(values.type, pa.BaseExtensionType):
        raise DataError(
            f"{cells.places.of(int(np.flatnonzero(cells.there)[0]))}, target {cells.name}: found "
            f"{short_repr(values[0].as_py())}; expected a number, or the name of a class"
        )
    if options.task != AUTO:
        return options.task, "--task"
    if pa.types.is_boolean(values.type):
        return CLASSIFICATION, "true and false"
    if is_text(values.type):
        pattern = number_pattern(options.decimal)
        good = pc.match_substring_regex(values, pattern).cast(pa.float64())
        if float(pc.mean(good).as_py()) < MOSTLY:
            return CLASSIFICATION, "texts"
        # A number that is none would be a class of its own.
        values = as_numbers(cells, options.decimal).drop_null()
    elif not is_number(values.type):
        return CLASSIFICATION, f"values of type {values.type}"
    numbers = np.asarray(values.cast(pa.float64()))
    different = len(np.unique(numbers))
    if (numbers == np.round(numbers)).all() and different <= min(MOST_NUMBERS, len(numbers) // 2):
        return CLASSIFICATION, f"{different} different whole numbers; --task regression predicts them as numbers"
    return REGRESSION, "numbers"


def find_classes(cells: Cells, given: Sequence[str] | None) -> list[str]:
    """Returns the given classes, or those of the cells: numbers by their size, texts by the alphabet.

    Raises:
        DataError: there is only one, or nearly every sample has its own.
    """
    if given is not None:
        return list(as_texts(pa.array(given, pa.string())).to_pylist())
    names = as_texts(cells.values).drop_null()
    found = names.unique().to_pylist()
    where = f"{cells.places.files[0]}, target {cells.name}"
    if len(found) < 2:
        raise DataError(f"{where}: found {len(found)} class, {listed(found)}; expected at least two")
    if len(found) > max(2, len(names) // 2):
        raise DataError(
            f"{where}: found {len(found)} classes in {len(names)} rows; expected a class to repeat (another --target, or "
            "--task regression?)"
        )
    try:
        return sorted(found, key=float)
    except ValueError:
        return sorted(found)


def read_target(cells: Cells, classes: Sequence[str] | None, options: TableOptions) -> Target:
    """Returns the numbers of classes, or values.

    Raises:
        DataError: a cell is none of the classes, or no number.
    """
    labelled = cells.there
    if classes is None:
        values = np.asarray(pc.fill_null(as_numbers(cells, options.decimal), 0.0), np.float32)
        return Target(values=values[:, None], labelled=labelled)
    number_of = {name: number for number, name in enumerate(classes)}
    names = as_texts(cells.values).to_pylist()
    wrong = next((row for row, name in enumerate(names) if name is not None and name not in number_of), None)
    if wrong is not None:
        raise cells.wrong(wrong, f"one of the {len(classes)} classes {listed(classes, 10)}", names[wrong])
    return Target(values=np.array([number_of.get(name, 0) for name in names], np.int64), labelled=labelled)
