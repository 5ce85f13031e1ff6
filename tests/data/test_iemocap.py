"""IEMOCAP from the released layout: what is read, what is refused, and runs over folds."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from iemocap_layout import PLACES, small_layout, write_layout

from cggm_ray.__main__ import main as command
from cggm_ray.commands.train import run
from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.formats.safe_pickle import load_npy, load_pickle
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.split import load_split
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.runs.finished import open_new
from cggm_ray.strategies.settings import ModulationConfig
from conftest import sets

DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data"))
TINY = ModelConfig(nlevels=3, cls_layers=1, proj_dim=10, num_heads=2)
SHORT = {"text_length": 4, "audio_length": 6, "vision_length": 5}


def config(tmp_path: Path, data: Path, modulation: str = "cggm", epochs: int = 2, **options: object) -> Config:
    return Config(
        data=DataConfig(dataset="iemocap", data_path=str(data)),
        model=TINY,
        modulation=ModulationConfig(modulation=modulation),
        train=TrainConfig(num_epochs=epochs, batch_size=16),
        run=RunConfig(local=True, storage_path=str(tmp_path / "runs"), name="r"),
        options=IemocapOptions(**(SHORT | options)),  # type: ignore[arg-type]
    )


def opened(settings: Config, split: str = "train") -> tuple[Sequence[str], Batch]:
    """Names of the utterances of a split, and all of it as one batch."""
    folder = prepare_data(settings, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    dataset = build_dataset(settings, "iemocap")
    found = dataset.open_split(folder, manifest, split, ("text", "audio", "vision"), torch.device("cpu"))
    assert found.names is not None
    (batch,) = found.batches(slices(torch.arange(len(found)), len(found), 0, 1), epoch=0)
    return found.names, batch


def read(file: Path, name: str) -> np.ndarray:
    with h5py.File(file, "r") as h5:
        return h5[name][()]


@pytest.mark.parametrize("norm", ["trn", "utt"])
def test_features_are_normalised_cut_and_padded(tmp_path: Path, norm: str) -> None:
    data = small_layout(tmp_path / "iemocap")
    names, batch = opened(config(tmp_path, data, norm_method=norm))
    assert len(names) == 6
    assert batch.masks is batch.present is None
    frames = np.concatenate([read(data / PLACES["audio"], name) for name in names])
    for row, name in enumerate(names):
        text, audio = (read(data / PLACES[m], name) for m in ("text", "audio"))
        mean, std = (frames.mean(0), frames.std(0)) if norm == "trn" else (audio.mean(0), audio.std(0, ddof=1))
        wanted = np.zeros((6, 3))
        wanted[: len(audio)] = (audio - mean) / std
        np.testing.assert_allclose(batch.inputs["audio"][row], wanted, atol=1e-5)
        cut = np.zeros((4, 5))
        cut[: len(text[:4])] = text[:4]
        np.testing.assert_array_equal(batch.inputs["text"][row], cut.astype(np.float32))
    assert batch.target.tolist() == [0, 1, 2, 3, 0, 1]


def test_mask_says_where_the_padding_is(tmp_path: Path) -> None:
    data = small_layout(tmp_path / "iemocap")
    (plain, _), (names, batch) = (opened(config(tmp_path, data, padding_mask=mask)) for mask in (False, True))
    assert plain == names
    assert batch.masks is not None
    lengths = {name: mask.sum(1).tolist() for name, mask in batch.masks.items()}
    assert lengths == {"text": [2, 3, 4, 4, 4, 2], "audio": [2, 3, 4, 5, 6, 2], "vision": [2, 3, 4, 5, 5, 2]}
    assert len(sets(tmp_path / "runs" / "shards")) == 1, "the mask needs no other shards"


def test_all_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small_layout(tmp_path / "iemocap", folds=("2", "10"))
    assert run(config(tmp_path, data, cv="all", padding_mask=True)) is None
    runs = tmp_path / "runs"
    summary = json.loads((runs / "r" / "folds.json").read_text())["test"]["accuracy"]
    single = [
        json.loads((runs / f"r-cv{fold}" / "summary.json").read_text())["test"]["accuracy"] for fold in ("2", "10")
    ]
    assert summary["mean"] == pytest.approx(np.mean(single))
    assert summary["std"] == pytest.approx(np.std(single, ddof=1))
    printed = capsys.readouterr().out
    assert printed.index("fold cv2\n") < printed.index("fold cv10\n"), "folds are numbers"
    assert re.search(r"^accuracy +\d\.\d{4} +\d\.\d{4} +\d\.\d{4} +\d\.\d{4}$", printed, re.MULTILINE)
    matrix = np.loadtxt(runs / "r-cv2" / "confusion.csv", delimiter=",", skiprows=1, dtype=str)
    counts = matrix[:, 1:].astype(int)
    assert counts.shape == (4, 4)
    assert counts.sum(1).tolist() == [0, 1, 1, 1]
    assert counts.trace() / counts.sum() == pytest.approx(single[0])


def test_one_modality(tmp_path: Path) -> None:
    settings = config(tmp_path, small_layout(tmp_path / "iemocap"), modulation="none")
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, modalities=("text",)))
    result = run(settings)
    assert result is not None
    assert 0 <= result.test["unweighted_accuracy"] <= 1


def test_utterance_without_any_step(tmp_path: Path) -> None:
    """It is a missing modality under the mask; where it is the only one, the sample has nothing and is named."""
    data = small_layout(tmp_path / "iemocap")
    change(PLACES["text"], lambda h5: put(h5, FIRST, np.zeros((0, 5))))(data)
    settings = config(tmp_path, data, padding_mask=True)
    _, batch = opened(settings)
    assert batch.present is not None
    assert batch.present["text"].tolist() == [False, True, True, True, True, True]
    assert run(settings) is not None
    folder = prepare_data(settings, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    with pytest.raises(DataError, match=rf"split train, sample {FIRST} has none of the modalities text"):
        load_split(folder, manifest, "train", ("text",), torch.device("cpu"))


def change(place: str, edit: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with h5py.File(folder / place, "a") as h5:
            edit(h5)

    return apply


def put(h5: h5py.File, name: str, value: object) -> None:
    del h5[name]
    h5.create_dataset(name, data=value)


FIRST, LAST = "Ses01F_impro00_F000", "Ses01F_impro11_F000"
BROKEN: dict[str, Callable[[Path], object]] = {
    "key missing": change(PLACES["vision"], lambda h5: h5.pop(LAST)),
    "other width": change(PLACES["text"], lambda h5: put(h5, LAST, np.zeros((3, 7)))),
    "one axis in place of two": change(PLACES["audio"], lambda h5: put(h5, FIRST, np.zeros(3))),
    "NaN in text": change(PLACES["text"], lambda h5: put(h5, LAST, np.full((2, 5), np.nan))),
    "fold without deviation": change("A/comparE_mean_std.h5", lambda h5: h5.pop("1/std")),
    "width of statistics": change("A/comparE_mean_std.h5", lambda h5: put(h5, "1/mean", np.zeros(9))),
    "five classes": lambda f: np.save(f / "target/1/val_label.npy", np.eye(5)[:3]),
    "two classes a row": lambda f: np.save(
        f / "target/1/val_label.npy", np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    ),
    "labels too few": lambda f: np.save(f / "target/1/tst_label.npy", np.eye(4)[:2]),
    "names are numbers": lambda f: np.save(f / "target/1/trn_int2name.npy", np.arange(6)),
    "file missing": lambda f: (f / "A/comparE.h5").unlink(),
    "text in place of h5": lambda f: (f / "A/comparE.h5").write_bytes(b"text"),
    "npy cut short": lambda f: (f / "target/1/trn_label.npy").write_bytes(b"\x93NUMPY"),
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cv": "3"}, "fold 3 is missing; found 1"),
        ({"norm_method": "all"}, "norm_method"),
        ({"audio_length": 0}, "audio_length"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    data = small_layout(tmp_path / "iemocap")
    with pytest.raises(UsageError, match=message):
        prepare_data(config(tmp_path, data, **options), write_shards_here)


def test_object_arrays_are_read_without_running_them(tmp_path: Path) -> None:
    """Byte strings that numpy saved as objects are a pickle; so would be a call to anything."""
    path = tmp_path / "names.npy"
    np.save(path, np.array([[b"one"], ["two"]], dtype=object), allow_pickle=True)
    assert load_npy(path).ravel().tolist() == [b"one", "two"]

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "made"),))

    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="refused to load"):
        load_npy(path)
    assert not (tmp_path / "made").exists()


def test_demonstration_has_the_true_widths(tmp_path: Path) -> None:
    settings = config(tmp_path, tmp_path, cv="all")
    dataset = build_dataset(dataclasses.replace(settings, data=DataConfig(dataset="iemocap")))
    assert list(dataset.folds()) == ["cv1", "cv2"]
    path = dataset.demonstration(tmp_path / "runs" / "demonstration", settings.train.seed)
    for modality, width in {"text": 1024, "audio": 130, "vision": 342}.items():
        with h5py.File(path / PLACES[modality], "r") as h5:
            shapes = {h5[name].shape for name in h5}
        assert {shape[1] for shape in shapes} == {width}
        assert len(shapes) > 5, "utterances of several lengths"


@pytest.fixture(scope="module")
def real_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken and written digits 0 to 3 and sentences of MOSI in four bands of sentiment, as IEMOCAP."""
    digits, mosi = DATA / "avdigits" / "avdigits.npz", DATA / "mosi" / "mosi_data_noalign.pkl"
    if not digits.exists() or not mosi.exists():
        pytest.skip(f"no avdigits and mosi in {DATA} (set CGGM_DATA)")
    with np.load(digits, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("image", "audio_u8", "audio_len", "label", "split")}
    sentences = load_pickle(mosi)["train"]
    bands = np.digitize(sentences["labels"].reshape(-1), np.quantile(sentences["labels"], [0.25, 0.5, 0.75]))
    pools = {band: list(np.flatnonzero(bands == band)) for band in range(4)}
    features: dict[str, dict[str, np.ndarray]] = {"text": {}, "audio": {}, "vision": {}}
    labels, splits = {}, {"train": [], "valid": [], "test": []}
    for row in np.flatnonzero(arrays["label"] < 4):
        split, label = str(arrays["split"][row]), int(arrays["label"][row])
        if sum(labels[name] == label for name in splits[split]) >= {"train": 48, "valid": 12, "test": 12}[split]:
            continue
        name = f"Ses{row:04d}"
        text = sentences["text"][pools[label].pop()].astype(np.float32)
        features["text"][name] = text[: 10 + row % 12]
        features["audio"][name] = arrays["audio_u8"][row][: int(arrays["audio_len"][row])].astype(np.float32)
        features["vision"][name] = arrays["image"][row].astype(np.float32) / 255
        labels[name] = label
        splits[split].append(name)
    return write_layout(tmp_path_factory.mktemp("real"), features, labels, {"1": splits})


def test_real_features_are_learned(tmp_path: Path, real_layout: Path) -> None:
    settings = config(
        tmp_path, real_layout, epochs=6, padding_mask=True, text_length=12, audio_length=20, vision_length=28
    )
    settings = dataclasses.replace(settings, train=TrainConfig(num_epochs=6, batch_size=24))
    result = run(settings)
    assert result is not None
    # Four classes of equal size; chance is 0.25.
    assert result.test["accuracy"] > 0.45


def test_new_utterances_are_predicted_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the network called by hand, with the audio statistics of the training data, which is gone."""
    trained = small_layout(tmp_path / "trained")
    with h5py.File(trained / "A" / "comparE_mean_std.h5") as h5:
        mean, std = h5["1/mean"][()], h5["1/std"][()]
    assert run(config(tmp_path, trained, epochs=1)) is not None
    shutil.rmtree(trained)
    shutil.rmtree(tmp_path / "runs" / "shards")
    new = small_layout(tmp_path / "new")
    shutil.rmtree(new / "target")
    (new / "A" / "comparE_mean_std.h5").unlink()
    capsys.readouterr()
    assert command(["predict", str(tmp_path / "runs" / "r"), "--data_path", str(new)]) == 0
    assert "accuracy" not in capsys.readouterr().out
    found = pq.read_table(tmp_path / "runs" / "r" / "predictions-new.parquet")
    assert found["target"].null_count == 12
    net = open_new(tmp_path / "runs" / "r", new).net
    for row, name in enumerate(found["id"].to_pylist()):
        inputs = {}
        for modality, file in PLACES.items():
            value = read(new / file, name)
            value = (value - mean) / std if modality == "audio" else value
            padded = np.zeros((1, SHORT[f"{modality}_length"], value.shape[1]), np.float32)
            padded[0, : len(value)] = value[: padded.shape[1]]
            inputs[modality] = torch.from_numpy(padded)
        with torch.no_grad():
            assert np.allclose(found["prediction"][row].as_py(), net(inputs)[0].numpy(), atol=1e-5)
    # Some have labels: those of a fold with a test split alone.
    partly = small_layout(tmp_path / "partly")
    for file in (partly / "target" / "1").glob("*"):
        if not file.name.startswith("tst"):
            file.unlink()
    capsys.readouterr()
    assert command(["predict", str(tmp_path / "runs" / "r"), "--data_path", str(partly)]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines()[:-1])
    assert (printed["predicted"], printed["labelled"]) == ("12", "3")
    again = pq.read_table(tmp_path / "runs" / "r" / "predictions-partly.parquet")
    assert again["prediction"].equals(found["prediction"])
    truth = np.array(again["target"].to_pylist()[9:])
    right = np.array([list(row) for row in again["prediction"].to_pylist()[9:]]).argmax(1) == truth
    assert printed["accuracy"] == f"{right.mean():.4f}"
    assert command(["predict", str(tmp_path / "runs" / "r"), "--data_path", str(partly), "--split", "valid"]) == 2
    assert "leave out --split" in capsys.readouterr().err
    assert command(["predict", str(tmp_path / "runs" / "r"), "--data_path", str(partly), "--split", "test"]) == 0
    assert pq.read_table(tmp_path / "runs" / "r" / "predictions-test-partly.parquet").num_rows == 3


def test_an_utterance_that_lacks_a_modality_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config(tmp_path, small_layout(tmp_path / "trained"), epochs=1)) is not None
    new = small_layout(tmp_path / "new")
    with h5py.File(new / PLACES["vision"], "a") as h5:
        del h5["Ses01F_impro04_F000"]
    assert command(["predict", str(tmp_path / "runs" / "r"), "--data_path", str(new)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "denseface.h5, utterance Ses01F_impro04_F000: the key is missing" in line
