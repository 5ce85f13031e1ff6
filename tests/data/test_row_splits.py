"""Files of features that say their splits by row numbers or by a flag for every row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_sets import as_npz, as_pickle, config
from test_features import converted

from cggm_ray.commands.cli import main
from cggm_ray.commands.predict import predict
from cggm_ray.core.errors import DataError
from cggm_ray.data.split_names import says_rows
from cggm_ray.recipes.base import RECIPES

ORDER = np.random.default_rng(0).permutation(40)
ROWS = {"train": np.sort(ORDER[:22]), "valid": np.sort(ORDER[22:28]), "test": np.sort(ORDER[28:36])}
"""Of 40 samples four are in no split."""


def content(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Forty samples, each with its row number as the first feature."""
    rows = np.arange(40.0)
    vectors = np.random.default_rng(1).normal(size=(2, 40, 3))
    vectors[:, :, 0] = rows
    return {"face": vectors[0], "voice": vectors[1], "label": np.arange(40) % 3, **arrays}


def flags(rows: np.ndarray) -> np.ndarray:
    return np.isin(np.arange(40), rows)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train_idx", ("train", False)),
        ("valIndices", ("valid", False)),
        ("idx_test", ("test", False)),
        ("dev-mask", ("valid", True)),
        ("test_masks", ("test", True)),
        ("train", None),
        ("train_ids", None),
        ("text_mask", None),
        ("my_train_idx", None),
    ],
)
def test_names_that_say_rows(name: str, found: tuple[str, bool] | None) -> None:
    assert says_rows(name) == found


@pytest.mark.parametrize("write", [as_npz, as_pickle])
@pytest.mark.parametrize(
    "arrays",
    [
        {"train_idx": ORDER[:22], "val_idx": ORDER[22:28], "test_idx": ORDER[28:36]},
        {f"{split}_mask": flags(rows) for split, rows in ROWS.items()},
        {f"idx_{split}": rows[:, None].astype(float) for split, rows in ROWS.items()},
        {
            "train_idx": ROWS["train"],
            "trainMask": flags(ROWS["train"]),
            "test_rows": ROWS["test"],
            "dev_mask": flags(ROWS["valid"]),
        },
    ],
)
def test_rows_are_in_the_split_that_says_them(
    tmp_path: Path, write: Callable[..., Path], arrays: dict[str, np.ndarray]
) -> None:
    manifest, splits = converted(config(tmp_path, write(tmp_path, content(**arrays))))
    assert list(manifest.modalities) == ["face", "voice"]
    for split, rows in ROWS.items():
        assert splits[split].inputs["face"][:, 0].tolist() == rows.tolist()
    said = manifest.notes["taken"][4]
    assert said.startswith("  samples     train 22, valid 6, test 8, by ")
    assert said.endswith("; 4 rows that are in none are not used")
    assert all(name in said for name in arrays)
    assert "left out" not in " ".join(manifest.notes["taken"])


def test_flags_may_be_columns_of_parquet_and_validation_may_be_drawn(tmp_path: Path) -> None:
    found = content(train_mask=~flags(ROWS["test"]), test_mask=flags(ROWS["test"]))
    columns = {name: pa.array(values.tolist()) for name, values in found.items()}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    manifest, splits = converted(config(tmp_path, tmp_path / "f.parquet"))
    assert splits["test"].inputs["face"][:, 0].tolist() == ROWS["test"].tolist()
    assert {name: len(split) for name, split in splits.items()} == {"train": 29, "valid": 3, "test": 8}
    assert "valid from train, drawn so that classes keep their shares" in manifest.notes["taken"][4]


def numbers(train: np.ndarray, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"train_idx": train, **{f"{split}_idx": rows for split, rows in more.items()}}


def masks(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    return {"train_mask": train, "test_mask": test}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            numbers(np.arange(1, 31), test=np.arange(31, 41)),
            "test_idx: found 40; expected numbers of rows, from 0 to 39",
        ),
        (numbers(np.arange(30) + 0.5, test=np.arange(30, 40)), "train_idx: found 0.5; expected numbers of rows"),
        (numbers(np.arange(30), test=np.arange(28, 40)), "train_idx, test_idx both have row 28; expected"),
        (numbers(np.arange(30), test=np.array([31, 31])), "test_idx: found row 31 twice; expected every row once"),
        (
            numbers(np.arange(30), val=np.arange(30, 40)),
            "train_idx, val_idx, which say rows of splits, and none for test",
        ),
        (masks(np.ones(39, bool), np.zeros(40, bool)), r"train_mask: shape \(39,\); expected a flag for each of 40"),
        (masks(np.ones((40, 2), bool), np.ones((40, 2), bool)), r"train_mask: shape \(40, 2\) of bool; expected"),
        (
            {**numbers(np.arange(9), test=np.arange(20, 40)), "train_mask": flags(np.arange(10))},
            "train_idx and train_mask say different rows of train",
        ),
    ],
)
def test_rows_that_are_none_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        converted(config(tmp_path, as_npz(tmp_path, content(**arrays))))


def test_a_column_goes_before_arrays_which_are_named_as_left_out(tmp_path: Path) -> None:
    part = np.where(flags(ROWS["test"]), "test", "train")
    path = as_npz(tmp_path, content(split=part, train_idx=ROWS["train"], test_idx=ROWS["valid"]))
    manifest, splits = converted(config(tmp_path, path))
    assert splits["test"].inputs["face"][:, 0].tolist() == ROWS["test"].tolist()
    assert "by column split" in manifest.notes["taken"][4]
    assert "  left out    train_idx, test_idx (ids)" in manifest.notes["taken"]


def test_a_split_of_such_a_file_can_be_predicted(tmp_path: Path) -> None:
    arrays = {f"{split}_idx": rows for split, rows in ROWS.items()}
    path = as_npz(tmp_path, content(**arrays))
    place = ["--storage_path", str(tmp_path), "--name", "run", "--report", "false"]
    assert main(RECIPES.get("features").config, ["--local", "--data_path", str(path), "--max_steps", "4", *place]) == 0
    new = tmp_path / "new"
    new.mkdir()
    (new / "g.npz").write_bytes(path.read_bytes())
    tested = pq.read_table(tmp_path / "run" / "predictions.parquet")
    found = pq.read_table(predict(tmp_path / "run", data_path=new / "g.npz", split="test").path)
    assert found.column("target").to_pylist() == tested.column("target").to_pylist() == (ROWS["test"] % 3).tolist()
    assert found.column("prediction") == tested.column("prediction")
