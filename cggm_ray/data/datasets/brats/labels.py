"""Label conventions of the BraTS challenges. A convention belongs to a set of cases, because a single file does not show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.tasks.metrics import CAVITY_REGIONS, TUMOUR_REGIONS

AUTO = "auto"
ROUNDED = 1e-3
"""Largest difference between a label of a scaled file and a whole number."""
LARGEST = 4


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Meaning of the labels of a set.

    Attributes:
        name: of the challenge that introduced it.
        labels: by class: background, necrotic core, oedema, enhancing tumour and, of 2024, resection cavity.
        regions: that are scored, as tuples of classes.
    """

    name: str
    labels: tuple[int, ...]
    regions: dict[str, tuple[int, ...]]

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """Returns checked labels as numbers of classes, uint8 of the same shape."""
        numbers = np.zeros(LARGEST + 1, dtype=np.uint8)
        numbers[list(self.labels)] = np.arange(len(self.labels))
        return numbers[labels]

    def written(self, classes: np.ndarray) -> np.ndarray:
        """Returns numbers of classes as labels, uint8 of the same shape."""
        return np.array(self.labels, dtype=np.uint8)[classes]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.labels))})"


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(name="brats2021", labels=(0, 1, 2, 4), regions=TUMOUR_REGIONS),
        Convention(name="brats2023", labels=(0, 1, 2, 3), regions=TUMOUR_REGIONS),
        Convention(name="brats2024", labels=(0, 1, 2, 3, 4), regions=CAVITY_REGIONS),
    )
}
"""2012 to 2021: 4 is enhancing tumour. 2023: 3 is. 2024 (after treatment): 3 is, and 4 is resection cavity."""
CHOICES = (AUTO, *CONVENTIONS)


def checked_labels(values: np.ndarray, where: str) -> np.ndarray:
    """Returns the labels as uint8, after checking them.

    Args:
        values: of any type.
        where: file and key, for messages.

    Raises:
        DataError: a label that no convention has.
    """
    whole = values if values.dtype.kind in "iu" else np.rint(values)
    good = (whole >= 0) & (whole <= LARGEST)
    if whole is not values:
        # Infinity is left out, because its difference to a whole number is not defined.
        good &= np.abs(np.where(good, values, 0) - np.where(good, whole, 0)) <= ROUNDED
    if not good.all():
        raise DataError(
            f"{where}: label {values[~good].flat[0]:g} is outside the classes; expected 0, 1, 2, 4 or 0, 1, 2, 3"
        )
    return whole.astype(np.uint8)


def labels_there(labels: np.ndarray) -> frozenset[int]:
    """Returns the labels of a case, without 0."""
    return frozenset(np.flatnonzero(np.bincount(labels[labels > 0], minlength=1)).tolist())


def decide(found: Iterable[tuple[str, frozenset[int]]], wanted: str = AUTO) -> tuple[Convention, str | None]:
    """Returns the convention of a set, and a line to print if its labels do not show it.

    Args:
        found: of every case, its file and key, and its labels.
        wanted: name of a convention; `AUTO` to decide by the labels.

    Raises:
        DataError: a label that the wanted convention does not have, or labels 3 and 4 in one set.
    """
    first: dict[int, str] = {}
    both = None
    for where, labels in found:
        if wanted != AUTO:
            strange = sorted(labels - set(CONVENTIONS[wanted].labels))
            if strange:
                raise DataError(f"{where}: label {strange[0]}; expected the labels of --labels {CONVENTIONS[wanted]}")
        for label in labels:
            first.setdefault(label, where)
        if both is None and {3, 4} <= labels:
            both = where
    if wanted != AUTO:
        return CONVENTIONS[wanted], None
    if 3 in first and 4 in first:
        places = f"{first[3]}: label 3; {first[4]}: label 4" if both is None else f"{both}: labels 3 and 4"
        raise DataError(
            f"{places}; expected 0, 1, 2, 4 or 0, 1, 2, 3 in all cases of a set, or with --labels brats2024 enhancing tumour "
            "as 3 and resection cavity as 4"
        )
    if 3 in first or 4 in first:
        return CONVENTIONS["brats2023" if 3 in first else "brats2021"], None
    taken = CONVENTIONS["brats2021"]
    return taken, f"labels: no case has label 3 or 4; taken as {taken}, see --labels"
