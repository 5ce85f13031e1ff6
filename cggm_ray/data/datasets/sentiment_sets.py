"""Reads and checks the samples of a sentiment set with text, audio and vision, from any of the layouts of its pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.datasets.feature_files import FeatureTable, column_table
from cggm_ray.data.datasets.samples import Samples
from cggm_ray.data.datasets.sentiment import OTHER_NAMES, find_target, is_audio, numbers_of, range_of, unlimited
from cggm_ray.data.datasets.taken import LENGTH_SUFFIXES, block, find_lengths, left_out, whole_steps
from cggm_ray.data.formats.columns import Column
from cggm_ray.data.formats.layouts import IDENTITY, columns_of
from cggm_ray.data.formats.untrusted import finite
from cggm_ray.data.split_names import SPLITS, find_splits

MODALITIES = tuple(OTHER_NAMES)
LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class Sentiments:
    """A set of sentiment.

    Attributes:
        splits: the samples of every split.
        taken: lines about the interpretation of the file.
        missing: modalities that are in no split.
    """

    splits: dict[str, Samples]
    taken: list[str]
    missing: tuple[str, ...]


def read_sentiments(
    contents: Mapping[Path, Any],
    where: str,
    target: str | None = None,
    index: int | None = None,
    wanted: Sequence[str] | None = None,
    rounds: bool = True,
) -> Sentiments:
    """Returns the splits as arrays: modalities [N, T, D] with known steps, sentiments [N, 1], names.

    Args:
        contents: of the one pickle, or of several that are named after splits.
        where: the set, for messages.
        target: field of the sentiment; None for the first of the usual names.
        index: which of several targets of a sample.
        wanted: modalities that must be there; None for all.
        rounds: whether the metrics round sentiments to whole numbers, which a line then says.

    Raises:
        DataError: names the file, the split, the field, what was found and what was expected.
    """
    tables = _tables(contents, where)
    field = find_target(tables) if target is None else target
    names, missing = _modalities(tables, wanted, field)
    used, unused = find_lengths(tables, names)
    longest = {name: _longest(tables, name) for name in names if any(name in table.steps for table in tables.values())}
    splits: dict[str, Samples] = {}
    for split, table in tables.items():
        labels = numbers_of(table, field, np.asarray(table.columns[field]), index)
        if not len(labels):
            raise DataError(f"{table.where}: the split is empty; expected at least one sample")
        inputs: dict[str, np.ndarray | Column] = {}
        steps = {}
        for name in names:
            values = np.asarray(table.columns[name])
            _check_modality(values, name, len(labels), table.where, field)
            if name in longest:
                steps[name] = table.steps.get(name, np.full(len(values), values.shape[1]))
                values = np.pad(values, ((0, 0), (0, longest[name] - values.shape[1]), (0, 0)))
            elif name in used:
                found = whole_steps(table.columns[used[name]], len(values))
                assert found is not None
                steps[name] = found
            if splits and values.shape[1:] != splits[SPLITS[0]].inputs[name].shape[1:]:
                expected = splits[SPLITS[0]].inputs[name].shape[1:]
                raise DataError(
                    f"{table.where}, field {name}: samples of shape {values.shape[1:]}; in train {expected}"
                )
            inputs[name] = values
        if len(steps) == len(names) and not np.any(list(steps.values()), axis=0).all():
            row = int(np.flatnonzero(~np.any(list(steps.values()), axis=0))[0])
            raise DataError(f"{table.where}, sample {row}: no time step of any modality; expected at least one")
        splits[split] = Samples(inputs=inputs, steps=steps, target=labels, names=_names(table, len(labels)))
    described = used | dict.fromkeys(longest, "the lengths of the sequences")
    first = next(iter(tables.values()))
    known = {*names, field, IDENTITY, *used.values()}
    out = left_out(first, known, False, unused)
    labels = np.concatenate([part.target for part in splits.values()])
    chosen = field if index is None else f"{field} [{index}]"
    taken = block(
        where,
        f"{chosen}, {range_of(labels, sentiment=rounds)}",
        splits,
        "",
        described,
        {},
        tables,
        out,
    )
    return Sentiments(splits=splits, taken=taken, missing=missing)


def _tables(contents: Mapping[Path, Any], where: str) -> dict[str, FeatureTable]:
    """Returns a table for every split, all of which must exist."""
    if len(contents) == 1:
        (content,) = contents.values()
        if not isinstance(content, Mapping):
            raise DataError(
                f"{where}: found a {type(content).__name__}; expected a dict with the splits {', '.join(SPLITS)}"
            )
        named = columns_of(content, where) or {}
    else:
        named = {path.stem: content for path, content in contents.items()}
    found = find_splits(named, where)
    tables: dict[str, FeatureTable] = {}
    for split in SPLITS:
        if split not in found:
            raise DataError(f"{where}: split {split} is missing; found {listed(named)}; expected {', '.join(SPLITS)}")
        content, place = named[found[split]], f"{where}: split {split}"
        columns = columns_of(content, place)
        if columns is None:
            raise DataError(
                f"{place}: found a {type(content).__name__}; expected a dict of {', '.join(MODALITIES)}, {LABELS}, or a "
                "list of samples"
            )
        tables |= tables_of({split: columns}, where)
    return tables


def tables_of(splits: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, FeatureTable]:
    """Returns a table for every split, with its modalities under their usual names.

    Args:
        splits: split to column to values, or all of them under `WHOLE`.
        where: the set, for messages.
    """
    tables = {}
    for split, columns in splits.items():
        for name, others in OTHER_NAMES.items():
            other = next((other for other in others if other in columns and other != "words"), None)
            if name not in columns and other is not None:
                columns = _renamed(columns, other, name)
        tables[split] = column_table(columns, columns, f"{where}: split {split}" if split else where, lambda _: True)
    return tables


def _renamed(columns: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Returns the columns with another name for one column and its lengths."""
    names = {old: new, **{old + suffix: new + suffix for suffix in LENGTH_SUFFIXES}}
    return {names.get(name, name): value for name, value in columns.items()}


def _modalities(
    tables: Mapping[str, FeatureTable], wanted: Sequence[str] | None, field: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the modalities that are in every split, and those that are in none.

    Only modalities that are wanted must be there. Words alone are no features of text, and their lack is no error.
    """
    absent = {name for name in MODALITIES if not any(name in table.available for table in tables.values())}
    if all("words" in table.available for table in tables.values()):
        required = {name for name in MODALITIES if not (name == "text" and name in absent)}
    else:
        required = set(MODALITIES)
    missing = tuple(name for name in MODALITIES if name in absent & required)
    if wanted is not None:
        required &= set(wanted)
    expected = [name for name in MODALITIES if name not in absent or name in required]
    for table in tables.values():
        for name in (*expected, field):
            if name not in table.available:
                every = ", ".join((*expected, field))
                raise DataError(
                    f"{table.where}: field {name} is missing; found {listed(table.available)}; expected {every}"
                )
            where = f"{table.where}, field {name}"
            values = table.column(name, "field")
            if values.dtype.kind not in "fiu":
                raise DataError(f"{where}: found an array of {values.dtype}; expected an array of numbers")
            if name in table.present:
                row = int(np.flatnonzero(~table.present[name])[0])
                raise DataError(f"{where}, sample {row}: is missing; expected numbers for every sample")
    return tuple(expected), missing


def _longest(tables: Mapping[str, FeatureTable], name: str) -> int:
    return max(table.columns[name].shape[1] for table in tables.values())


def _check_modality(values: np.ndarray, name: str, samples: int, where: str, field: str) -> None:
    where = f"{where}, field {name}"
    if values.ndim != 3:
        raise DataError(f"{where}: {values.ndim} axes, shape {values.shape}; expected [N, T, D]")
    if len(values) != samples:
        raise DataError(f"{where}: {len(values)} samples; field {field} has {samples}")
    if 0 in values.shape:
        raise DataError(f"{where}: shape {values.shape}; expected at least one time step and one feature")
    # The released features hold -inf where the audio is silent; nothing else may be other than a number.
    bad = ~finite(values) & ~unlimited(values) if is_audio(name) else ~finite(values)
    if bad.any():
        sample, step, feature = np.argwhere(bad)[0]
        found = values[sample, step, feature]
        raise DataError(
            f"{where}, sample {sample}: {found} at step {step}, feature {feature}; expected a finite number"
        )


def _names(table: FeatureTable, samples: int) -> list[str] | None:
    if IDENTITY not in table.available:
        return None
    names = np.asarray(table.column(IDENTITY, "field"))
    if len(names) != samples:
        raise DataError(f"{table.where}, field id: {len(names)} names; the labels have {samples} samples")
    return [str(name) for name in names]
