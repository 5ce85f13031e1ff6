"""Sets of sentiment in the layouts of other projects give the arrays that numpy takes from the pickle by hand."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import feature_sets
import numpy as np
import pytest
import sentiment_files as files
import torch

from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.datasets.mosi import MosiOptions
from cggm_ray.data.formats.stacked import names_of
from cggm_ray.data.loading.split import TensorSplit, load_split
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig

Sets = tuple[Manifest, dict[str, TensorSplit]]


def mosi(tmp_path: Path, data: Path, modalities: tuple[str, ...] | None = None, **options: Any) -> Config:
    return Config(
        data=DataConfig(dataset="mosi", data_path=str(data), modalities=modalities),
        run=RunConfig(local=True, storage_path=str(tmp_path / "runs"), name="r"),
        options=MosiOptions(**options),
    )


def features(
    tmp_path: Path, data: Path, target: str = "labels", modalities: str | None = None, **options: Any
) -> Config:
    return feature_sets.config(tmp_path, data, modalities, target=target, **{"task": "regression"} | options)


def converted(config: Config) -> Sets:
    folder = prepare_data(config, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    names = tuple(manifest.modalities)
    return manifest, {
        split: load_split(folder, manifest, split, names, torch.device("cpu")) for split in manifest.splits
    }


CHANGES: dict[str, Callable[[dict[str, dict[str, Any]]], Any]] = {
    "as released": lambda content: content,
    "bytes": files.by_bytes,
    "OrderedDict": files.ordered,
    "defaultdict": files.defaults,
    "lists": files.lists,
    "samples": files.samples,
    "other types": files.wide,
}


@pytest.mark.parametrize("make", [mosi, features])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_holds_them_the_arrays_are_the_same(tmp_path: Path, make: Any, change: str) -> None:
    content = files.base()
    data = files.write(tmp_path / "set.pkl", CHANGES[change](content))
    manifest, splits = converted(make(tmp_path, data))
    assert list(manifest.modalities) == ["text", "audio", "vision"]
    for split, part in content.items():
        for name in files.WIDTHS:
            assert splits[split].inputs[name].dtype == torch.float32
            np.testing.assert_array_equal(splits[split].inputs[name].numpy(), part[name])
        labels = part["labels"].reshape(-1, 1)
        expected = np.round(labels) if change == "other types" else labels
        np.testing.assert_array_equal(splits[split].target.numpy(), expected)
        assert splits[split].masks == {}
        ids = part["id"].tolist()
        assert splits[split].names == ([f"{name} 0.5" for name in ids] if change == "lists" else ids)


@pytest.mark.parametrize("make", [mosi, features])
def test_mmsa(tmp_path: Path, make: Any) -> None:
    content = files.mmsa()
    data = files.write(tmp_path / "unaligned_50.pkl", content)
    config = make(tmp_path, data) if make is mosi else features(tmp_path, data, "regression_labels")
    manifest, splits = converted(config)
    assert sorted(manifest.modalities) == ["audio", "text", "vision"]
    for split, part in content.items():
        audio = np.where(np.isinf(part["audio"]), 0, part["audio"])
        np.testing.assert_array_equal(splits[split].inputs["audio"].numpy(), audio)
        np.testing.assert_array_equal(splits[split].inputs["text"].numpy(), part["text"])
        np.testing.assert_array_equal(splits[split].target.numpy()[:, 0], part["regression_labels"])
        assert set(splits[split].masks) == {"audio", "vision"}
        for name in ("audio", "vision"):
            steps = np.array(part[f"{name}_lengths"])[:, None]
            np.testing.assert_array_equal(splits[split].masks[name].numpy(), np.arange(files.WIDTHS[name][0]) < steps)
    text = "\n".join(manifest.notes["taken"])
    for expected in (
        "audio [7, 3]",
        "steps from audio_lengths, 3 infinite values as 0",
        "classification_labels, regression_labels_T (a label)",
        "text_bert (token ids)",
        "train 12, valid 5, test 6",
    ):
        assert expected in text


@pytest.mark.parametrize("wrong", ["too long", "in front", "in one split"])
def test_lengths_that_cannot_be_are_left_out_and_said(tmp_path: Path, wrong: str) -> None:
    content = files.mmsa()
    part = content["train"]
    if wrong == "too long":
        part["audio_lengths"] = [99] * 12
    elif wrong == "in one split":
        del content["test"]["audio_lengths"]
    else:
        for split in content.values():
            split["audio"] = np.ascontiguousarray(split["audio"][:, ::-1])
    manifest, splits = converted(mosi(tmp_path, files.write(tmp_path / "set.pkl", content)))
    assert set(splits["train"].masks) == {"vision"}
    said = {
        "too long": "says 99 to 99 steps",
        "in front": "the padding of audio is in front",
        "in one split": "not in every",
    }
    assert f"audio_lengths ({said[wrong]}" in "\n".join(manifest.notes["taken"])


def test_words_of_mag_bert_are_left_out_and_sequences_padded(tmp_path: Path) -> None:
    content, _ = files.mag()
    manifest, splits = converted(mosi(tmp_path, files.write(tmp_path / "mosi.pkl", content)))
    assert sorted(manifest.modalities) == ["audio", "vision"]
    assert "left out    words (texts)" in "\n".join(manifest.notes["taken"])
    longest = max(len(row[0][0]) for rows in content.values() for row in rows)
    for split, rows in (("train", content["train"]), ("valid", content["dev"]), ("test", content["test"])):
        assert splits[split].names == [segment for _, _, segment in rows]
        for row, ((words, vision, audio), label, _) in enumerate(rows):
            assert splits[split].target[row].item() == np.float32(label[0, 0])
            for name, values in (("vision", vision), ("audio", audio)):
                expected = np.zeros((longest, values.shape[1]), np.float32)
                expected[: len(values)] = values
                np.testing.assert_array_equal(splits[split].inputs[name][row].numpy(), expected)
                assert splits[split].masks[name][row].tolist() == [step < len(words) for step in range(longest)]


def test_a_folder_of_one_pickle_for_each_split(tmp_path: Path) -> None:
    content = files.base()
    folder = tmp_path / "set"
    folder.mkdir()
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        files.write(folder / f"{name}.pkl", content[split])
    for config in (mosi(tmp_path, folder), features(tmp_path, folder)):
        _, splits = converted(config)
        np.testing.assert_array_equal(splits["valid"].inputs["text"].numpy(), content["valid"]["text"])


@pytest.mark.parametrize("make", [mosi, features])
def test_one_of_several_targets(tmp_path: Path, make: Any) -> None:
    content = files.base()
    rng = np.random.default_rng(3)
    for part in content.values():
        part["labels"] = rng.uniform(-3, 3, size=(len(part["id"]), 1, 7))
    data = files.write(tmp_path / "mosei.pkl", content)
    with pytest.raises(DataError, match="choose one with --target_index 0 to 6"):
        prepare_data(make(tmp_path, data), write_shards_here)
    with pytest.raises(DataError, match="7 targets for each sample; expected --target_index 0 to 6"):
        prepare_data(make(tmp_path, data, target_index=7), write_shards_here)
    _, splits = converted(make(tmp_path, data, target_index=3))
    np.testing.assert_array_equal(splits["test"].target[:, 0].numpy(), np.float32(content["test"]["labels"][:, 0, 3]))


def test_one_of_the_emotions_of_mult(tmp_path: Path) -> None:
    content = files.base()
    rng = np.random.default_rng(3)
    for part in content.values():
        part["labels"] = np.eye(2)[rng.integers(2, size=(len(part["id"]), 4))]
    data = files.write(tmp_path / "iemocap_data.pkl", content)
    with pytest.raises(DataError, match="choose one with --target_index 0 to 3"):
        prepare_data(features(tmp_path, data, task="classification"), write_shards_here)
    _, splits = converted(features(tmp_path, data, task="classification", target_index=2))
    assert splits["train"].target.tolist() == content["train"]["labels"][:, 2, 1].astype(int).tolist()


def test_what_looks_like_a_side_matter_can_be_named(tmp_path: Path) -> None:
    data = files.write(tmp_path / "set.pkl", files.mmsa())
    manifest, _ = converted(features(tmp_path, data, "regression_labels", "text,text_bert,regression_labels_T"))
    assert set(manifest.modalities) == {"text", "text_bert", "regression_labels_T"}


@pytest.mark.parametrize(
    ("most", "said"), [(3.0, "-3 to 3, "), (5.0, "10 of 23 lie outside [-3, 3]"), (1.0, "at most -1, 0")]
)
def test_labels_that_metrics_clip_are_counted(tmp_path: Path, most: float, said: str) -> None:
    content = files.base()
    for part in content.values():
        part["labels"] = np.linspace(-most, most, len(part["id"]))
    labels = np.concatenate([part["labels"] for part in content.values()])
    manifest, _ = converted(features(tmp_path, files.write(tmp_path / "set.pkl", content)))
    assert said.replace("10", str(int((np.abs(labels) > 3).sum()))) in manifest.notes["taken"][1]


@pytest.mark.parametrize(("metrics", "formed"), [("auto", True), ("plain", False), ("sentiment", True)])
def test_metrics_of_sentiment_in_both_pipelines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: str, formed: bool
) -> None:
    data = files.write(tmp_path / "set.pkl", files.mmsa())
    result = run(features(tmp_path, data, "regression_labels", metrics=metrics))
    assert result is not None
    assert ({"acc7", "acc2_nozero", "f1_nozero"} <= set(result.test)) is formed
    lines = capsys.readouterr().out.splitlines()
    first = lines.index(f"data: {data}")
    assert lines[first + 1].startswith("  target      regression_labels, ")


def test_metrics_of_sentiment_need_a_regression() -> None:
    with pytest.raises(UsageError, match="metrics: found 'sentiment' with --task classification"):
        FeatureOptions(metrics="sentiment")


def as_bytes(value: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


TENSORS = {"train": {"text": torch.zeros(2, 3)}}
OTHERS = {
    "zip.pkl": (as_bytes(TENSORS), "a file of torch.save; load it with torch.load"),
    "legacy.pkl": (
        as_bytes(TENSORS, _use_new_zipfile_serialization=False),
        "a file of torch.save; load it with torch.load",
    ),
    "legacy.pt": (
        as_bytes(TENSORS, _use_new_zipfile_serialization=False),
        "expected one that torch 1.6 or a later one wrote",
    ),
    "module.pt": (as_bytes(torch.nn.Linear(2, 3)), "holds torch.nn.modules.linear.Linear; expected tensors"),
    "arrays.pt": (as_bytes({"text": np.zeros(3)}), "turn arrays into tensors by torch.from_numpy"),
    "one.pt": (as_bytes(torch.zeros(3)), "found a ndarray; expected a dict of arrays"),
    "large.pt": (as_bytes({"text": torch.zeros(1).expand(2**40)}), "4,398,046,511,104 bytes of data in a file of"),
    "sparse.pt": (
        as_bytes({"text": torch.eye(3).to_sparse()}),
        "found a sparse or quantised tensor; expected a dense one",
    ),
    "one.npy": (npy(np.zeros(3)), "one array of np.save; write modalities and target together with np.savez"),
    "all.feather": (b"ARROW1\0\0", "a file of Arrow or Feather; write it with pyarrow.parquet.write_table"),
    "tensors.pkl": (pickle.dumps(TENSORS), "it holds torch tensors; turn every tensor into an array"),
    "data.pkl.gz": (gzip.compress(b"x"), "compressed by gzip; unpack it first"),
    "data.pkl": (gzip.compress(b"x"), "compressed by gzip; unpack it first"),
    "new.mat": (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
    "old.mat": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(90), "a MATLAB file; read it with scipy.io.loadmat"),
    "one.npz": (as_bytes(TENSORS), "a file of torch.save"),
    "frame.pkl": (
        b"\x80\x02cpandas.core.frame\nDataFrame\n)R.",
        "it holds a table of pandas; write it with DataFrame.to_parquet",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_called_by_their_name(tmp_path: Path, name: str) -> None:
    content, said = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        prepare_data(features(tmp_path, tmp_path / name), write_shards_here)
    assert said in str(error.value)
    assert name in str(error.value)


def test_one_row_may_be_there_many_times_but_not_fill_the_memory(tmp_path: Path) -> None:
    row = np.zeros((1000, 1000), np.float32)
    content = files.base()
    content["train"]["audio"] = [row] * 1000
    with pytest.raises(DataError, match="expected at most"):
        prepare_data(mosi(tmp_path, files.write(tmp_path / "set.pkl", content)), write_shards_here)
    content["train"]["audio"] = [np.zeros((10**6, 3), np.float32), *[np.zeros((1, 3), np.float32)] * 5000]
    with pytest.raises(DataError, match="one sequence is much longer than others"):
        prepare_data(mosi(tmp_path, files.write(tmp_path / "set.pkl", content)), write_shards_here)


def test_names_in_an_array_without_an_axis() -> None:
    assert names_of(np.array("one", object), "x").tolist() == ["one"]
    with pytest.raises(DataError, match=r"^x, row 0: found an array of objects"):
        names_of(np.array({"a": 1}, object), "x")
