"""Every reader takes the same names for the same split."""

from __future__ import annotations

import pytest

from cggm_ray.core.errors import DataError
from cggm_ray.data.split_names import SPLITS, find_splits, split_of


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "trn", "training", "Train", "TRAIN"), "train"),
        (("valid", "val", "dev", "validation", "development", "VAL", "Dev"), "valid"),
        (("test", "tst", "testing", "Test", " test "), "test"),
        (("", "trains", "all", "label", "text", "0"), None),
    ],
)
def test_names(names: tuple[str, ...], split: str | None) -> None:
    assert {split_of(name) for name in names} == {split}


def test_names_of_a_set_in_order() -> None:
    found = find_splits(["TEST", "readme", "dev", "train"], "set")
    assert list(found.items()) == [("train", "train"), ("valid", "dev"), ("test", "TEST")]
    assert tuple(found) == SPLITS


def test_two_names_of_one_split_are_refused() -> None:
    with pytest.raises(DataError, match="set: dev and val both mean the split valid"):
        find_splits(["train", "dev", "val"], "set")
