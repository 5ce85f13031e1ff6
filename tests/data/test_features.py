"""Anybody's features: formats, splits, kinds, what is missing, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from feature_sets import TINY, arrays, as_npz, as_parquet, as_pickle, config

from cggm_ray.commands.train import run
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.datasets.taken import no_modality
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, build_network, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.shaped import shaped_net

DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def converted(settings: Config) -> tuple[Manifest, dict[str, TensorSplit]]:
    folder = prepare_data(settings, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    dataset = build_dataset(settings, "features")
    splits = {}
    for name in manifest.splits:
        split = dataset.open_split(folder, manifest, name, tuple(manifest.modalities), torch.device("cpu"))
        assert isinstance(split, TensorSplit)
        splits[name] = split
    return manifest, splits


@pytest.mark.parametrize("write", [as_npz, as_pickle, as_parquet])
def test_formats_give_the_same(tmp_path: Path, write: Callable[[Path, dict[str, np.ndarray]], Path]) -> None:
    content = arrays()
    manifest, splits = converted(config(tmp_path, write(tmp_path, content), split="part"))
    assert manifest.notes["kinds"] == {"words": "sequence", "face": "image", "age": "vector"}
    assert manifest.notes["classes"] == ["0", "1", "2"]
    assert manifest.notes["sentiment"] is False
    assert manifest.notes["taken"][1:] == [
        "  target      label, 3 classes: 0, 1, 2",
        "  modalities  words [5, 3] sequence; face [8, 8] image; age [4] vector",
        "  names       id",
        "  samples     train 20, valid 5, test 5, by column part",
        "  left out    mark (one number for each sample)",
    ]
    assert {name: len(split) for name, split in splits.items()} == {"train": 20, "valid": 5, "test": 5}
    rows = np.flatnonzero(content["part"] == "val")
    valid = splits["valid"]
    assert valid.names == content["id"][rows].tolist()
    assert valid.target.tolist() == content["label"][rows].tolist()
    assert valid.masks == {}
    np.testing.assert_allclose(valid.inputs["face"], content["face"][rows] / 255, atol=1e-7)
    np.testing.assert_array_equal(valid.inputs["words"], content["words"][rows])
    np.testing.assert_allclose(valid.inputs["age"], content["age"][rows], rtol=1e-6)


@pytest.mark.parametrize("layout", ["{}/part-0.parquet", "{}-00000.parquet"])
def test_folder_of_splits_and_texts_as_classes(tmp_path: Path, layout: str) -> None:
    content = arrays() | {"label": np.array(["dog", "cat", "bird"])[np.arange(30) % 3]}
    for part, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        picked = {key: values[content["part"] == part] for key, values in content.items()}
        path = tmp_path / "set" / layout.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        as_parquet(path.parent, picked).rename(path)
    manifest, splits = converted(config(tmp_path, tmp_path / "set", "words,age"))
    assert manifest.notes["classes"] == ["bird", "cat", "dog"]
    assert splits["test"].target.tolist() == [0, 0, 0, 0, 0]
    assert [len(split) for split in splits.values()] == [20, 5, 5]


def test_drawn_splits_are_seeded_and_keep_the_classes(tmp_path: Path) -> None:
    path = as_npz(tmp_path, arrays(60))
    drawn = [converted(config(tmp_path, path, split_seed=seed))[1] for seed in (1, 1, 2)]
    names = [[tuple(split.names or ()) for split in splits.values()] for splits in drawn]
    assert names[0] == names[1] != names[2]
    assert sorted(sum(names[0], ())) == arrays(60)["id"].tolist()
    assert [len(part) for part in names[0]] == [48, 6, 6]
    for split in drawn[0].values():
        assert len(set(torch.bincount(split.target).tolist())) == 1


def test_validation_is_drawn_from_train_if_the_file_has_none(tmp_path: Path) -> None:
    content = arrays()
    parts = {name: {k: v[content["part"] == name] for k, v in content.items()} for name in ("train", "test")}
    _, splits = converted(config(tmp_path, as_pickle(tmp_path, parts), "age,words"))  # type: ignore[arg-type]
    assert [len(split) for split in splits.values()] == [18, 2, 5]
    assert set(splits["valid"].names or ()) < set(parts["train"]["id"])


def test_regression_on_a_pickle_like_that_of_mosi(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    parts = {
        name: {
            "text": rng.normal(size=(n, 4, 3)),
            "audio": rng.normal(size=(n, 6, 2)),
            "labels": rng.normal(size=(n, 1, 1)),
        }
        for name, n in (("train", 20), ("valid", 6), ("test", 7))
    }
    settings = config(tmp_path, as_pickle(tmp_path, parts), task="regression", target="labels")  # type: ignore[arg-type]
    result = run(settings)
    assert result is not None
    pairs = ("acc2_nonneg", "f1_nonneg", "acc2_nozero", "f1_nozero")
    assert set(result.test) == {"loss", "mae", "corr", "acc7", "acc5", *pairs}
    assert pq.read_metadata(result.folder / "predictions.parquet").num_rows == 7
    assert not (result.folder / "confusion.csv").exists()


def test_nulls_and_ragged_lists_become_masks(tmp_path: Path) -> None:
    steps = [2 + row % 3 for row in range(30)]
    words = [np.full((n, 3), row, np.float32).tolist() for row, n in enumerate(steps)]
    age: list[list[float] | None] = [[float(row), 1.0] for row in range(30)]
    words[0] = age[1] = None  # type: ignore[call-overload]
    table = pa.table({"words": words, "age": age, "label": np.arange(30) % 3, "part": arrays()["part"]})
    pq.write_table(table, tmp_path / "f.parquet")
    manifest, splits = converted(config(tmp_path, tmp_path / "f.parquet", split="part"))
    assert manifest.notes["kinds"] == {"words": "sequence", "age": "vector"}
    train = splits["train"]
    assert train.masks["words"].sum(1).tolist()[:4] == [0, 3, 4, 2]
    assert train.masks["age"][:, 0].tolist()[:4] == [True, False, True, True]
    assert train.inputs["words"].shape[1:] == (4, 3)
    (batch,) = splits["valid"].batches([_Slice], 0)
    assert batch.present is not None
    assert {name: flags.tolist() for name, flags in batch.present.items()} == {"words": [True] * 2, "age": [True] * 2}


class _Slice:
    index, weight, samples = torch.arange(2), None, 2


def test_tensor_columns_that_ray_wrote(tmp_path: Path) -> None:
    """Where Ray is not imported, its tensor type is known by the field's metadata alone."""
    metadata = {"ARROW:extension:name": "ray.data.arrow_tensor_v2", "ARROW:extension:metadata": "[2, 3]"}
    values = np.arange(180, dtype=np.float32).reshape(30, 2, 3)
    field = pa.field("words", pa.large_list(pa.float32()), metadata=metadata)
    schema = pa.schema([field, pa.field("label", pa.int64())])
    table = pa.table([pa.array(values.reshape(30, 6).tolist(), field.type), pa.array([0, 1] * 15)], schema=schema)
    pq.write_table(table, tmp_path / "f.parquet")
    _, splits = converted(config(tmp_path, tmp_path / "f.parquet", "words"))
    rows = torch.cat([split.inputs["words"] for split in splits.values()])
    assert sorted(rows[:, 0, 0].tolist()) == values[:, 0, 0].tolist()


def missing(content: float) -> dict[str, np.ndarray]:
    """Every fourth sample lacks its words and the next one its age; what stands there is `content`."""
    found = arrays()
    here = np.arange(30) % 4
    found |= {"words_present": here != 0, "age_present": here != 1}
    found["words"][here == 0] = content
    found["age"][here == 1] = content
    return found


def test_run_does_not_depend_on_what_is_missing(tmp_path: Path) -> None:
    predicted = []
    for content in (0.0, 1000.0, float("nan")):
        folder = tmp_path / str(content)
        folder.mkdir()
        result = run(config(folder, as_npz(folder, missing(content)), "words,age,face", split="part"))
        assert result is not None
        predicted.append(pq.read_table(result.folder / "predictions.parquet"))
        record = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert all(record[f"{what}/words"] is not None for what in ("score", "coefficient", "guide_loss", "grad_norm"))
    assert predicted[0] == predicted[1] == predicted[2]


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_follow_one_where_samples_lack_modalities(tmp_path: Path) -> None:
    """The workers' batches lack different samples; scores and losses are those of the global batch all the same."""
    still = ModelConfig(
        **vars(TINY)
        | dict.fromkeys(("attn_dropout", "relu_dropout", "embed_dropout", "res_dropout", "out_dropout"), 0.0)
    )
    alone = dataclasses.replace(
        config(tmp_path / "one", as_npz(tmp_path, missing(0.0)), "words,age,face", split="part"),
        model=still,
        train=TrainConfig(num_epochs=2, batch_size=6),
    )
    workers = RunConfig(workers="2", cpus_per_worker=1, storage_path=str(tmp_path / "two"), name="r")
    results = [run(alone), run(dataclasses.replace(alone, run=workers))]
    records = []
    for result in results:
        assert result is not None
        records.append([json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()])
    for one, two in zip(*records, strict=True):
        for name in ("train/loss", "score/words", "score/age", "coefficient/words", "guide_loss/age", "valid/loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_masks_reach_the_loop(tmp_path: Path) -> None:
    """The same numbers without the masks are another run: the masks are not lost on the way."""
    content = missing(0.0)
    bare = {name: values for name, values in content.items() if not name.endswith("_present")}
    losses = []
    for name, values in (("with", content), ("without", bare)):
        (tmp_path / name).mkdir()
        result = run(config(tmp_path / name, as_npz(tmp_path / name, values), "words,age", split="part"))
        assert result is not None
        losses.append(result.test["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("shape", [(6, 6), (1, 20, 12), (3, 33, 17), (40, 24, 3)])
def test_images_of_any_layout(shape: tuple[int, ...]) -> None:
    net = shaped_net(TINY, {"image": shape}, {"image": "image"}, 2)
    features = net.encode({"image": torch.randn(2, *shape)})["image"]
    assert isinstance(features, torch.Tensor)
    assert features.shape[0] == 2
    assert 1 < features.shape[1] <= 64
    assert features.shape[2] == TINY.proj_dim


def test_kinds_can_be_told(tmp_path: Path) -> None:
    manifest, _ = converted(config(tmp_path, as_npz(tmp_path, arrays()), kinds=("face:sequence", "words:vector")))
    assert manifest.notes["kinds"] == {"words": "vector", "face": "sequence", "age": "vector"}
    settings = config(tmp_path, as_npz(tmp_path, arrays()), kinds=("face:sequence", "words:vector"))
    net, guides = build_network(settings, build_dataset(settings), manifest, ("words", "face"))
    features = net.encode({"words": torch.randn(2, 5, 3), "face": torch.randn(2, 8, 8)})
    assert {name: tuple(h.shape) for name, h in features.items()} == {"words": (2, 1, 8), "face": (2, 8, 8)}
    assert all(guides[name](h).logits.shape == (2, 3) for name, h in features.items())


def test_digits_by_flags(tmp_path: Path) -> None:
    path = DATA / "avdigits" / "avdigits.npz"
    if not path.exists():
        pytest.skip(f"no {path} (set CGGM_DATA)")
    with np.load(path, allow_pickle=False) as file:
        # A tenth of the file keeps the test short.
        few = {name: file[name][::10] if file[name].ndim else file[name] for name in file.files}
    flags = [
        "--modalities",
        "image,audio_u8",
        "--target",
        "label",
        "--split",
        "split",
        "--lengths",
        "audio_u8:audio_len",
    ]
    flags += [
        "--preset",
        "released",
        "--num_epochs",
        "1",
        "--proj_dim",
        "10",
        "--nlevels",
        "3",
        "--local",
        "--name",
        "r",
        "--storage_path",
    ]
    command = [
        sys.executable,
        "pipelines/features.py",
        "--data_path",
        str(as_npz(tmp_path, few)),
        *flags,
        str(tmp_path),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    header, *rows = (tmp_path / "r" / "confusion.csv").read_text().splitlines()
    assert header == "truth," + ",".join(f'"{digit}"' for digit in range(10))
    counts = [sum(map(int, row.split(",")[1:])) for row in rows]
    assert sum(counts) == (few["split"] == "test").sum()


def test_features_may_be_true_and_false(tmp_path: Path) -> None:
    links = np.random.default_rng(0).random((30, 7)) < 0.3
    content = arrays() | {"links": links}
    _, splits = converted(config(tmp_path, as_npz(tmp_path, content), "links,age", split="part"))
    np.testing.assert_array_equal(splits["train"].inputs["links"].numpy(), links[content["part"] == "train"])


def test_large_whole_numbers_are_token_ids_only_where_they_are_padded() -> None:
    rng = np.random.default_rng(0)
    padded = rng.integers(1, 30000, (40, 12)) * (np.arange(12) < rng.integers(3, 13, (40, 1)))
    histogram = rng.multinomial(4800, rng.dirichlet(np.full(12, 0.3), 40))
    readings = rng.integers(500, 4096, (40, 12))
    assert [no_modality("a", values) for values in (padded, padded[:, ::-1])] == ["token ids"] * 2
    assert [no_modality("a", values) for values in (histogram, readings)] == [None] * 2
    # A name that says it is enough.
    assert no_modality("input_ids", readings) == "token ids"


def test_shards_follow_the_options(tmp_path: Path) -> None:
    settings = config(tmp_path, as_npz(tmp_path, arrays()), "words,age", split="part")
    first = prepare_data(settings, write_shards_here)
    swapped = dataclasses.replace(settings, data=dataclasses.replace(settings.data, modalities=("age", "words")))
    assert prepare_data(swapped, write_shards_here) == first
    other = dataclasses.replace(settings, options=FeatureOptions(split="part", target="mark", task="regression"))
    assert prepare_data(other, write_shards_here) != first
