"""Numbers that lie close together and far from zero, which single precision cannot tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_sets import arrays, config
from tables import converted as convert_table
from tables import table_config
from test_features import converted as convert_features

from cggm_ray.core.errors import DataError
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data


def test_targets_that_single_precision_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    mark = np.random.default_rng(0).normal(size=30)
    for name, values, works in (
        ("offset", 1e6 + 10 * mark, True),
        ("constant", np.full(30, 0.1), True),
        ("instants", 1.7e9 + 10 * mark, False),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays() | {"mark": values})
        settings = config(tmp_path, tmp_path / f"{name}.npz", "words,age", task="regression", target="mark")
        if works:
            prepare_data(settings, write_shards_here)
            continue
        with pytest.raises(
            DataError, match=r"target mark: found mean 1.7e\+09 and .*; expected values without this offset"
        ):
            prepare_data(settings, write_shards_here)


def test_features_that_single_precision_rounds_and_whole_numbers_are_said(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    offset = draw.normal([0, 1e9, 1e9, 1e5], size=(30, 4))
    missing = np.arange(30) % 5 == 0
    exact = arrays() | {
        "age": np.where(missing[:, None], np.nan, offset),
        "age_present": ~missing,
        "words": np.where(np.arange(6)[:, None] < 4, 1e9 + draw.normal(size=(30, 6, 1)), 0),
        "face": draw.integers(1, 5000, (30, 7)),
    }
    single = exact | {"age": offset.astype(np.float32), "words": np.zeros((30, 2, 2)), "face": offset}
    taken = []
    for name, content in (("exact", exact), ("single", single)):
        np.savez(tmp_path / f"{name}.npz", **content)
        manifest, _ = convert_features(config(tmp_path, tmp_path / f"{name}.npz", "words,face,age"))
        taken.append("\n".join(manifest.notes["taken"]))
    assert "face [7] vector, whole numbers as values, not as token ids" in taken[0]
    assert "age, feature 1 and 1 more: mean 1e+09 and standard deviation" in taken[0]
    assert "words, feature 0: mean 1e+09" in taken[0]
    assert "rounded     face, feature 1 and 1 more" in taken[1]
    assert "age, feature" not in taken[1]


def test_numbers_that_single_precision_would_round(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"age": draw.integers(20, 60, 40), "label": np.arange(40) % 2})
    second = draw.normal(size=40)
    frame["instant"] = 1.7e9 + second
    vectors = draw.normal([1e9, 0, 0], size=(40, 3))
    table = pa.table({**{name: pa.array(frame[name]) for name in frame}, "vector": pa.array(vectors.tolist())})
    pq.write_table(table, tmp_path / "t.parquet")
    manifest, splits = convert_table(table_config(tmp_path, tmp_path / "t.parquet", target="label"))
    found = np.concatenate([split.inputs["tab"].numpy() for split in splits.values()])
    known = np.sort(found[:, 1].astype(np.float64) + manifest.notes["columns"]["instant"]["state"]["offset"] - 1.7e9)
    np.testing.assert_allclose(known, np.sort(second), atol=1e-6)
    assert "offset" not in manifest.notes["columns"]["age"]["state"]
    taken = "\n".join(manifest.notes["taken"])
    assert "which is subtracted, because single precision rounds such numbers" in taken
    assert taken.count("rounded: vector, feature 0: mean 1e+09") == 1
    with pytest.raises(DataError, match=r"target instant: found mean 1.7e.* expected values without this offset"):
        convert_table(table_config(tmp_path, tmp_path / "t.parquet", target="instant", task="regression"))
