"""Features whose samples or splits are told apart by names: dicts by the names of samples, and columns such as text_train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import feature_sets
import numpy as np
import pytest
import torch

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats.layouts import WHOLE, by_name, columns_by_split, split_columns
from cggm_ray.data.loading.split import TensorSplit, load_split
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import prepare_data


def _converted(folder: Path, data: Path) -> tuple[Manifest, dict[str, TensorSplit]]:
    config = feature_sets.config(folder, data, None, target="label", task="classification")
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    names = tuple(manifest.modalities)
    return manifest, {
        split: load_split(shards, manifest, split, names, torch.device("cpu")) for split in manifest.splits
    }


def by_names() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Samples by name, and columns by name of sample; sequences have 2 to 4 steps."""
    draw = np.random.default_rng(3)
    samples = {
        f"clip_{row}": {"text": draw.normal(size=5), "audio": draw.normal(size=(2 + row % 3, 4)), "label": row % 2}
        for row in range(30)
    }
    return samples, {name: {key: sample[name] for key, sample in samples.items()} for name in samples["clip_0"]}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_dicts_by_the_names_of_samples(inside: bool, split: bool) -> None:
    content: Any = by_names()[inside]
    columns = columns_by_split({Path("a"): {"train": content, "test": content} if split else content}, "a")
    assert list(columns) == (["train", "test"] if split else [WHOLE])
    for found in columns.values():
        assert list(found) == ["id", "text", "audio", "label"]
        assert found["id"] == list(by_names()[0])
        assert [len(row) for row in found["audio"]] == [2 + row % 3 for row in range(30)]
        assert found["label"] == [row % 2 for row in range(30)]


def test_levels_that_look_alike_are_told_apart_by_their_number() -> None:
    """Columns of one shape, such as two vectors of one length: there are more samples than columns."""
    samples = {f"clip_{row}": {"a": np.full(3, row), "b": np.full(3, -row)} for row in range(4)}
    assert by_name(samples, "x")["id"] == list(samples)
    columns = {name: {key: sample[name] for key, sample in samples.items()} for name in ("a", "b")}
    assert by_name(columns, "x")["id"] == list(samples)


def test_a_sample_that_lacks_a_column_is_named() -> None:
    samples = by_names()[0]
    del samples["clip_7"]["audio"]
    with pytest.raises(
        DataError, match=r"x, 'clip_7': found text, label; 'clip_0' has text, audio, label; expected the same"
    ):
        by_name(samples, "x")
    samples["clip_7"]["audio"] = None
    assert by_name(samples, "x")["audio"][7] is None


def test_dicts_of_other_things_stay_as_they_are() -> None:
    for other in ({}, {"a": {}}, {"a": {"x": 1}, "b": {"y": 1}}, {"a": {"x": 1}, "b": 2}):
        assert by_name(dict(other), "x") == other
    with_names = {"s": {"id": "one", "a": 1}, "t": {"id": "two", "a": 2}, "u": {"id": "three", "a": 3}}
    assert by_name(dict(with_names), "x")["id"] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["X_train", "y_train", "X_test", "y_test"], {"train": ["X", "y"], "test": ["X", "y"]}),
        (["trainText", "devText", "testText"], {"train": ["Text"], "valid": ["Text"], "test": ["Text"]}),
        (["text-bert.train", "text-bert.val"], {"train": ["text_bert"], "valid": ["text_bert"]}),
        (["X_train", "X_test", "classes"], {}),
        (["X", "train_idx", "test_idx"], {}),
        (["train_idx", "test_idx"], {}),
        (["train_x", "x_train"], {}),
        (["train", "test"], {}),
        (["train_test", "x_train"], {}),
    ],
)
def test_names_that_say_splits(names: list[str], wanted: dict[str, list[str]]) -> None:
    assert {split: list(found) for split, found in split_columns(dict.fromkeys(names)).items()} == wanted


LABELS, VALUES = np.arange(60) % 2, np.arange(240.0).reshape(60, 4)


def in_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: in_tensors(one) for key, one in value.items()}
    return torch.as_tensor(value)


FORMS: dict[str, Callable[[Path], object]] = {
    "named.npz": lambda path: np.savez(
        path, x_train=VALUES[:40], x_test=VALUES[40:], label_train=LABELS[:40], label_test=LABELS[40:]
    ),
    "objects.npz": lambda path: np.savez(
        path, x=np.array([*[row[None] for row in VALUES[:-1]], np.zeros((2, 4))], object), label=LABELS
    ),
    "dict.npy": lambda path: np.save(path, {"x": VALUES, "label": LABELS}, allow_pickle=True),  # type: ignore[arg-type]
    "whole.pt": lambda path: torch.save(in_tensors({"x": VALUES, "label": LABELS}), path),
    "half.pt": lambda path: torch.save({"x": torch.tensor(VALUES).bfloat16(), "label": torch.tensor(LABELS)}, path),
    "samples.pth": lambda path: torch.save(
        [{"x": torch.tensor(x), "label": int(label)} for x, label in zip(VALUES, LABELS, strict=True)], path
    ),
    "splits.pt": lambda path: torch.save(
        in_tensors(
            {"train": {"x": VALUES[:40], "label": LABELS[:40]}, "test": {"x": VALUES[40:], "label": LABELS[40:]}}
        ),
        path,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_features(tmp_path: Path, name: str) -> None:
    FORMS[name](tmp_path / name)
    manifest, splits = _converted(tmp_path, tmp_path / name)
    assert sum(len(split) for split in splits.values()) == 60
    assert manifest.modalities["x"].shape == ((2, 4) if name == "objects.npz" else (4,))
    kept = splits["train"].inputs["x"]
    assert set(kept.reshape(-1, 4)[:, 0].tolist()) <= {*VALUES[:, 0].tolist(), 0.0}
