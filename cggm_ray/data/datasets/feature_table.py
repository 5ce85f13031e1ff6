"""Turns columns of files into checked samples: it chooses the modalities and the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.core.kinds import KINDS, SEQUENCE, fits, kind_of
from cggm_ray.core.registry import nearest
from cggm_ray.data.datasets.feature_files import FeatureTable
from cggm_ray.data.datasets.feature_rows import CheckFinite, as_names, padded, row_in_words, silence_as_zero
from cggm_ray.data.datasets.samples import Samples
from cggm_ray.data.datasets.sentiment import choose_target, is_audio, numbers_of
from cggm_ray.data.datasets.taken import in_words, no_modality, whole_steps
from cggm_ray.data.formats.columns import Column, Mapped, mapped
from cggm_ray.data.formats.untrusted import finite
from cggm_ray.data.rounding import check_target_rounding


def choose_modalities(
    tables: Mapping[str, FeatureTable], wanted: Sequence[str] | None, other: set[str]
) -> tuple[str, ...]:
    """Returns the modalities in the order of the file.

    They are the wanted ones, or every column with an array of numbers per sample that does not look like labels, ids or
    token ids.

    Args:
        tables: by split.
        wanted: names, or None.
        other: columns with another meaning.

    Raises:
        DataError: a wanted one is in no column, or there is none.
    """
    table = next(iter(tables.values()))
    by_role = {name: no_modality(name, values) for name, values in table.columns.items() if name not in other}
    for name in wanted or ():
        if name not in table.available or name in other:
            found = [column for column in table.available if column not in other]
            raise DataError(f"{table.where}: modality {name!r} is missing{nearest(name, found)}; found {listed(found)}")
        if set(name) & set("./"):
            raise DataError(f"{table.where}: modality {name!r}; expected a name without dots and slashes")
    if wanted is not None:
        return tuple(name for name in table.available if name in wanted)
    found = [name for name, reason in by_role.items() if reason is None]
    if not found:
        reasons = {name: reason for name, reason in by_role.items() if reason is not None}
        if not reasons and table.unread:
            raise DataError(next(iter(table.unread.values())))
        raise DataError(
            f"{table.where}: no column holds an array of numbers for each sample; found {in_words(reasons) or 'nothing'}; name "
            "the modalities with --modalities"
        )
    return tuple(found)


def shape_kinds(
    tables: Mapping[str, FeatureTable],
    modalities: Sequence[str],
    requested: Mapping[str, str],
    lengths: Mapping[str, str],
) -> dict[str, str]:
    """Returns the kind of every modality: the requested one, or the one that follows from the shape of its samples.

    Raises:
        DataError: a shape that is no kind, or not the requested one.
    """
    for field_name, given in (("kinds", requested), ("lengths", lengths)):
        for name in given:
            if name not in modalities:
                raise DataError(
                    f"{field_name}: {name!r} is no modality{nearest(name, modalities)}; found {listed(modalities)}"
                )
    kinds = {}
    table = next(iter(tables.values()))
    for name in modalities:
        shape = _modality(table, name).shape[1:]
        where = f"{table.where}, modality {name}"
        padded = name in lengths or any(name in part.steps for part in tables.values())
        kind = requested.get(name) or (SEQUENCE if padded and len(shape) == 2 else kind_of(shape))
        if kind is None:
            raise DataError(f"{where}: samples of shape {shape}; expected one of {', '.join(KINDS.values())}")
        if not fits(kind, shape):
            raise DataError(f"{where}: samples of shape {shape}; a {kind} is {KINDS[kind]}")
        if padded and kind != SEQUENCE:
            raise DataError(f"{where}: rows of several lengths, taken for a {kind}; expected a sequence [T, D]")
        kinds[name] = kind
    return kinds


def gather(
    tables: Mapping[str, FeatureTable],
    modalities: Sequence[str],
    lengths: Mapping[str, str],
    target: Mapping[str, np.ndarray],
) -> dict[str, Samples]:
    """Checks and returns the samples of every table: shapes, finite numbers, at least one modality each.

    Args:
        tables: by split.
        modalities: their columns.
        lengths: modality to the column of its time steps.
        target: of every table.

    Raises:
        DataError: names file, modality and row.
    """
    longest = {
        name: max(_modality(table, name).shape[1] for table in tables.values())
        for name in modalities
        if any(name in table.steps for table in tables.values())
    }
    gathered: dict[str, Samples] = {}
    for split, table in tables.items():
        samples = len(target[split])
        names = _names(table, samples)
        inputs, present, steps = {}, {}, {}
        for name in modalities:
            values = _modality(table, name)
            where = f"{table.where}, modality {name}"
            if len(values) != samples:
                raise DataError(f"{where}: {len(values)} samples; the target has {samples}")
            there = table.present.get(name, np.ones(samples, bool))
            if name in longest:
                steps[name] = table.steps.get(name, np.full(samples, values.shape[1])) * there
                values = padded(values, longest[name])
            if name in lengths:
                steps[name] = _lengths(table, lengths[name], values.shape[1], samples) * there
                there = there & (steps[name] > 0)
            if gathered:
                first = next(iter(gathered.values())).inputs[name]
                if values.shape[1:] != first.shape[1:]:
                    raise DataError(
                        f"{where}: samples of shape {values.shape[1:]}; {next(iter(gathered))} has {first.shape[1:]}"
                    )
            if is_audio(name):
                # Features of silence are -inf (`is_audio`); `block` counts them.
                values = mapped(values, silence_as_zero)
            inputs[name] = mapped(values, CheckFinite(there, where, names))
            present[name] = there
        nothing = np.flatnonzero(~np.any(list(present.values()), axis=0))
        if len(nothing):
            raise DataError(
                f"{table.where}, row {row_in_words(nothing[0], names)}: has none of the modalities {', '.join(modalities)}; "
                "expected at least one"
            )
        gathered[split] = Samples(
            inputs=inputs,
            present=present,
            steps=steps,
            target=target[split],
            names=names,
            rows=np.arange(samples),
            source=split,
        )
    return gathered


def read_classes(
    tables: Mapping[str, FeatureTable],
    column: str,
    given: Sequence[str] | None,
    rows: Mapping[str, np.ndarray] | None,
    index: int | None = None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the class numbers of every table, and the classes: the given ones, or those of the train split in their order.

    Args:
        tables: by split, or one under `WHOLE`.
        column: of the labels.
        given: all classes, or None.
        rows: of every split of a whole table, if the file says them.
        index: which of several targets of a sample.

    Raises:
        DataError: a label that is none of the classes, with its row.
    """
    labels = {name: _labels(table, column, index) for name, table in tables.items()}
    if given is None:
        first = "train" if "train" in tables else next(iter(tables))
        known = labels[first]
        if rows is not None:
            known = known[rows["train"]]
        classes = np.unique(known)
    else:
        classes = np.array(given)
    texts = tuple(str(value) for value in classes.tolist())
    numbers = {text: number for number, text in enumerate(texts)}
    found = {}
    for name, values in labels.items():
        as_text = [str(value) for value in values.tolist()]
        for row, text in enumerate(as_text):
            if text not in numbers:
                raise DataError(
                    f"{tables[name].where}, target {column}, row {row}: label {short_repr(text)} is none of the {len(texts)} "
                    f"classes {listed(texts, 10)}"
                )
        found[name] = np.array([numbers[text] for text in as_text], np.int64)
    if len(texts) < 2:
        raise DataError(
            f"{next(iter(tables.values())).where}, target {column}: {len(texts)} class; expected at least two"
        )
    return found, texts


def read_values(tables: Mapping[str, FeatureTable], column: str, index: int | None = None) -> dict[str, np.ndarray]:
    """Returns the regression targets [N, 1] of every table; `index` chooses one of several targets of a sample.

    Raises:
        DataError: a target that is not one finite number for each sample.
    """
    return {
        name: numbers_of(table, column, _target(table, column), index).astype(np.float32)
        for name, table in tables.items()
    }


def check_rounding(tables: Mapping[str, FeatureTable], column: str, index: int | None = None) -> None:
    """Raises a DataError if targets of a regression differ by too little for single precision, in which they are trained.

    Args:
        tables: by split.
        column: of the targets, which `read_values` has checked.
        index: which of several targets of a sample.
    """
    parts = [numbers_of(table, column, _target(table, column), index) for table in tables.values()]
    check_target_rounding(np.concatenate(parts), f"{next(iter(tables.values())).where}, target {column}")


def _modality(table: FeatureTable, name: str) -> np.ndarray | Column:
    """Returns the values [N, ...] with at least one axis per sample."""
    values = table.column(name, "modality")
    if values.dtype.kind not in "biuf" or 0 in values.shape[1:]:
        raise DataError(f"{table.where}, modality {name}: shape {values.shape} of {values.dtype}; expected numbers")
    return values[:, None] if isinstance(values, np.ndarray) and values.ndim == 1 else values


def _lengths(table: FeatureTable, column: str, longest: int, samples: int) -> np.ndarray:
    values, where = table.column(column, "lengths"), f"{table.where}, lengths {column}"
    steps = whole_steps(values, samples)
    if steps is None:
        raise DataError(f"{where}: shape {values.shape} of {values.dtype}; expected a whole number for each sample")
    bad = np.flatnonzero((steps < 0) | (steps > longest))
    if len(bad):
        raise DataError(f"{where}, row {bad[0]}: {steps[bad[0]]}; expected 0 to {longest} time steps")
    return steps


def _target(table: FeatureTable, column: str) -> np.ndarray:
    values = np.asarray(table.column(column, "target"))
    missing = np.flatnonzero(~table.present.get(column, np.ones(len(values), bool)))
    if len(missing):
        raise DataError(
            f"{table.where}, target {column}, row {missing[0]}: is missing; expected a target for every sample"
        )
    return values


def _labels(table: FeatureTable, column: str, index: int | None) -> np.ndarray:
    """Returns the labels [N] as whole numbers or texts; a one-hot row becomes the number of its class."""
    values, where = _target(table, column), f"{table.where}, target {column}"
    kind, shape = values.dtype, values.shape
    if kind.kind not in "biufU":
        raise DataError(f"{where}: shape {shape} of {kind}; expected one label for each sample")
    values = choose_target(values, index, where)
    if values.ndim == 2 and kind.kind in "biuf" and np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all():
        return values.argmax(1)
    if values.ndim > 1:
        hint = f"; choose one with --target_index 0 to {values.shape[1] - 1}" if index is None else ""
        raise DataError(f"{where}: shape {shape} of {kind}; expected one label for each sample{hint}")
    if values.dtype.kind == "f":
        bad = np.flatnonzero((values != np.round(values)) | ~finite(values) | (np.abs(values) > 2**24))
        if len(bad):
            raise DataError(f"{where}, row {bad[0]}: {values[bad[0]]}; expected a whole number (or --task regression)")
        return values.astype(np.int64)
    return values.astype(np.int64) if values.dtype.kind == "b" else values


def _names(table: FeatureTable, samples: int) -> Sequence[str] | Column | None:
    values = table.columns.get("id")
    if values is None:
        return None
    if len(values) != samples:
        raise DataError(f"{table.where}, id: {len(values)} names; the target has {samples}")
    if isinstance(values, Column):
        return Mapped(values, as_names, (samples,), np.dtype(object))
    return as_names(values, slice(0, samples)).tolist()
