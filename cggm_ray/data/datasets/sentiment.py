"""Functions for sentiment sets that several pipelines share: names of columns, targets, infinities, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.datasets.feature_files import FeatureTable
from cggm_ray.data.formats.untrusted import finite
from cggm_ray.tasks.metrics import SENTIMENT_RANGE

TARGETS = ("labels", "regression_labels", "label", "regression_label", "sentiment")
"""Names of the sentiment, in the order in which they are searched for."""
OTHER_NAMES = {
    "text": ("text", "language", "words"),
    "audio": ("audio", "acoustic"),
    "vision": ("vision", "visual", "video"),
}
LEAST_MODALITIES = 2


def is_sentiment(target: str, modalities: Sequence[str]) -> bool:
    """Returns whether the names of a regression are those of a sentiment set.

    That is a target `regression_labels` (MMSA; also `_T`, `_A`, `_V`), or a target of another of the usual names beside two
    or more of text, audio and vision.
    """
    if target.startswith("regression_label"):
        return True
    known = sum(any(name in modalities for name in names) for names in OTHER_NAMES.values())
    return target in TARGETS and known >= LEAST_MODALITIES


def is_audio(modality: str) -> bool:
    """Returns whether a modality is audio, whose features are -inf in silence (the logarithm of zero)."""
    return modality in OTHER_NAMES["audio"]


def unlimited(values: np.ndarray) -> np.ndarray:
    """Returns where numbers are infinite in the file. A number that float32 cannot hold does not count."""
    return np.isinf(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)


def choose_target(values: np.ndarray, index: int | None, where: str) -> np.ndarray:
    """Returns the chosen target of every sample: [N, K, ...] to [N, ...]; axes of length 1 do not count.

    Args:
        values: [N, ...].
        index: which of K; None if there is one.
        where: file, split and column.

    Raises:
        DataError: there are not so many.
    """
    shape = tuple(size for size in values.shape[1:] if size != 1)
    values = values.reshape(len(values), *shape)
    if index is None:
        return values
    if not shape:
        raise DataError(f"{where}: one number for each sample; leave out --target_index")
    if not -1 < index < shape[0]:
        raise DataError(f"{where}: {shape[0]} targets for each sample; expected --target_index 0 to {shape[0] - 1}")
    return values[:, index]


def numbers_of(table: FeatureTable, column: str, values: np.ndarray, index: int | None) -> np.ndarray:
    """Returns the regression targets [N, 1], after checking them.

    Raises:
        DataError: a target that is not one finite number for each sample.
    """
    where = f"{table.where}, target {column}"
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where}: shape {values.shape} of {values.dtype}; expected one number for each sample")
    chosen = choose_target(values, index, where)
    if chosen.ndim > 1:
        hint = (
            f"; choose one with --target_index 0 to {chosen.shape[1] - 1}" if chosen.ndim == 2 or index is None else ""
        )
        raise DataError(f"{where}: shape {values.shape} of {values.dtype}; expected one number for each sample{hint}")
    bad = np.flatnonzero(~finite(chosen))
    if len(bad):
        raise DataError(f"{where}, row {bad[0]}: {chosen[bad[0]]}; expected a finite number")
    return chosen.reshape(-1, 1)


def target_in(tables: Mapping[str, FeatureTable]) -> str | None:
    """Returns the first of the usual names of the sentiment that the first table has, or None."""
    table = next(iter(tables.values()))
    return next((name for name in TARGETS if name in table.available), None)


def find_target(tables: Mapping[str, FeatureTable]) -> str:
    """Returns the column of the sentiment: the first of the usual names that the first table has.

    Raises:
        DataError: none.
    """
    found = target_in(tables)
    if found is not None:
        return found
    table = next(iter(tables.values()))
    raise DataError(
        f"{table.where}: field {TARGETS[0]} is missing; found {listed(table.available)}; expected text, audio, vision, "
        f"{TARGETS[0]}, or --target to name the field"
    )


def range_of(target: np.ndarray, sentiment: bool) -> str:
    """Returns a line about the range of the labels, and about those that the sentiment metrics clip.

    Args:
        target: [N, ...] of all splits.
        sentiment: whether those metrics are formed.
    """
    text = f"{target.min():g} to {target.max():g}"
    if not sentiment:
        return text
    most = SENTIMENT_RANGE
    outside = int((np.abs(target) > most).sum())
    if outside:
        text += f"; {outside} of {target.size} lie outside [-{most}, {most}]: Acc-7 and Acc-5 clip them, MAE does not"
    elif np.abs(target).max() <= 1:
        text += "; Acc-7 and Acc-5 round them to whole numbers, which leaves at most -1, 0 and 1"
    return text
