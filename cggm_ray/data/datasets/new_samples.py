"""Samples of feature files that are only predicted: any number, with or without labels, split or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.feature_files import FeatureTable
from cggm_ray.data.datasets.feature_rows import padded
from cggm_ray.data.datasets.feature_table import gather, read_classes, read_values
from cggm_ray.data.datasets.samples import Samples
from cggm_ray.data.datasets.taken import find_lengths
from cggm_ray.data.formats.columns import Column, Joined, Taken
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.shards.shards import (
    PREDICT,
    Manifest,
    RawShard,
)
from cggm_ray.data.split_names import SPLITS, says_rows


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Settings for reading labels, if there are any.

    Attributes:
        column: of them; None where there is none.
        classes: that a classification was trained on; None for a regression.
        index: which of several targets of a sample.
    """

    column: str | None
    classes: Sequence[str] | None = None
    index: int | None = None


def part_of(
    tables: Mapping[str, FeatureTable], split: str | None, rows: Mapping[str, np.ndarray] | None
) -> dict[str, FeatureTable]:
    """Returns the tables of one split, or all of them in the order of `SPLITS`.

    Args:
        tables: by split, or one under `WHOLE`.
        split: the wanted one; None for all samples.
        rows: of every split of a whole table, from `stated_rows`; None where nothing says them.

    Raises:
        DataError: there is no such split.
    """
    if split is None:
        return {name: tables[name] for name in (WHOLE, *SPLITS) if name in tables}
    where = next(iter(tables.values())).where
    if split in tables:
        return {split: tables[split]}
    if WHOLE not in tables or rows is None:
        found = ", ".join(tables) if WHOLE not in tables else "samples that are not split"
        raise DataError(f"{where}: split {split} is missing; found {found}; leave out --split to predict everything")
    table, chosen = tables[WHOLE], rows[split]

    def picked(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: Taken(values, chosen) if isinstance(values, Column) else values[chosen]
            for name, values in arrays.items()
            if says_rows(name) is None
        }

    return {
        split: replace(table, columns=picked(table.columns), present=picked(table.present), steps=picked(table.steps))
    }


def masked_steps(trained: Manifest) -> dict[str, int]:
    """Returns the modalities whose padding the run masked, with the time steps of its data."""
    return {name: trained.modalities[name].shape[0] for name in trained.notes.get("masked", ())}


def new_shards(
    tables: Mapping[str, FeatureTable],
    modalities: Sequence[str],
    masked: Mapping[str, int],
    lengths: Mapping[str, str],
    labels: Labels,
) -> tuple[Samples, Iterator[RawShard]]:
    """Returns all samples of these tables, one after the other, and yields their raw shards.

    Args:
        tables: by split, or one under `WHOLE`.
        modalities: that the run was trained with.
        masked: those whose padding was hidden in training, with the time steps there; columns such as `audio_lengths` say
            which are real here too. They are padded to as many, for the place of a step in the fusion depends on it.
        lengths: modality to the column of its time steps, where the run names it.
        labels: how they are read.

    Raises:
        DataError: names file, column and row.
    """
    used, _ = find_lengths(tables, [name for name in masked if name not in lengths])
    given = {name: column for name, column in lengths.items() if all(column in t.available for t in tables.values())}
    counts = {name: len(table.column(modalities[0], "modality")) for name, table in tables.items()}
    found = {name: _labels_of(table, labels, counts[name]) for name, table in tables.items()}
    parts = gather(tables, modalities, used | given, {name: target for name, (target, _) in found.items()})
    labelled = np.concatenate([there for _, there in found.values()])
    whole = _padded(_joined(list(parts.values())), masked)
    incomplete = {name for name, flags in whole.present.items() if not flags.all()}
    return whole, whole.shards(PREDICT, incomplete, labelled)


def _labels_of(table: FeatureTable, labels: Labels, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the targets, 0 for missing ones, and bool [N] of the samples that have a label (not None, NaN or empty)."""
    classes = labels.classes is not None
    target = np.zeros(samples, np.int64) if classes else np.zeros((samples, 1), np.float32)
    if labels.column is None or labels.column not in table.available:
        return target, np.zeros(samples, bool)
    values = np.asarray(table.column(labels.column, "target"))
    if len(values) != samples:
        raise DataError(f"{table.where}, target {labels.column}: {len(values)} labels for {samples} samples")
    there = table.present.get(labels.column, np.ones(samples, bool)).copy()
    flat = values.reshape(samples, -1)
    if values.dtype.kind == "f":
        there &= ~np.isnan(flat).any(1)
    elif values.dtype.kind == "U":
        there &= (flat != "").all(1)
    if there.any():
        known = {WHOLE: replace(table, columns={labels.column: values[there]}, present={})}
        if classes:
            target[there] = read_classes(known, labels.column, labels.classes, None, labels.index)[0][WHOLE]
        else:
            target[there] = read_values(known, labels.column, labels.index)[WHOLE]
    return target, there


def _padded(samples: Samples, least: Mapping[str, int]) -> Samples:
    """Returns the samples with the named sequences padded to at least these steps, and with the numbers of real steps."""
    inputs, steps = dict(samples.inputs), dict(samples.steps)
    for name, length in least.items():
        values = inputs[name]
        steps.setdefault(name, np.full(len(values), values.shape[1]) * samples.present[name])
        inputs[name] = padded(values, max(length, values.shape[1]))
    return replace(samples, inputs=inputs, steps=steps)


def _joined(parts: Sequence[Samples]) -> Samples:
    first, *others = parts
    if not others:
        return first

    def joined(arrays: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}

    names = [part.names for part in parts if part.names is not None]
    by_rows = any(part.by_rows for part in parts)
    # Every table counts its rows from 0.
    starts = np.cumsum([0, *(len(part.target) for part in parts)])
    rows = [start + part.rows for start, part in zip(starts, parts, strict=False) if part.rows is not None]
    inputs: dict[str, Any] = {}
    for name in first.inputs:
        columns = [part.inputs[name] for part in parts]
        inputs[name] = Joined(columns) if any(isinstance(c, Column) for c in columns) else np.concatenate(columns)
    return Samples(
        inputs=inputs,
        rows=np.concatenate(rows) if by_rows else None,
        source=first.source,
        present=joined([part.present for part in parts]),
        steps=joined([part.steps for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        names=_joined_names(names) if len(names) == len(parts) else None,
    )


def _joined_names(parts: Sequence[Sequence[str] | Column]) -> Sequence[str] | Column:
    if any(isinstance(part, Column) for part in parts):
        return Joined([part if isinstance(part, Column) else np.array(part, dtype=object) for part in parts])
    return [name for part in parts for name in np.asarray(part, dtype=object).tolist()]
