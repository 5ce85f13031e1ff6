"""Decides what each column of a table is: an input of some kind, an id, or nothing of use; and which modality it belongs to."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import nn

from cggm_ray.core.errors import DataError, UsageError, listed, one_line
from cggm_ray.core.registry import nearest
from cggm_ray.data.datasets.table.cells import Rows, is_text
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, Facts, kinds_in_order
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.shards.shards import RESERVED

TAB, REST = "tab", "rest"
"""Names of the modality of all numbers and categories, and of those that no modality of that name has."""
ID, DROP, CATEGORICAL = "id", "drop", "categorical"
IDS = re.compile(
    r"(id|idx|index|uid|uuid|guid|key|level_0|__index_level_0__|unnamed: \d+|.*[_\- ](id|uid|uuid))", re.IGNORECASE
)
MOST_LINES = 40
"""Columns that are printed."""
DATES = r"^\s*(\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{4}|\d\d?/\d\d?/\d\d)([ T]\d\d?:\d\d.*)?\s*$"
"""2020-12-31, 2020/12/31, 31.12.2020, 12/31/2020 or 12/31/20, with or without a time."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """A column that is an input.

    Attributes:
        kind: name of its kind.
        modality: to which it belongs.
    """

    kind: str
    modality: str


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns of a table are.

    Attributes:
        inputs: by column.
        identity: column that names the samples, if there is one.
        left_out: other columns, with the reason.
    """

    inputs: Mapping[str, Input]
    identity: str | None
    left_out: Mapping[str, str]


def infer(rows: Rows, options: TableOptions, other: Mapping[str, str], wanted: Collection[str] | None) -> Schema:
    """Returns what the columns are.

    Args:
        rows: from which kinds are inferred.
        options: that override them.
        other: columns with another meaning, and that meaning.
        wanted: modalities of the run; None for all.

    Raises:
        DataError: an option names a column that does not exist, or there is no input.
        UsageError: there is no such kind or modality.
    """
    given, groups = options.kinds(), options.groups()
    for option, names in (("column", given), *((f"modality {name}:", columns) for name, columns in groups.items())):
        for name in names:
            rows.check_column(option, name)
            if name in other:
                raise UsageError(f"{option} {name!r} is {other[name]}; expected an input")
    known = (*COLUMN_KINDS.names(), ID, DROP)
    for name, kind in given.items():
        if kind not in known:
            raise UsageError(
                f"column: unknown kind {kind!r} of {name}{nearest(kind, known)}; available: {', '.join(known)}"
            )
    kinds: dict[str, str] = {}
    identity, left_out = None, dict(other)
    for name, (kind, reason) in kinds_of(rows, options, other).items():
        if kind == ID and identity is None:
            identity = name
            left_out[name] = f"names the samples: {reason}"
        elif kind in (ID, DROP):
            left_out[name] = reason
        else:
            kinds[name] = kind
    for name, columns in groups.items():
        for column in columns:
            if column not in kinds:
                raise UsageError(
                    f"modality {name}: column {column!r} is no input: {left_out[column]}; --column {column}=kind makes it one"
                )
    owner = {column: name for name, columns in groups.items() for column in columns}
    rest = REST if TAB in groups else TAB
    inputs = {}
    taken: set[str] = set()
    for column, kind in kinds.items():
        grouped = COLUMN_KINDS.get(kind).grouped
        modality = owner.get(column) or (rest if grouped else column)
        name = safe_name(modality)
        if column not in owner and not grouped and name in taken:
            name = next(f"{name}_{n}" for n in range(2, 10**6) if f"{name}_{n}" not in taken)
        taken.add(name)
        inputs[column] = Input(kind=kind, modality=name)
    if not inputs:
        raise DataError(
            f"{rows.where}: no column is an input; found {in_words(left_out)}; name one with --column name=kind"
        )
    if wanted is not None:
        _check_wanted(wanted, taken)
        left_out |= {c: "not named by --modalities" for c, one in inputs.items() if one.modality not in wanted}
        inputs = {column: one for column, one in inputs.items() if one.modality in wanted}
    return Schema(inputs=inputs, identity=identity, left_out=left_out)


def kinds_of(rows: Rows, options: TableOptions, other: Collection[str]) -> dict[str, tuple[str, str]]:
    """Returns the kind of every column that has no other meaning, or `ID` or `DROP`, and the reason for these two."""
    given = options.kinds()
    return {
        name: (given[name], "--column") if name in given else _kind(Facts(rows.cells(name), options), len(rows))
        for name in rows.table.column_names
        if name not in other
    }


def _check_wanted(wanted: Collection[str], names: Collection[str]) -> None:
    for name in wanted:
        if name not in names:
            raise UsageError(
                f"modalities: the table has no {name!r}{nearest(name, names)}; available: {', '.join(sorted(names))}"
            )


def _kind(facts: Facts, rows: int) -> tuple[str, str]:
    """Returns the kind of a column, or `ID` or `DROP`, and the reason for these two."""
    if not facts.count:
        return DROP, "has no value"
    if facts.distinct == 1 and facts.count == rows > 1:
        return DROP, "the same value in every row"
    own = [name for name in kinds_in_order() if COLUMN_KINDS.place(name) is not None]
    for name in own:
        if COLUMN_KINDS.get(name).recognises(facts):
            return name, ""
    plain = is_text(facts.type) or pa.types.is_integer(facts.type)
    every = facts.distinct == facts.count == rows and plain
    if every and IDS.fullmatch(facts.cells.name) and facts.words < 2:
        return ID, "another value in every row, and a name of ids"
    if pa.types.is_temporal(facts.type) or facts.share(DATES) > 0.5:
        return DROP, f"dates; --column {facts.cells.name}=categorical or text makes it an input"
    for name in kinds_in_order():
        if name not in own and COLUMN_KINDS.get(name).recognises(facts):
            return name, ""
    if is_text(facts.type):
        return (ID, "another text in every row") if every else (CATEGORICAL, "")
    return DROP, f"values of type {str(facts.type)[:60]}"


def safe_name(name: str) -> str:
    """Returns a name that a modality can have: without dots and slashes, and none that has a meaning in shards or modules."""
    found = re.sub(r"[./\\,=:\s]+", "_", name.strip()) or "column"
    return f"{found}_" if found in RESERVED or hasattr(nn.ModuleDict, found) or hasattr(nn.Module(), found) else found


def in_words(left_out: Mapping[str, str]) -> str:
    """Returns columns with the reasons why they are no inputs."""
    return listed((f"{name} ({reason})" for name, reason in left_out.items()), 12, 160)


def column_lines(schema: Schema, columns: Mapping[str, Mapping[str, Any]], missing: Mapping[str, int]) -> list[str]:
    """Returns lines about the columns: a table of the inputs, and what is no input.

    Args:
        schema: of the table.
        columns: kind, modality and state by column.
        missing: number of missing cells by column.
    """
    from tabulate import tabulate

    shown = [
        (
            one_line(name)[:40],
            one["kind"],
            one["modality"],
            missing[name],
            COLUMN_KINDS.get(one["kind"]).about(one["state"]),
        )
        for name, one in list(columns.items())[:MOST_LINES]
    ]
    table = tabulate(shown, ("column", "kind", "modality", "missing", "input"), tablefmt="plain", disable_numparse=True)
    more = [f"and {len(columns) - MOST_LINES} more columns"] if len(columns) > MOST_LINES else []
    left = {name: reason for name, reason in schema.left_out.items() if reason != "the target"}
    return [*table.splitlines(), *more, *([f"no input: {in_words(left)}"] if left else [])]
