"""The target of a table: the task that its values mean, its classes, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import DataError, UsageError, listed, short_repr
from cggm_ray.data.datasets.table.cells import Cells, as_texts, is_list, is_number, is_text
from cggm_ray.data.datasets.table.kinds import MOSTLY
from cggm_ray.data.datasets.table.number_texts import as_numbers, number_pattern
from cggm_ray.data.datasets.table.options import AUTO, TableOptions
from cggm_ray.data.rounding import check_target_rounding

REGRESSION, CLASSIFICATION, MULTILABEL = "regression", "classification", "multilabel"
MOST_NUMBERS = 20
"""Whole numbers are classes if there are at most so many different ones, each for two samples on average."""
AS_CLASSES = "--task classification"
"""Flag for targets that are no numbers, for messages."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The values of a target.

    Attributes:
        values: int64 [N] of classes, float32 [N, 1], or float32 [N, labels] of 0 and 1; 0 where there is none.
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
    if options.task == MULTILABEL or (options.task == AUTO and (options.label_separator or _is_labels(values.type))):
        if not _is_labels(values.type) and options.label_separator is None:
            raise UsageError(
                "label_separator: found none; expected what stands between labels, or a column of lists of texts"
            )
        return MULTILABEL, f"separated by {options.label_separator!r}" if options.label_separator else "lists of texts"
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
        values = as_numbers(cells, options.decimal, AS_CLASSES).drop_null()
    elif not is_number(values.type):
        return CLASSIFICATION, f"values of type {values.type}"
    numbers = np.asarray(values.cast(pa.float64()))
    different = len(np.unique(numbers))
    if (numbers == np.round(numbers)).all() and different <= min(MOST_NUMBERS, len(numbers) // 2):
        return CLASSIFICATION, f"{different} different whole numbers; --task regression predicts them as numbers"
    return REGRESSION, "numbers"


def _is_labels(kind: pa.DataType) -> bool:
    return is_list(kind) and is_text(kind.value_type)


def labels_of(cells: Cells, separator: str | None) -> list[list[str] | None]:
    """Returns the labels of each row; None where there is no target. An empty list stands for a sample without any label.

    Raises:
        DataError: a cell holds something else.
    """
    rows = cells.values.to_pylist()
    if not _is_labels(cells.values.type):
        texts = as_texts(cells.values).to_pylist()
        split = [None if text is None else text.split(separator or ",") for text in texts]
        return [None if row is None else [part.strip() for part in row if part.strip()] for row in split]
    wrong = next((n for n, row in enumerate(rows) if row is not None and None in row), None)
    if wrong is not None:
        raise cells.wrong(wrong, "a list of texts")
    return [None if row is None else [part.strip() for part in row] for row in rows]


def find_labels(cells: Cells, given: Sequence[str] | None, separator: str | None) -> list[str]:
    """Returns the given labels, or all in the cells by the alphabet.

    Raises:
        DataError: there are fewer than two.
    """
    if given is not None:
        return list(given)
    found = sorted({label for row in labels_of(cells, separator) for label in row or ()})
    if len(found) < 2:
        raise DataError(
            f"{cells.places.files[0]}, target {cells.name}: found {len(found)} labels, {listed(found)}; expected at least two"
        )
    return found


def read_labels(cells: Cells, labels: Sequence[str], separator: str | None) -> Target:
    """Returns 1 for every label that a row has.

    Raises:
        DataError: a label is not known.
    """
    place = {label: number for number, label in enumerate(labels)}
    rows = labels_of(cells, separator)
    values = np.zeros((len(rows), len(labels)), np.float32)
    for number, row in enumerate(rows):
        for label in row or ():
            if label not in place:
                raise cells.wrong(number, f"some of the {len(labels)} labels {listed(labels, 10)}", label)
            values[number, place[label]] = 1
    return Target(values=values, labelled=cells.there)


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


def check_regression(cells: Cells, options: TableOptions) -> None:
    """Checks the targets that a regression is trained with.

    Raises:
        DataError: they are no numbers, or differ by too little for single precision.
    """
    known = as_numbers(cells, options.decimal, AS_CLASSES).drop_null().to_numpy()
    check_target_rounding(known, f"{cells.places.files[0]}, target {cells.name}")


def read_target(cells: Cells, classes: Sequence[str] | None, options: TableOptions) -> Target:
    """Returns the numbers of classes, or values.

    Raises:
        DataError: a cell is none of the classes, or no number.
    """
    labelled = cells.there
    if classes is None:
        values = np.asarray(pc.fill_null(as_numbers(cells, options.decimal, AS_CLASSES), 0.0), np.float32)
        return Target(values=values[:, None], labelled=labelled)
    number_of = {name: number for number, name in enumerate(classes)}
    names = as_texts(cells.values).to_pylist()
    wrong = next((row for row, name in enumerate(names) if name is not None and name not in number_of), None)
    if wrong is not None:
        raise cells.wrong(wrong, f"one of the {len(classes)} classes {listed(classes, 10)}", names[wrong])
    return Target(values=np.array([number_of.get(name, 0) for name in names], np.int64), labelled=labelled)
