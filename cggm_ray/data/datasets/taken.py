"""Interprets the columns of feature files: which are modalities, how long sequences are, and lines that report it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from cggm_ray.core.errors import listed
from cggm_ray.data.datasets.feature_files import PRESENT_SUFFIX, FeatureTable
from cggm_ray.data.datasets.samples import Samples
from cggm_ray.data.datasets.sentiment import is_audio, unlimited
from cggm_ray.data.formats.columns import Column, blocks, every
from cggm_ray.data.rounding import rounded_features, rounded_in_words

LENGTH_SUFFIXES = ("_lengths", "_length", "_lens", "_len")
MOST_LISTED = 12
LEAST_VOCABULARY = 1000
"""Padded rows of whole numbers with a maximum of at least this are interpreted as token ids."""
_WORDS = {
    "a label": ("label", "labels", "target", "targets", "class", "classes", "annotation", "annotations"),
    "token ids": ("token", "tokens", "input", "bert", "wordids", "vocab"),
    "a mask": ("mask", "masks", "padding"),
    "ids": ("id", "ids", "idx", "index", "indices", "uid", "segment", "segments"),
    "a number of steps": ("length", "lengths", "len", "lens"),
}


def no_modality(name: str, values: np.ndarray | Column) -> str | None:
    """Returns why a column is no modality unless the user names it, or None if it is one.

    Args:
        name: of the column.
        values: [N, ...]; of those that are read by rows, all rows are read where they could be whole numbers.
    """
    if values.dtype.kind not in "biuf":
        return "texts" if values.dtype.kind in "UO" else f"values of {values.dtype}"
    if values.size == len(values):
        return _said(name, ("a label", "ids", "a number of steps", "a mask")) or "one number for each sample"
    said = _said(name, ("a label", "a mask", "a number of steps"))
    if said is not None:
        return said
    if _bert_input(values):
        return "token ids"
    if _whole(values):
        said = _said(name, ("token ids", "ids"))
        if said is not None:
            return said
        if values.ndim == 2 and values.dtype.kind in "iu" and values.dtype.itemsize > 1 and _padded_ids(values):
            return "token ids"
        if values.ndim == 2 and every(values, lambda block: _flags(block) and (block.sum(1) == 1).all()):
            return "a label, one of several classes"
    if set(name) & set("./"):
        return "a name with dots or slashes"
    return None


def _said(name: str, meanings: Sequence[str]) -> str | None:
    """Returns the first of these meanings that a word of the name has."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word]
    return next((meaning for meaning in meanings if set(words) & set(_WORDS[meaning])), None)


def _whole(values: np.ndarray | Column) -> bool:
    def whole(block: np.ndarray) -> bool:
        return bool(np.isfinite(block).all() and (block == np.floor(block)).all())

    return values.dtype.kind in "biu" or every(values, whole)


def _flags(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _padded_ids(values: np.ndarray | Column) -> bool:
    """Returns whether rows are ids of a large vocabulary, with zeros at one end of some rows and nowhere else.

    Counts, histograms and readings of a sensor are large whole numbers too, but zeros, if any, are between other values.
    """
    most, front, back = 0, True, True
    for _, block in blocks(values):
        if not block.size or block.min() < 0:
            return False
        most = max(most, int(block.max()))
        there = (block != 0).astype(np.int8)
        steps = np.diff(there, axis=1)
        front, back = front and bool((steps >= 0).all()), back and bool((steps <= 0).all())
    # Without any padding both are true.
    return most >= LEAST_VOCABULARY and front != back


def _maybe_ids(values: np.ndarray | Column) -> bool:
    """Returns whether rows are whole numbers of at least 0, at least one of them as large as ids of a vocabulary."""
    if values.ndim != 2 or values.dtype.kind not in "iu" or not values.size:
        return False
    return every(values, lambda block: block.min() >= 0) and not every(
        values, lambda block: block.max() < LEAST_VOCABULARY
    )


def _bert_input(values: np.ndarray | Column) -> bool:
    """Returns whether rows are [3, T]: token ids, mask, segments, as MMSA stores the input of BERT."""
    if values.ndim != 3 or values.shape[1] != 3 or not values.size or not _whole(values[:1]):
        return False

    def ids_and_flags(block: np.ndarray) -> bool:
        ids = block[:, 0]
        return bool(_whole(ids) and ids.min() >= 0 and _flags(block[:, 1:]))

    return every(values, ids_and_flags)


def find_lengths(
    tables: Mapping[str, FeatureTable], modalities: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the columns such as `audio_lengths` with the number of real steps of a padded sequence.

    Returns:
        Modality to its column, and the columns of such names that are not used, with the reason.
    """
    used, unused = {}, {}
    for modality in modalities:
        for column in (modality + suffix for suffix in LENGTH_SUFFIXES):
            there = [column in table.columns for table in tables.values()]
            if not any(there):
                continue
            reasons = [_unusable(table, modality, column) for table in tables.values() if column in table.columns]
            reason = next((text for text in reasons if text), None if all(there) else "not in every split")
            if reason is None:
                used[modality] = column
                break
            unused[column] = reason
    return used, unused


def _unusable(table: FeatureTable, modality: str, column: str) -> str | None:
    """Returns why a column cannot hold the steps of a modality, or None if it can."""
    values = table.columns.get(modality)
    if values is None or values.ndim != 3:
        return f"{modality} is no sequence"
    if modality in table.steps:
        return f"the sequences of {modality} have their own lengths"
    steps = whole_steps(table.columns[column], len(values))
    if steps is None:
        return "expected a whole number of steps for each sample"
    if len(steps) and (steps.min() < 0 or steps.max() > values.shape[1]):
        return f"says {steps.min()} to {steps.max()} steps; {modality} has {values.shape[1]}"
    if padded_in_front(values, steps):
        return f"the padding of {modality} is in front of the steps"
    return None


def whole_steps(values: np.ndarray | Column, samples: int) -> np.ndarray | None:
    """Returns the numbers of steps, int64 [N], from [N] or [N, 1] of whole numbers, or None for other values."""
    if values.size == samples:
        values = np.asarray(values)
    if values.dtype.kind not in "iuf" or values.shape[:1] != (samples,) or values.size != samples or not _whole(values):
        return None
    return np.asarray(values).reshape(-1).astype(np.int64)


def padded_in_front(values: np.ndarray | Column, steps: np.ndarray) -> bool:
    """Returns whether all padded samples [N, T, D] begin with zeros and end with other values."""
    length = values.shape[1]
    place = np.arange(length)
    padded = (steps > 0) & (steps < length)
    if not padded.any():
        return False
    for rows, block in blocks(values):
        some = padded[rows]
        nothing = np.all(block[some] == 0, axis=2)
        front = place < (length - steps[rows][some])[:, None]
        if not (nothing | ~front).all() or nothing[:, -1].any():
            return False
    return True


def left_out(table: FeatureTable, used: set[str], named: bool, reasons: Mapping[str, str]) -> dict[str, str]:
    """Returns the unused columns of a table, with the reason.

    Args:
        table: of the first split.
        used: columns with a meaning.
        named: whether the modalities were named, so that others are left out for no reason of their own.
        reasons: known ones.
    """
    found: dict[str, str] = {}
    for name in table.available:
        if name in used or name.endswith(PRESENT_SUFFIX):
            continue
        values = table.columns.get(name)
        if name in reasons:
            found[name] = reasons[name]
        elif values is not None and not named:
            found[name] = no_modality(name, values) or "not used"
        elif name in table.unread or (values is None and not named):
            found[name] = "no array of numbers"
        else:
            found[name] = "not named by --modalities"
    return found


def about_values(tables: Mapping[str, FeatureTable], modalities: Sequence[str]) -> dict[str, str]:
    """Returns what happens to values that a person may not expect, for the modalities that have such."""
    found = {}
    for name in modalities:
        columns = [table.columns[name] for table in tables.values()]
        if is_audio(name):
            infinite = sum(int(unlimited(block).sum()) for column in columns for _, block in blocks(column))
            if infinite:
                found[name] = f"{infinite} infinite values as 0"
        if all(map(_maybe_ids, columns)):
            found[name] = "whole numbers as values, not as token ids"
    return found


def rounded_values(tables: Mapping[str, FeatureTable], modalities: Sequence[str]) -> str:
    """Returns which features single precision changes, by modality; an empty text where it changes none."""
    texts = []
    for name in modalities:
        parts = [rounded_features(table.columns[name]) for table in tables.values()]
        found = {number: words for part in reversed(parts) for number, words in part.items()}
        if found:
            texts.append(f"{name}, {rounded_in_words(found)}")
    return "; ".join(texts)


def in_lines(parts: Sequence[tuple[str, str]]) -> list[str]:
    """Returns a block of lines of the form 'what  which'."""
    return [f"  {what:<12}{text}" for what, text in parts if text]


def in_words(found: Mapping[str, str]) -> str:
    """Returns the columns and their reasons in one line, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in found.items():
        by_reason.setdefault(reason, []).append(name)
    texts = []
    for reason, names in by_reason.items():
        texts.append(f"{listed(names, MOST_LISTED, longest=40)} ({reason})")
    return "; ".join(texts)


def block(
    where: str,
    target: str,
    splits: Mapping[str, Samples],
    how: str,
    lengths: Mapping[str, str],
    kinds: Mapping[str, str],
    tables: Mapping[str, FeatureTable],
    out: Mapping[str, str],
) -> list[str]:
    """Returns lines about the interpretation of a file.

    Args:
        where: the file or folder.
        target: what is predicted, in words.
        splits: the samples.
        how: they were divided, in words; it may be empty.
        lengths: modality to what says how long its sequences are.
        kinds: modality to its kind; it may be empty.
        tables: what was read, by split.
        out: columns that are not used, with the reason.
    """
    first = next(iter(splits.values()))
    modalities, values = [], about_values(tables, list(first.inputs))
    for name, array in first.inputs.items():
        text = f"{name} {list(array.shape[1:])}"
        text += f" {kinds[name]}" if name in kinds else ""
        text += f", steps from {lengths[name]}" if name in lengths else ""
        modalities.append(text + (f", {values[name]}" if name in values else ""))
    parts = [
        ("target", target),
        ("modalities", "; ".join(modalities)),
        ("rounded", rounded_values(tables, list(first.inputs))),
        ("names", "none" if first.names is None else "id"),
        (
            "samples",
            ", ".join([*(f"{split} {len(part.target)}" for split, part in splits.items()), *filter(None, [how])]),
        ),
        ("left out", in_words(out)),
    ]
    return [f"data: {where}", *in_lines(parts)]
