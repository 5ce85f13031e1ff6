"""Turns raw shards of a table into features: cells become numbers in tasks, and frozen encoders run where they are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.table.cells import combined
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, ColumnKind, Context, Encoded, State
from cggm_ray.data.shards.shards import PRESENT, STEPS, is_modality, tensor_column

CELL = "cell/"
"""Prefix of the columns of a raw table that hold cells."""


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """What is needed to encode a column.

    Attributes:
        name: of the column.
        kind: of it.
        state: what was learned of it in training.
    """

    name: str
    kind: ColumnKind
    state: State

    @property
    def pooled(self) -> bool:
        """Whether it is encoded by a model."""
        return self.kind.pooled(self.state)


Plan = Mapping[str, tuple[ColumnPlan, ...]]
"""Modality to its columns."""


def plan_of(columns: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Returns the plan of what the manifest notes about columns: kind, modality and state of each."""
    found: dict[str, list[ColumnPlan]] = {}
    for name, one in columns.items():
        plan = ColumnPlan(name=name, kind=COLUMN_KINDS.get(one["kind"]), state=one["state"])
        found.setdefault(one["modality"], []).append(plan)
    return {modality: tuple(plans) for modality, plans in found.items()}


@dataclass(frozen=True, kw_only=True)
class EncodeCells:
    """First stage, in tasks: it encodes cells, and prepares those that a model encodes.

    Attributes:
        plan: of all modalities.
    """

    plan: Plan

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table with a column for each modality without a model in place of its cells."""
        for modality, columns in self.plan.items():
            if columns[0].pooled and len(columns) == 1:
                (column,) = columns
                place = table.column_names.index(CELL + column.name)
                prepared = column.kind.prepare(combined(table.column(place)), column.state)
                table = table.set_column(place, CELL + column.name, prepared)
                continue
            parts = []
            for column in columns:
                cells = combined(table.column(CELL + column.name))
                made = column.kind.encode(cells, column.state)
                if isinstance(made, Encoded) and made.steps is not None and len(columns) == 1:
                    table = with_steps(table, modality, made.steps, cells)
                values = made.values if isinstance(made, Encoded) else made
                if len(columns) > 1 and (values.ndim != 2 or column.pooled):
                    raise UsageError(
                        f"modality {modality}: column {column.name!r} gives samples of shape {list(values.shape[1:])}; "
                        "expected columns that give vectors, or one column alone"
                    )
                parts.append(values)
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
            table = table.drop_columns([CELL + column.name for column in columns])
            table = table.append_column(modality, tensor_column(_blank(whole, table, modality)))
        return _ordered(table, self.plan)


class EncodeWithModels:
    """Second stage, in processes that hold the models: it turns prepared cells into features.

    Args:
        plan: of the modalities that have a model.
        everything: names of all modalities, in their order.
        context: settings.
    """

    def __init__(self, plan: Plan, everything: Plan, context: Context) -> None:
        self._everything = everything
        self._models = {
            modality: (column.name, column.kind.load(column.state, context)) for modality, (column,) in plan.items()
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table with features in place of prepared cells, and the steps of padded sequences."""
        for modality, (column, encode) in self._models.items():
            cells = combined(table.column(CELL + column))
            encoded = encode(cells)
            there = cells.is_valid().to_numpy(zero_copy_only=False)
            table = table.drop_columns([CELL + column])
            values = _blank(encoded.values, table, modality)
            if encoded.steps is not None:
                values = values * there.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
                table = with_steps(table, modality, encoded.steps, cells)
            table = table.append_column(modality, tensor_column(values))
        return _ordered(table, self._everything)


def with_steps(table: pa.Table, modality: str, steps: np.ndarray, cells: pa.Array) -> pa.Table:
    """Returns a table with the steps of padded sequences, which say also which samples lack the modality."""
    there = cells.is_valid().to_numpy(zero_copy_only=False)
    table = table.append_column(STEPS + modality, pa.array(steps * there))
    return table.drop_columns([PRESENT + modality]) if PRESENT + modality in table.column_names else table


def _blank(values: np.ndarray, table: pa.Table, modality: str) -> np.ndarray:
    """Returns the values with zeros for the samples that lack the modality."""
    if PRESENT + modality not in table.column_names:
        return values
    there = combined(table.column(PRESENT + modality)).to_numpy(zero_copy_only=False)
    return values * there.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)


def _ordered(table: pa.Table, plan: Plan) -> pa.Table:
    """Returns the columns in the order of the modalities, because it is that of the network."""
    cells = [name for name in table.column_names if name.startswith(CELL)]
    about = [name for name in table.column_names if not is_modality(name)]
    return table.select([*about, *(name for name in plan if name in table.column_names), *cells])
