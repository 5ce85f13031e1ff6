"""Names of splits in files and folders, for every reader."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cggm_ray.core.errors import DataError

SPLITS = ("train", "valid", "test")
"""The splits of a set, in order."""
_NAMES = {
    "train": ("train", "trn", "training"),
    "valid": ("valid", "val", "dev", "validation", "development"),
    "test": ("test", "tst", "testing"),
}
NUMBERS = ("idx", "index", "indexes", "indices", "inds", "rows")
MASKS = ("mask", "masks")
"""Second word of the name of an array that says the rows of a split, as in train_idx or test_mask."""
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}


def split_of(text: str) -> str | None:
    """Returns the split that a name means, in upper or lower case, or None if the name means no split."""
    return _SPLIT_OF.get(text.strip().lower())


def says_rows(name: str) -> tuple[str, bool] | None:
    """Returns the split whose rows an array of this name says, such as train_idx, valMask or idx_test, and whether it has a
    flag for every row; None for other names.
    """
    words = [word.lower() for word in words_of(name)]
    for word, how in (words, words[::-1]) if len(words) == 2 else ():
        split = split_of(word)
        if split is not None and how in (*NUMBERS, *MASKS):
            return split, how in MASKS
    return None


def words_of(name: str) -> list[str]:
    """Returns the words of a name such as train_idx, valMask or text-bert.dev, in its own letters."""
    return re.split(r"[^A-Za-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name))


def says_split(name: str) -> tuple[str, str] | None:
    """Returns the split that the first or the last word of a name says, and the rest of the name, as in X_train or dev_text;
    None for other names, and for those that say two.
    """
    words = words_of(name)
    first, last = split_of(words[0]), split_of(words[-1])
    if len(words) < 2 or (first is None) == (last is None):
        return None
    split, rest = (first, words[1:]) if first is not None else (last, words[:-1])
    return None if split is None else (split, "_".join(rest))


def find_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Returns the given name of every split, in the order of `SPLITS`; names that mean no split are left out.

    Args:
        names: such as the keys of a dict or the stems of files.
        where: they are, for messages.

    Raises:
        DataError: two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in found:
            raise DataError(
                f"{where}: {found[split]} and {name} both mean the split {split}; expected one of them, so that no samples "
                "are left out"
            )
        if split is not None:
            found[split] = name
    return {split: found[split] for split in SPLITS if split in found}
