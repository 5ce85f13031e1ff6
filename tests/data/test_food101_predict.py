"""Predictions of a Food-101 run for lists without labels, against those that the run's own test split has."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from food101_files import CLASSES, configuration, save_vit, write_set

from cggm_ray.commands.predict import Predicted, predict
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError
from cggm_ray.runs.finished import open_new


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run and its data."""
    folder = tmp_path_factory.mktemp("trained")
    raw = write_set(folder / "set")
    run(configuration(raw, folder))
    return folder / "run", raw


def write_new(raw: Path, folder: Path, *, labels: bool = False, samples: int = 6) -> list[dict[str, Any]]:
    """The first records of test with their images, in a folder without encoders; the list itself is left to the test."""
    shutil.copytree(raw / "images", folder / "images")
    entries = json.loads((raw / "test.json").read_text())[:samples]
    return entries if labels else [{k: v for k, v in entry.items() if k != "label"} for entry in entries]


def probabilities(done: Predicted) -> np.ndarray:
    """[samples, classes]"""
    return np.array(pq.read_table(done.path).column("probability").to_pylist())


@pytest.fixture(scope="module")
def own(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """Of the test split of the run's own data."""
    return predict(trained[0], out=tmp_path_factory.mktemp("own") / "own.parquet")


@pytest.mark.parametrize("samples", [1, 5, 6])
@pytest.mark.parametrize("kind", ["new.json", "test.json", "new.csv"])
def test_a_list_without_labels_is_predicted_as_with_them(
    trained: tuple[Path, Path], own: Predicted, tmp_path: Path, kind: str, samples: int
) -> None:
    folder, raw = trained
    entries = write_new(raw, tmp_path / "new", samples=samples)
    path = tmp_path / "new" / kind
    if kind.endswith("json"):
        path.write_text(json.dumps(entries))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([Path(e["img_path"]).name, " ".join(e["text_tokens"])] for e in entries)
    for given in (path, path.parent):
        done = predict(folder, given, out=tmp_path / "out.parquet")
        assert (done.samples, done.labelled, dict(done.metrics)) == (samples, 0, {})
        np.testing.assert_allclose(probabilities(done), probabilities(own)[:samples], atol=1e-6)
    ids = pq.read_table(done.path).column("id").to_pylist()
    assert ids == [e["img_path"] if kind == "new.csv" else e["id"] for e in entries]


def test_labels_that_are_there_are_counted(trained: tuple[Path, Path], own: Predicted, tmp_path: Path) -> None:
    """Two of six have a label; the accuracy is theirs."""
    folder, raw = trained
    entries = write_new(raw, tmp_path / "new", labels=True)
    for entry in entries[2:]:
        entry["label"] = None
    (tmp_path / "new" / "list.json").write_text(json.dumps(entries))
    done = predict(folder, tmp_path / "new", out=tmp_path / "out.parquet")
    assert (done.samples, done.labelled) == (6, 2)
    best = probabilities(own)[:2].argmax(1)
    right = [sorted(CLASSES)[number] == entry["label"] for number, entry in zip(best, entries[:2], strict=True)]
    assert done.metrics["accuracy"] == pytest.approx(np.mean(right))


def test_all_lists_of_a_folder_or_one_of_them(trained: tuple[Path, Path], own: Predicted, tmp_path: Path) -> None:
    folder, raw = trained
    entries = write_new(raw, tmp_path / "new")
    (tmp_path / "new" / "train.json").write_text(json.dumps(entries[:2]))
    (tmp_path / "new" / "test.json").write_text(json.dumps(entries[2:]))
    done = predict(folder, tmp_path / "new", out=tmp_path / "all.parquet")
    np.testing.assert_allclose(probabilities(done), probabilities(own), atol=1e-6)
    done = predict(folder, tmp_path / "new", split="test", out=tmp_path / "test.parquet")
    np.testing.assert_allclose(probabilities(done), probabilities(own)[2:], atol=1e-6)
    with pytest.raises(DataError, match="found lists of train, test; expected one of the split valid"):
        open_new(folder, tmp_path / "new", "valid")


def test_what_would_leave_a_sample_out_or_change_it_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, raw = trained
    new = tmp_path / "new"
    entries = write_new(raw, new, labels=True)

    def refused(message: str, **change: Any) -> None:
        (new / "list.json").write_text(json.dumps([{**entries[0], **change}, *entries[1:]]))
        with pytest.raises(DataError, match=message):
            open_new(folder, new)

    refused("id test0, field label: 'stew' is not among the 3 classes of the run", label="stew")
    refused("1 images cannot be read, skip_bad allows 0: none.jpg: no such file", img_path="none.jpg")
    (new / "other.csv").write_text("a.jpg,hot\n")
    refused(r"found list\.json, other\.csv; expected one list of samples")


def test_encoders_are_those_of_the_run(tmp_path: Path) -> None:
    raw = write_set(tmp_path / "set")
    run(configuration(raw, tmp_path))
    entries = write_new(raw, tmp_path / "new")
    (tmp_path / "new" / "list.json").write_text(json.dumps(entries))
    # The folder of the run's data is gone; the same encoders lie beside the new data.
    for flag in ("vit", "bert"):
        shutil.copytree(raw / flag, tmp_path / "new" / flag)
    shutil.rmtree(raw)
    assert predict(tmp_path / "run", tmp_path / "new", out=tmp_path / "out.parquet").samples == 6
    shutil.rmtree(tmp_path / "new" / "vit")
    save_vit(tmp_path / "new" / "vit", num_hidden_layers=2)
    (tmp_path / "new" / "list.json").write_text(json.dumps(entries[1:]))
    with pytest.raises(DataError, match=r"vit: .* in .* is another file than the run was trained with"):
        open_new(tmp_path / "run", tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "vit")
    with pytest.raises(DataError, match=r"vit: .*, which the run was trained with, is gone"):
        open_new(tmp_path / "run", tmp_path / "new")
