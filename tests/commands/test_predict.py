"""Predictions of data without labels and splits, of any number of samples, by a dataset that implements the seam for them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.core.errors import DataError
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.stream import StreamSplit
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import PREDICT, Manifest, RawShard, tensor_column
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.finished import open_new
from cggm_ray.tasks import Classification, Regression, Task
from conftest import SMALL

ROWS = 3
"""Samples of a shard."""


class Loose(Dataset):
    """An npz with `a` and `b` [N, T, 4] and maybe `label` [N], where NaN is no label; a tenth is validation and test."""

    name = "loose"
    converter = 1
    network = "sequence"

    def locate(self, path: Path) -> list[Path]:
        return [path]

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        content = np.load(sources[0])
        if np.isnan(content["label"]).any():
            raise DataError("label: NaN")
        for place, split in enumerate(SPLITS):
            rows = np.arange(len(content["label"])) % 4 == place + 1
            rows = rows | (np.arange(len(rows)) % 4 == 0) if split == "train" else rows
            yield self._shard(split, 0, {name: values[rows] for name, values in content.items()}, 0)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        content = dict(np.load(sources[0]))
        content.setdefault("label", np.full(len(content["a"]), np.nan))
        for number, start in enumerate(range(0, len(content["a"]), ROWS)):
            part = {name: values[start : start + ROWS] for name, values in content.items()}
            yield self._shard(PREDICT, number, part, start)

    def _shard(self, split: str, number: int, content: dict[str, np.ndarray], start: int) -> RawShard:
        label = content["label"]
        columns = {name: tensor_column(content[name]) for name in ("a", "b")}
        columns["target"] = self._target(np.nan_to_num(label))
        columns["index"] = pa.array(np.arange(start, start + len(label)))
        if split == PREDICT:
            columns["labelled"] = pa.array(~np.isnan(label))
        return RawShard(split=split, number=number, table=pa.table(columns))

    def _target(self, label: np.ndarray) -> pa.Array:
        return pa.array(label.astype(np.int64))

    def notes(self) -> dict[str, Any]:
        return {"classes": ["low", "high"]}

    def demonstration(self, folder: Path, seed: int) -> Path:
        raise NotImplementedError

    def task(self, manifest: Manifest) -> Task:
        return Classification(2)


class LooseValues(Loose):
    """The same as a regression."""

    name = "loose_values"

    def _target(self, label: np.ndarray) -> pa.Array:
        return tensor_column(label.astype(np.float32)[:, None])

    def notes(self) -> dict[str, Any]:
        return {}

    def task(self, manifest: Manifest) -> Task:
        return Regression()


DATASETS.adopt("loose", Loose)
DATASETS.adopt("loose_values", LooseValues)


def content(samples: int, seed: int) -> dict[str, np.ndarray]:
    """Samples whose label is told by both modalities."""
    random = np.random.default_rng(seed)
    label = np.arange(samples) % 2
    parts = {name: random.normal(size=(samples, 5, 4)) + label[:, None, None] for name in ("a", "b")}
    return {name: values.astype(np.float32) for name, values in {**parts, "label": label}.items()}


@pytest.fixture(scope="module", params=["loose", "loose_values"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose raw data and shards are gone."""
    folder = tmp_path_factory.mktemp(request.param)
    np.savez(folder / "trained.npz", **content(40, 1))
    recipe = Config(data=DataConfig(dataset=request.param))
    places = ["--data_path", str(folder / "trained.npz"), "--storage_path", str(folder), "--name", "run"]
    assert main(recipe, ["--local", *SMALL, *places]) == 0
    (folder / "trained.npz").unlink()
    shutil.rmtree(folder / "shards")
    return folder / "run"


def predicted(run: Path, path: Path, *flags: str) -> pa.Table:
    assert command(["predict", str(run), "--data_path", str(path), "--out", str(path) + ".parquet", *flags]) == 0
    return pq.read_table(str(path) + ".parquet")


@pytest.mark.parametrize("samples", [1, 2, 17])
def test_n_unlabelled_samples_give_n_predictions(
    run: Path, samples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the file, from the network called by hand; no metric is printed."""
    new = content(samples, 2)
    del new["label"]
    np.savez(tmp_path / "new.npz", **new)
    capsys.readouterr()
    found = predicted(run, tmp_path / "new.npz")
    said = [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]
    assert said == [["predicted", str(samples)], ["labelled", "0"]]
    assert found.num_rows == samples == found["target"].null_count
    net = open_new(run, tmp_path / "new.npz").net
    with torch.no_grad():
        logits = net({name: torch.from_numpy(values) for name, values in new.items()}).numpy()
    stored = np.array(found["prediction"].to_pylist()).reshape(samples, -1)
    assert np.allclose(stored, logits, atol=1e-6)
    assert found["index"].to_pylist() == list(range(samples))
    if logits.shape[1] == 1:
        assert "class" not in found.column_names
        return
    exponents = np.exp(logits)
    assert np.allclose(found["probability"].to_pylist(), exponents / exponents.sum(1, keepdims=True), atol=1e-6)
    assert found["class"].to_pylist() == [("low", "high")[row] for row in logits.argmax(1)]
    assert json.loads(found.schema.metadata[b"classes"]) == ["low", "high"]


def test_metrics_are_of_the_labelled_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = content(11, 3)
    new["label"][[0, 4, 10]] = np.nan
    np.savez(tmp_path / "new.npz", **new)
    capsys.readouterr()
    found = predicted(run, tmp_path / "new.npz")
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines()[:-1])
    assert (printed["predicted"], printed["labelled"]) == ("11", "8")
    assert np.flatnonzero(found["target"].is_null().to_numpy()).tolist() == [0, 4, 10]
    there = ~np.isnan(new["label"])
    if "class" in found.column_names:
        names = np.array(found["class"].to_pylist())[there]
        wanted = accuracy_score(np.array(["low", "high"])[new["label"][there].astype(int)], names)
        assert printed["accuracy"] == f"{wanted:.4f}"
    else:
        wanted = np.abs(np.array(found["prediction"].to_pylist())[there] - new["label"][there]).mean()
        assert printed["mae"] == f"{wanted:.4f}"


@pytest.mark.ray
@pytest.mark.slow
def test_ray_predicts_unlabelled_samples_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import cloudpickle

    monkeypatch.setenv("RAY_ADDRESS", "local")
    # The workers cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    new = content(13, 4)
    new["label"][5:] = np.nan
    for name in ("ray", "here"):
        np.savez(tmp_path / f"{name}.npz", **new)
    theirs = predicted(run, tmp_path / "ray.npz", "--ray", "--workers", "2")
    ours = predicted(run, tmp_path / "here.npz")
    assert theirs.drop_columns(["prediction"] + ["probability"] * ("probability" in theirs.column_names)).equals(
        ours.drop_columns(["prediction"] + ["probability"] * ("probability" in ours.column_names))
    )
    assert np.allclose(theirs["prediction"].to_pylist(), ours["prediction"].to_pylist(), rtol=1e-6, atol=1e-7)


def test_other_modalities_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = content(4, 5)
    new["b"] = new["b"][:, :, :3]
    np.savez(tmp_path / "new.npz", **new)
    capsys.readouterr()
    assert command(["predict", str(run), "--data_path", str(tmp_path / "new.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "new.npz: modality b: samples of shape (5, 3); the run was trained on samples of shape (5, 4)" in line


def test_a_run_of_an_earlier_version_needs_its_own_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a run recorded nothing of its data, and one line says so and what to do."""
    shutil.copytree(run, tmp_path / "earlier")
    (tmp_path / "earlier" / "data.json").unlink()
    np.savez(tmp_path / "new.npz", **content(4, 5))
    capsys.readouterr()
    assert command(["predict", str(tmp_path / "earlier"), "--data_path", str(tmp_path / "new.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trained.npz does not exist" in line
    assert "run of an earlier version" in line
    assert "put that back" in line


def test_streamed_samples_may_lack_labels(run: Path, tmp_path: Path) -> None:
    new = content(9, 6)
    new["label"][2] = np.nan
    np.savez(tmp_path / "new.npz", **new)
    here = predicted(run, tmp_path / "new.npz")
    opened = open_new(run, tmp_path / "new.npz")
    split = StreamSplit(opened.shards, opened.manifest, PREDICT, ("a", "b"), torch.device("cpu"), 0, 1)
    labelled = torch.cat([b.labelled for b in split.batches(list(slices(torch.arange(9), 4, 0, 1)), 0)])  # type: ignore[misc]
    assert labelled.tolist() == here["target"].is_valid().to_pylist()


def test_training_data_needs_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Careless(Loose):
        name = "careless"

        def read(self, sources: list[Path]) -> Iterator[RawShard]:
            for shard in super().read(sources):
                flags = pa.array(np.arange(shard.table.num_rows) != 1)
                yield RawShard(split=shard.split, number=0, table=shard.table.append_column("labelled", flags))

    DATASETS.adopt("careless", Careless)
    np.savez(tmp_path / "trained.npz", **content(40, 1))
    recipe = Config(data=DataConfig(dataset="careless"))
    places = ["--data_path", str(tmp_path / "trained.npz"), "--storage_path", str(tmp_path)]
    assert main(recipe, ["--local", *SMALL, *places]) == 2
    assert "split train, sample 1 has no label" in capsys.readouterr().err
