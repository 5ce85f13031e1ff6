"""Predictions for new data in feature files: any number of samples, with and without labels and splits, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import feature_sets
import numpy as np
import pyarrow.parquet as pq
import pytest
import sentiment_files as files

from cggm_ray.commands.predict import predict
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.mosi import MosiOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig

Trained = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a finished run, and the set that it was trained on."""
    done: dict[str, tuple[Path, dict[str, Any]]] = {}

    def of(pipeline: str) -> tuple[Path, dict[str, Any]]:
        if pipeline not in done:
            folder = tmp_path_factory.mktemp(pipeline)
            content = files.mmsa()
            data = files.write(folder / "set.pkl", content)
            if pipeline == "mosi":
                config = Config(
                    data=DataConfig(dataset="mosi", data_path=str(data)),
                    model=feature_sets.TINY,
                    train=TrainConfig(num_epochs=1, batch_size=16),
                    run=RunConfig(local=True, storage_path=str(folder / "runs"), name="r", report=False),
                    options=MosiOptions(),
                )
            else:
                config = feature_sets.config(folder, data, target="regression_labels", task="regression")
            result = run(config)
            assert result is not None
            done[pipeline] = result.folder, content
        return done[pipeline]

    return of


def predicted(folder: Path, data: Path, out: Path, split: str | None = None) -> dict[str, Any]:
    table = pq.read_table(predict(folder, data, split, out).path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def bare(part: dict[str, Any], rows: slice = slice(None)) -> dict[str, Any]:
    """One flat dict of modalities and lengths, without labels."""
    return {name: values[rows] for name, values in part.items() if name in files.WIDTHS or name.endswith("_lengths")}


@pytest.mark.parametrize("pipeline", ["mosi", "features"])
def test_unlabelled_samples_are_predicted_as_labelled_ones(tmp_path: Path, trained: Trained, pipeline: str) -> None:
    folder, content = trained(pipeline)
    whole = predicted(folder, files.write(tmp_path / "whole.pkl", content), tmp_path / "a.parquet")
    assert len(whole["prediction"]) == sum(files.SIZES.values())
    assert whole["index"] == list(range(len(whole["index"])))
    labels = np.concatenate([part["regression_labels"] for part in content.values()])
    np.testing.assert_array_equal(np.float32(np.ravel(whole["target"])), labels)

    flat = predicted(folder, files.write(tmp_path / "flat.pkl", bare(content["test"])), tmp_path / "b.parquet")
    np.testing.assert_allclose(np.ravel(flat["prediction"]), np.ravel(whole["prediction"])[-6:], atol=1e-6)
    one = predicted(
        folder, files.write(tmp_path / "one.pkl", bare(content["test"], slice(2, 3))), tmp_path / "c.parquet"
    )
    np.testing.assert_allclose(np.ravel(one["prediction"]), np.ravel(whole["prediction"])[-4], atol=1e-6)
    valid = predicted(folder, tmp_path / "whole.pkl", tmp_path / "d.parquet", "valid")
    np.testing.assert_allclose(np.ravel(valid["prediction"]), np.ravel(whole["prediction"])[12:17], atol=1e-6)
    with pytest.raises(DataError, match="split test is missing; found samples that are not split"):
        predict(folder, tmp_path / "flat.pkl", "test", tmp_path / "e.parquet")


@pytest.mark.parametrize("pipeline", ["mosi", "features"])
def test_some_labels(tmp_path: Path, trained: Trained, pipeline: str) -> None:
    folder, content = trained(pipeline)
    part = bare(content["test"]) | {"regression_labels": [0.5, None, 1.5, np.nan, -1.0, 2.0]}
    done = predict(folder, files.write(tmp_path / "some.pkl", part), None, tmp_path / "a.parquet")
    table = pq.read_table(done.path).to_pydict()
    prediction = np.ravel(table["prediction"])
    assert done.metrics["mae"] == pytest.approx(
        np.abs(prediction - [0.5, 0, 1.5, 0, -1, 2])[[0, 2, 4, 5]].mean(), abs=1e-5
    )
    assert "acc7" in done.metrics


def test_sequences_of_another_length_and_without_padding(tmp_path: Path, trained: Trained) -> None:
    folder, content = trained("features")
    part = content["test"]
    ragged = {"text": part["text"]} | {
        name: [row[:steps] for row, steps in zip(part[name], part[f"{name}_lengths"], strict=True)]
        for name in ("audio", "vision")
    }
    ours = predicted(folder, files.write(tmp_path / "ragged.pkl", ragged), tmp_path / "a.parquet")
    theirs = predicted(folder, files.write(tmp_path / "flat.pkl", bare(part)), tmp_path / "b.parquet")
    np.testing.assert_allclose(np.ravel(ours["prediction"]), np.ravel(theirs["prediction"]), atol=1e-5)


@pytest.mark.parametrize("pipeline", ["mosi", "features"])
def test_a_modality_that_is_not_there_is_named(tmp_path: Path, trained: Trained, pipeline: str) -> None:
    folder, content = trained(pipeline)
    part = bare(content["test"])
    del part["vision"]
    with pytest.raises(DataError, match="modality 'vision' is missing"):
        predict(folder, files.write(tmp_path / "set.pkl", part), None, tmp_path / "a.parquet")


def test_classes_are_those_of_the_run(tmp_path: Path) -> None:
    arrays = feature_sets.arrays()
    result = run(feature_sets.config(tmp_path, feature_sets.as_npz(tmp_path, arrays), "words,age", split="part"))
    assert result is not None
    folder = tmp_path / "new"
    folder.mkdir()
    new = {name: arrays[name][:1] for name in ("words", "age", "id")}
    table = pq.read_table(predict(result.folder, feature_sets.as_npz(folder, new), None, folder / "a.parquet").path)
    assert table.num_rows == 1
    new["label"] = np.array([7])
    with pytest.raises(DataError, match="label '7' is none of the 3 classes"):
        predict(result.folder, feature_sets.as_npz(folder, new), None, folder / "b.parquet")
