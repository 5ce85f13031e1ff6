"""A folder with a file for each modality: samples are put together by their names, whatever their order in the files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import feature_sets
import numpy as np
import pytest
import torch

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.modality_files import _values
from cggm_ray.data.loading.split import load_split
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import prepare_data

SAMPLES = 60
NAMES = [f"clip_{number}" for number in range(SAMPLES)]
TEXT = np.arange(SAMPLES * 3.0).reshape(SAMPLES, 3)
SPLIT = np.array(["train"] * 40 + ["valid"] * 10 + ["test"] * 10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def write(folder: Path, **files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(dict(content)))
    return folder


def by_name(values: Any, order: Any = range(SAMPLES)) -> dict[str, Any]:
    return {NAMES[row]: values[row] for row in order}


def labels(folder: Path, order: Any = range(SAMPLES), header: str = "clip,label,split", more: str = "") -> None:
    rows = [f"{NAMES[row]},{row % 2},{SPLIT[row]}" for row in order]
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + more)


def sequences() -> list[np.ndarray]:
    return [np.full((2 + row % 3, 2), float(row)) for row in range(SAMPLES)]


def read(folder: Path) -> dict[str, Any]:
    config = feature_sets.config(folder.parent / "runs", folder, None, target="label", task="classification")
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    names = tuple(manifest.modalities)
    return {split: load_split(shards, manifest, split, names, torch.device("cpu")) for split in manifest.splits}


def test_samples_are_put_together_by_their_names(data: Path) -> None:
    draw = np.random.default_rng(0)
    write(data, text=by_name(TEXT, draw.permutation(SAMPLES)), audio=by_name(sequences(), draw.permutation(SAMPLES)))
    labels(data, draw.permutation(SAMPLES))
    splits = read(data)
    assert {name: len(split) for name, split in splits.items()} == {"train": 40, "valid": 10, "test": 10}
    for name, split in splits.items():
        rows = [NAMES.index(sample) for sample in split.names]
        assert sorted(rows) == np.flatnonzero(name == SPLIT).tolist()
        np.testing.assert_array_equal(split.inputs["text"], TEXT[rows])
        assert split.inputs["audio"][:, 0, 0].tolist() == rows
        assert split.target.tolist() == [row % 2 for row in rows]


def test_labels_in_a_file_of_their_own(data: Path) -> None:
    write(data, text=by_name(TEXT), audio=by_name(sequences()), label=by_name([row % 2 for row in range(SAMPLES)]))
    assert sum(map(len, read(data).values())) == SAMPLES


def test_arrays_by_split_in_every_file(data: Path) -> None:
    def parts(values: np.ndarray) -> dict[str, np.ndarray]:
        return {split: values[split == SPLIT] for split in ("train", "valid", "test")}

    write(data, text=parts(TEXT), audio=parts(-TEXT), label=parts(np.arange(SAMPLES) % 2))
    splits = read(data)
    np.testing.assert_array_equal(splits["test"].inputs["audio"], -TEXT[50:])
    write(data, audio={"train": TEXT, "test": TEXT})
    with pytest.raises(DataError, match=r"label\.pkl: found the splits train, valid, test; audio\.pkl has train, test"):
        read(data)


def test_samples_of_the_csv_without_features_are_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data, text=by_name(TEXT), audio=by_name(-TEXT))
    labels(data, more="\nlost,1,train\n")
    assert len(read(data)["train"]) == 40
    assert "labels.csv: not used are 1 samples without features, lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["1", " 2"], [1, 2]),
        (["1.5", "2"], [1.5, 2.0]),
        (["1_2", "3"], ["1_2", "3"]),
        (["a", "1"], ["a", "1"]),
    ],
)
def test_cells_of_the_csv(cells: list[str], wanted: list[Any]) -> None:
    assert _values(cells) == wanted


def test_files_that_do_not_fit_are_refused(data: Path) -> None:
    write(data, text=by_name(TEXT), audio=by_name(-TEXT, range(58)))
    labels(data)
    with pytest.raises(
        DataError, match=r"audio lacks the samples clip_58, clip_59; expected the same samples in all files"
    ):
        read(data)
    write(data, audio=by_name(-TEXT))
    labels(data, range(59))
    with pytest.raises(DataError, match=r"label lacks the samples clip_59"):
        read(data)
    labels(data, [0, *range(SAMPLES)])
    with pytest.raises(DataError, match=r"labels\.csv: found the sample 'clip_0' twice"):
        read(data)
    labels(data, more="\nclip_1,2")
    with pytest.raises(DataError, match=r"labels\.csv, row 62: found 2 cells; expected 3"):
        read(data)
    labels(data, more="\nclip_1,,test")
    with pytest.raises(DataError, match=r"labels\.csv, row 62, column label: is empty; expected a value"):
        read(data)
    labels(data, header="clip,text,split")
    with pytest.raises(DataError, match=r"labels\.csv: found the column text, which is a file of features too"):
        read(data)
    labels(data)
    (data / "more.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"found labels\.csv, more\.csv; expected one CSV about the samples"):
        read(data)
    (data / "more.csv").unlink()
    write(data, audio={"x": TEXT, "y": TEXT})
    with pytest.raises(DataError, match=r"audio lacks the samples clip_0, clip_1, "):
        read(data)
    write(data, audio={name: TEXT[row, : 1 + row % 2] for row, name in enumerate(NAMES)})
    with pytest.raises(
        DataError, match=r"found 2 feature files, audio\.pkl, text\.pkl; expected .* one for each modality"
    ):
        read(data)
