"""Statistics of the training split against numpy and scikit-learn, over shards, row groups, padding and gaps."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.preprocessing import StandardScaler
from stored_sets import stored

from cggm_ray.core.errors import DataError
from cggm_ray.data.statistics import Moments, Statistics, training_statistics

SAMPLES, STEPS = 60, 50
KINDS = {"words": "sequence", "face": "image", "photo": "image", "age": "vector"}


def columns() -> dict[str, np.ndarray]:
    """A padded sequence, images of both layouts, and a vector in other units; what is not there holds NaN."""
    rng = np.random.default_rng(0)
    steps, here = rng.integers(0, STEPS + 1, SAMPLES), rng.random(SAMPLES) < 0.7
    words = rng.normal(3, 7, (SAMPLES, STEPS, 100)).astype(np.float32)
    words[np.arange(STEPS) >= steps[:, None]] = np.nan
    face = rng.normal(0.5, 0.1, (SAMPLES, 3, 16, 15)).astype(np.float16)
    face[~here] = np.inf
    age = rng.normal(1e4, [1e-3, 1, 1e3, 1e6], (SAMPLES, 4))
    photo = rng.normal(size=(SAMPLES, 9, 10, 4)).astype(np.float32) * np.arange(1, 5, dtype=np.float32)
    return {
        "words": words,
        "face": face,
        "photo": photo,
        "age": age,
        "steps/words": steps,
        "present/face": here,
    }


def by_numpy(content: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of every feature, from all values at once."""
    there = np.arange(STEPS) < content["steps/words"][:, None]
    values = {
        "words": content["words"][there],
        "face": np.moveaxis(content["face"][content["present/face"]].astype(np.float64), 1, -1).reshape(-1, 3),
        "photo": content["photo"].reshape(-1, 4),
        "age": content["age"],
    }
    return {name: (v.mean(0, dtype=np.float64), v.std(0, dtype=np.float64)) for name, v in values.items()}


@pytest.mark.parametrize("shards", [1, 3, SAMPLES])
def test_moments_are_those_of_numpy(tmp_path: Path, shards: int) -> None:
    content = columns()
    found = training_statistics(tmp_path / "set", stored(tmp_path / "set", content, shards), KINDS)
    groups = [pq.ParquetFile(path).num_row_groups for path in (tmp_path / "set").glob("*.parquet")]
    assert sum(groups) > 3
    for name, (mean, deviation) in by_numpy(content).items():
        np.testing.assert_allclose(found[name].mean.ravel(), mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(1 / found[name].scale.ravel(), deviation, rtol=1e-9)
    assert {name: moments.mean.shape for name, moments in found.items()} == {
        "words": (1, 100),
        "face": (3, 1, 1),
        "photo": (1, 1, 4),
        "age": (4,),
    }
    assert found["words"].count.ravel()[0] == content["steps/words"].sum()
    assert found["face"].count.ravel()[0] == content["present/face"].sum() * 16 * 15


def test_all_views_of_a_sample_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    content = {name: rng.normal(size=(20, 6)) for name in ("age", "view/1/age", "view/2/age")}
    found = training_statistics(tmp_path / "set", stored(tmp_path / "set", content, 2), {"age": "vector"})
    every = np.concatenate(list(content.values()))
    np.testing.assert_allclose(found["age"].mean, every.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(1 / found["age"].scale, every.std(0), rtol=1e-12)


def test_images_of_a_channel_may_differ_in_size(tmp_path: Path) -> None:
    """As the slices of volumes do."""
    rng = np.random.default_rng(1)
    small, large = (rng.normal(2, 3, (4, *shape)).astype(np.float16) for shape in ((16, 20), (24, 24)))
    manifest = stored(tmp_path / "set", {"flair": small}, 1)
    stored(tmp_path / "other", {"flair": large}, 1)
    (tmp_path / "other" / "train-00000.parquet").rename(tmp_path / "set" / "train-00001.parquet")
    (one,) = manifest.splits["train"]
    both = (one, replace(one, file="train-00001.parquet"))
    found = training_statistics(tmp_path / "set", replace(manifest, splits={"train": both}), {"flair": "image"})[
        "flair"
    ]
    pixels = np.concatenate([small.ravel(), large.ravel()]).astype(np.float64)
    np.testing.assert_allclose([found.mean.item(), 1 / found.scale.item()], [pixels.mean(), pixels.std()], rtol=1e-10)


def test_threads_do_not_change_a_bit(tmp_path: Path) -> None:
    manifest = stored(tmp_path / "set", columns(), 7)

    def one_by_one(work: Callable[[Path], Statistics], paths: Sequence[Path]) -> map[Statistics]:
        return map(work, paths)

    ahead = training_statistics(tmp_path / "set", manifest, KINDS)
    plain = training_statistics(tmp_path / "set", manifest, KINDS, one_by_one)
    for name in KINDS:
        assert all(np.array_equal(getattr(ahead[name], part), getattr(plain[name], part)) for part in vars(plain[name]))


def test_constant_features_keep_their_size_as_in_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    age = rng.normal(size=(200, 5))
    age[:, 0], age[:, 1], age[:, 2] = 0, 0.1, 1e9 + rng.normal(size=200)
    age[:, 3] *= 1e-12
    found = training_statistics(tmp_path / "set", stored(tmp_path / "set", {"age": age}, 5), {"age": "vector"})["age"]
    scaler = StandardScaler().fit(age)
    np.testing.assert_allclose(1 / found.scale, scaler.scale_, rtol=1e-6)
    assert found.scale[0] == found.scale[1] == 1
    assert found.scale[3] > 1e11


def test_a_feature_that_is_never_there_keeps_its_size(tmp_path: Path) -> None:
    content = {"age": np.full((6, 3), np.nan), "present/age": np.zeros(6, bool)}
    found = training_statistics(tmp_path / "set", stored(tmp_path / "set", content, 2), {"age": "vector"})["age"]
    assert not found.mean.any()
    assert (found.scale == 1).all()


def test_values_that_single_precision_cannot_scale(tmp_path: Path) -> None:
    age = np.array([[0.0, 1e-42], [0.0, 0.0]])
    found = training_statistics(tmp_path / "set", stored(tmp_path / "set", {"age": age}, 1), {"age": "vector"})["age"]
    assert (found.scale == 1).all()


def test_memory_does_not_grow_with_the_split(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(size=(4096, 2048)).astype(np.float16)
    manifest = stored(tmp_path / "set", {"age": values}, 1)
    tracemalloc.start()
    found = training_statistics(tmp_path / "set", manifest, {"age": "vector"})["age"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.count[0] == len(values)
    # In double precision the split has 64 MiB.
    assert peak < 8 * 2**20


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_values_without_a_deviation_are_refused(tmp_path: Path, bad: float) -> None:
    age = np.ones((6, 3))
    age[4, 1] = bad
    manifest = stored(tmp_path / "set", {"age": age}, 2)
    with pytest.raises(
        DataError, match="split train: age holds values that are not finite, or too large to be squared"
    ):
        training_statistics(tmp_path / "set", manifest, {"age": "vector"})


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    manifest = stored(tmp_path / "set", {"age": np.ones((6, 3))}, 2)
    (tmp_path / "set" / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-00001\.parquet: not a readable shard"):
        training_statistics(tmp_path / "set", manifest, {"age": "vector"})


def test_a_shard_of_other_features_is_refused(tmp_path: Path) -> None:
    manifest = stored(tmp_path / "set", {"age": np.ones((6, 3))}, 1)
    stored(tmp_path / "other", {"age": np.ones((6, 4))}, 1)
    (tmp_path / "other" / "train-00000.parquet").rename(tmp_path / "set" / "train-00000.parquet")
    with pytest.raises(DataError, match=r"features of shape \(4,\); expected \(3,\)"):
        training_statistics(tmp_path / "set", manifest, {"age": "vector"})
    stored(tmp_path / "third", {"size": np.ones((6, 3))}, 1)
    (tmp_path / "third" / "train-00000.parquet").rename(tmp_path / "set" / "train-00000.parquet")
    with pytest.raises(DataError, match="there is no column age"):
        training_statistics(tmp_path / "set", manifest, {"age": "vector"})


def test_moments_of_nothing_change_nothing() -> None:
    some = Moments.of(np.arange(12.0).reshape(6, 2), None, (2,))
    for merged in (some.merge(Moments.zero((2,))), Moments.zero((2,)).merge(some)):
        assert all(np.array_equal(getattr(merged, part), getattr(some, part)) for part in vars(some))
