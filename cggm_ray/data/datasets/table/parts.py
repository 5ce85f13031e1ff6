"""The rows of a table by split, before they are encoded: reading them, leaving out what has no target, and presence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.cells import Rows, as_texts, concatenated, joined
from cggm_ray.data.datasets.table.files import TableFiles
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.datasets.table.readers import read_table
from cggm_ray.data.datasets.table.splitting import by_column, split_column
from cggm_ray.data.datasets.table.stages import CELL, Plan
from cggm_ray.data.datasets.table.targets import Target
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import IDENTITY, INDEX, LABELLED, PRESENT, TARGET, RawShard, tensor_column
from cggm_ray.data.split_names import SPLITS

Columns = Mapping[str, pa.Array]
"""Column to its checked cells, as its kind reads them."""


def read_parts(files: TableFiles, options: TableOptions) -> tuple[dict[str, Rows], list[str]]:
    """Returns the rows of every split, or of `WHOLE`, and lines about the files.

    Raises:
        DataError: a file cannot be read.
    """
    parts, lines = {}, []
    for split in (WHOLE, *SPLITS):
        found = [read_table(path, options) for path in files.files.get(split, ())]
        if found:
            parts[split] = joined(found)
            name = str(found[0].path) if len(found) == 1 else f"{found[0].path} and {len(found) - 1} more"
            lines.append(f"{split or 'data'}: {name}, {found[0].about}, {len(parts[split])} rows")
    lines += [f"not read: {path}" for path in files.unread]
    return parts, lines


def with_target(parts: Mapping[str, Rows], target: str) -> tuple[dict[str, Rows], list[str]]:
    """Returns the rows that have a target, and lines about those that are left out.

    A test file without the column of the target, as competitions give it, is no split.

    Raises:
        DataError: there is no such column, or it is empty.
    """
    kept, lines = dict(parts), []
    test = kept.get("test")
    if test is not None and len(kept) > 1 and target not in test.table.column_names:
        del kept["test"]
        lines.append(f"test: {test.where} has no column {target} and is not used; cggm predict predicts it")
    for split, rows in kept.items():
        rows.check_column("target", target)
        there = rows.cells(target).there
        if not there.any():
            raise DataError(f"{rows.where}, target {target}: has no value; expected one in every row")
        if not there.all():
            kept[split] = rows.take(np.flatnonzero(there))
            lines.append(
                f"{split or 'data'}: {int((~there).sum())} of {len(rows)} rows have no {target} and are left out"
            )
    return kept, lines


def rows_to_predict(parts: Mapping[str, Rows], split: str | None, options: TableOptions) -> Rows:
    """Returns all rows in the order of the files, or those of one split.

    Raises:
        DataError: there is no such split.
    """
    if split is None:
        return concatenated([parts[name] for name in (WHOLE, *SPLITS) if name in parts])
    if split in parts:
        return parts[split]
    whole = parts.get(WHOLE)
    column = None if whole is None else split_column(whole, options)
    if whole is None or column is None:
        found = ", ".join(parts) if whole is None else "rows that are not split"
        where = next(iter(parts.values())).where
        raise DataError(f"{where}: split {split} is missing; found {found}; leave out --split to predict everything")
    rows = by_column(whole, whole.cells(column)).get(split)
    if rows is None:
        raise DataError(f"{whole.where}: no row has the split {split} in column {column}; expected at least one")
    return rows


def presence(cells: Columns, plan: Plan) -> dict[str, np.ndarray]:
    """Returns which rows have each modality, bool [N]: those with a cell in any of its columns."""
    return {
        modality: np.any([cells[column.name].is_valid().to_numpy(zero_copy_only=False) for column in columns], axis=0)
        for modality, columns in plan.items()
    }


def check_some(rows: Rows, present: Mapping[str, np.ndarray]) -> None:
    """Raises a DataError where a row has no modality at all."""
    nothing = np.flatnonzero(~np.any(list(present.values()), axis=0))
    if len(nothing):
        raise DataError(
            f"{rows.places.of(int(nothing[0]))}: has no value in any of the modalities {', '.join(present)}; expected at "
            "least one"
        )


def without_empty(rows: Rows, cells: Columns) -> tuple[Rows, Columns, str | None]:
    """Returns the rows that have a cell in any input, and a line about the others; all rows where none has one."""
    there = np.any([values.is_valid().to_numpy(zero_copy_only=False) for values in cells.values()], axis=0)
    if there.all() or not there.any():
        return rows, cells, None
    first = rows.places.of(int(np.flatnonzero(~there)[0]))
    line = f"{int((~there).sum())} of {len(rows)} rows have no value in any input and are left out, {first} first"
    return (
        rows.take(np.flatnonzero(there)),
        {name: values.filter(pa.array(there)) for name, values in cells.items()},
        line,
    )


def raw_shards(
    split: str,
    rows: Rows,
    cells: Columns,
    target: Target,
    present: Mapping[str, np.ndarray],
    identity: str | None,
    sample_bytes: int,
    labelled: bool = False,
) -> Iterator[RawShard]:
    """Yields the raw shards of a split.

    Args:
        split: of the shards.
        rows: of it.
        cells: of its inputs.
        target: of the rows.
        present: of the modalities that some row of the set lacks.
        identity: column that names the samples.
        sample_bytes: the most bytes that a sample takes in any stage.
        labelled: whether to say which rows have a target.
    """
    names = None
    if identity is not None and identity in rows.table.column_names:
        names = pa.array([text or "" for text in as_texts(rows.cells(identity).values).to_pylist()])
    for number, part in chunks(len(rows), sample_bytes):
        count = part.stop - part.start
        columns: dict[str, pa.Array] = {INDEX: pa.array(np.arange(part.start, part.stop))}
        if names is not None:
            columns[IDENTITY] = names.slice(part.start, count)
        columns[TARGET] = tensor_column(target.values[part])
        if labelled:
            columns[LABELLED] = pa.array(target.labelled[part])
        columns |= {PRESENT + name: pa.array(flags[part]) for name, flags in present.items()}
        columns |= {CELL + name: values.slice(part.start, count) for name, values in cells.items()}
        yield RawShard(split=split, number=number, table=pa.table(columns))
