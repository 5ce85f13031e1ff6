"""Raw data and shards in a bucket give the shards, metrics and predictions that folders give; faults are told in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from brats_files import configured, write_challenge, write_released
from faulty_store import FaultyStore, faulty_store
from feature_sets import arrays, as_h5, as_npy, as_npz, as_parquet, as_pickle, as_safetensors
from feature_sets import config as feature_config
from food101_files import configuration, write_set
from iemocap_layout import small_layout

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import MANIFEST, Manifest, RawShard, Shard, Stage, verify_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.storage import cache, leases, objects
from cggm_ray.storage.urls import UrlPath
from conftest import SMALL, small_set, write_pickle

RECIPE = Config()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, which stays empty, and an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    yield
    assert os.listdir(tmp_path / "here") == []


def uploaded(local: Path, url: str) -> UrlPath:
    """A file or folder, in the store too."""
    there = UrlPath(f"{url}/{local.name}")
    for file in [local] if local.is_file() else sorted(file for file in local.rglob("*") if file.is_file()):
        (there / file.relative_to(local) if file != local else there).upload(file)
    return there


def with_places(config: Config, raw: Path, shards: str) -> Config:
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, data_path=str(raw), shard_path=shards, memory_budget=64)
    )


def iemocap(folder: Path) -> tuple[Path, Config]:
    config = Config(
        data=DataConfig(dataset="iemocap"),
        run=RunConfig(storage_path=str(folder / "runs"), local=True),
        options=IemocapOptions(),
    )
    return small_layout(folder / "raw"), config


def of_features(write: Callable[[Path, dict[str, np.ndarray]], Path]) -> Callable[[Path], tuple[Path, Config]]:
    def made(folder: Path) -> tuple[Path, Config]:
        return write(folder, arrays()), feature_config(folder, folder, modalities="words,age", split="part")

    return made


RAW: dict[str, Callable[[Path], tuple[Path, Config]]] = {
    "food101": lambda folder: (write_set(folder / "raw"), configuration(folder, folder)),
    "brats h5": lambda folder: (write_released(folder / "raw"), configured(folder, folder)),
    "brats nifti": lambda folder: (write_challenge(folder / "raw"), configured(folder, folder)),
    "iemocap": iemocap,
    "npz": of_features(as_npz),
    "pickle": of_features(as_pickle),
    "parquet": of_features(as_parquet),
    "h5": of_features(as_h5),
    "npy": of_features(as_npy),
    "safetensors": lambda folder: (
        as_safetensors(folder, arrays()),
        feature_config(folder, folder, modalities="words,age"),
    ),
}


def contents(folder: Path, manifest: Manifest) -> dict[str, object]:
    """Everything about a set but the places of its raw files."""
    verify_set(folder, manifest)
    about = json.loads(manifest.to_json())
    about.pop("sources")
    for name in ("vit", "bert"):
        about["notes"].pop(name, None)
    return about


@pytest.mark.parametrize("kind", RAW)
def test_the_same_shards_from_a_bucket_to_a_bucket(kind: str, bucket: str, tmp_path: Path) -> None:
    raw, config = RAW[kind](tmp_path)
    there = uploaded(raw, bucket)
    found = []
    for source, shards in ((raw, str(tmp_path / "shards")), (there, f"{bucket}/shards"), (raw, f"{bucket}/others")):
        folder = prepare_data(with_places(config, source, shards), write_shards_here)
        manifest = open_manifest(folder)
        found.append(contents(folder, manifest))
        assert all(s.path.startswith(str(source)) for s in manifest.sources if str(raw.name) in s.path), (
            manifest.sources
        )
        # Found again, without a look into the raw files.
        assert prepare_data(with_places(config, source, shards), _never) == folder
    text = json.dumps(found[0]).replace(str(raw), "")
    assert json.dumps(found[1]).replace(str(there), "") == text
    assert json.dumps(found[2]).replace(str(raw), "") == text


def _never(*_: object) -> list[Shard]:
    raise AssertionError("the set is converted again")


@pytest.mark.parametrize("budget", [64, 1])
def test_the_same_batches(bucket: str, tmp_path: Path, budget: int) -> None:
    """In memory and, where the budget is small, streamed."""
    content = {**arrays(60), "words": np.random.default_rng(0).normal(size=(60, 500, 20))}
    raw, config = as_npz(tmp_path, content), feature_config(tmp_path, tmp_path, "words,age", split="part")
    found = []
    for source, shards in ((raw, str(tmp_path / "shards")), (uploaded(raw, bucket), f"{bucket}/shards")):
        one = with_places(config, source, shards)
        one = dataclasses.replace(one, data=dataclasses.replace(one.data, memory_budget=budget))
        folder = prepare_data(one, write_shards_here)
        dataset = build_dataset(one)
        split = dataset.open_split(folder, open_manifest(folder), "train", ("words", "age"), torch.device("cpu"))
        found.append(list(split.batches(list(slices(epoch_order(len(split), 0, 0), 7, 0, 1)), 0)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.index, other.index)
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def train(raw: str, shards: str, storage: Path, *flags: str) -> int:
    return main(
        RECIPE, ["--local", *SMALL, "--data_path", raw, "--shard_path", shards, "--storage_path", str(storage), *flags]
    )


def test_a_run_and_its_predictions(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    there = uploaded(raw, bucket)
    for name, source, shards in (("a", str(raw), str(tmp_path / "shards")), ("b", str(there), f"{bucket}/shards")):
        assert train(source, shards, tmp_path, "--name", name) == 0
        capsys.readouterr()
        assert command(["verify", str(tmp_path / name)]) == 0
        assert (
            command(
                ["predict", str(tmp_path / name), "--data_path", source, "--out", str(tmp_path / f"{name}.parquet")]
            )
            == 0
        )
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))
    for file in ("predictions.parquet",):
        assert pq.read_table(tmp_path / "a" / file).equals(pq.read_table(tmp_path / "b" / file))
    # From the bucket alone, on a machine with an empty disk.
    os.rename(tmp_path / "cache", tmp_path / "other disk")
    assert command(["verify", str(tmp_path / "b")]) == 0
    assert train(str(there), f"{bucket}/shards", tmp_path, "--name", "b") == 0
    for path in tmp_path.glob("b/*.*"):
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path


def test_a_demonstration_set_is_put_beside_the_shards(bucket: str, tmp_path: Path) -> None:
    config = Config(data=DataConfig(shard_path=f"{bucket}/converted/shards"), run=RunConfig(storage_path=str(tmp_path)))
    folder = prepare_data(config, write_shards_here)
    assert str(open_manifest(folder).sources[0].path).startswith(f"{bucket}/converted/demonstration/mosi-")
    assert prepare_data(config, _never) == folder


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{bucket}/nothing", "data_path: {bucket}/nothing does not exist; expected the raw data of mosi"),
        ("{bucket}-that-is-not/x", "data_path: {bucket}-that-is-not/x cannot be read: 404 Not Found, NoSuchBucket"),
        ("{bucket}/raw", "{bucket}/raw: found 0 .pkl files; expected mosi_data_noalign.pkl, or exactly one"),
        ("{bucket}/raw/bad.txt", "{bucket}/raw/bad.txt: "),
    ],
)
def test_a_set_that_is_not_there(
    raw: str, message: str, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    UrlPath(f"{bucket}/raw/bad.txt").write_bytes(b"no pickle")
    assert train(raw.format(bucket=bucket), f"{bucket}/shards", tmp_path / "runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.format(bucket=bucket)}")
    assert not UrlPath(f"{bucket}/shards").exists()


def test_an_endpoint_that_nobody_answers(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY", {**objects.RETRY, "max_retries": 0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bucket += "-elsewhere"
    for raw, shards in ((f"{bucket}/x", "shards"), (str(write_pickle(tmp_path / "x.pkl", small_set())), f"{bucket}/s")):
        assert train(raw, str(tmp_path / shards) if shards == "shards" else shards, tmp_path / "runs") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "error sending request" in line
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in line


@pytest.fixture
def faulty(bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The store of the bucket, behind a server that fails as the test says."""
    with faulty_store(s3_endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store


@pytest.mark.parametrize("fault", ["503", pytest.param("404", marks=pytest.mark.slow), "cut", "slow"])
@pytest.mark.parametrize(
    "where", ["GET small.pkl", "GET train-00000.parquet", "PUT train-00000.parquet", "PUT manifest.json"]
)
def test_a_fault_that_passes(fault: str, where: str, bucket: str, faulty: FaultyStore, tmp_path: Path) -> None:
    method, part = where.split()
    # A name of its own, because clients keep their connections and buckets are asked for by their name.
    raw = uploaded(write_pickle(tmp_path / "small.pkl", small_set()), bucket)
    config = with_places(
        dataclasses.replace(RECIPE, run=RunConfig(storage_path=str(tmp_path))), raw, f"{bucket}/shards"
    )
    left = faulty.once(fault, method, part)
    folder = prepare_data(config, write_shards_here)
    assert not left
    manifest = open_manifest(folder)
    verify_set(folder, manifest)
    assert manifest.rows("train") == 22


def test_a_store_that_refuses(
    bucket: str, faulty: FaultyStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = uploaded(write_pickle(tmp_path / "small.pkl", small_set()), bucket)
    for part, place in (("small.pkl", "small.pkl"), ("train-", "train-00000.parquet"), ("manifest.json", MANIFEST)):
        faulty.always("403", part)
        assert train(str(raw), f"{bucket}/shards", tmp_path / "runs") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert place in line
        assert "403 Forbidden, AccessDenied" in line
    faulty.decide = lambda method, path: None
    assert train(str(raw), f"{bucket}/shards", tmp_path / "runs") == 0


def test_half_a_set_is_no_set(bucket: str, tmp_path: Path) -> None:
    """What a killed conversion, or somebody who removes shards, leaves is made again; a manifest comes last."""
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    config = with_places(
        dataclasses.replace(RECIPE, run=RunConfig(storage_path=str(tmp_path))), raw, f"{bucket}/shards"
    )
    order: list[str] = []

    def write(stages: list[Stage], shards: list[RawShard], folder: Path) -> list[Shard]:
        written = write_shards_here(stages, shards, folder)
        order.extend(path.name for path in folder.iterdir())
        return written

    folder = prepare_data(config, write)
    assert order == ["test-00000.parquet", "train-00000.parquet", "valid-00000.parquet"]
    manifest = open_manifest(folder)
    (folder / "valid-00000.parquet").write_bytes(b"cut")
    (folder / "train-00007.parquet").write_bytes(b"of another conversion")
    with pytest.raises(DataError, match="not a complete set of shards"):
        open_manifest(folder)
    assert prepare_data(config, write_shards_here) == folder
    assert open_manifest(folder) == manifest
    assert not (folder / "train-00007.parquet").exists()
    for one in (MANIFEST, "test-00000.parquet"):
        (folder / one).unlink()
        assert prepare_data(config, write_shards_here) == folder
        verify_set(folder, open_manifest(folder))


def test_a_conversion_that_fails_leaves_nothing(bucket: str, tmp_path: Path) -> None:
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    config = with_places(
        dataclasses.replace(RECIPE, run=RunConfig(storage_path=str(tmp_path))), raw, f"{bucket}/shards"
    )

    def write(stages: list[Stage], shards: list[RawShard], folder: Path) -> list[Shard]:
        write_shards_here(stages, shards[:2], folder)
        raise DataError("a file of the third shard is damaged")

    with pytest.raises(DataError, match="third shard"):
        prepare_data(config, write)
    assert all(".lock" in path.name for path in UrlPath(f"{bucket}/shards").rglob("*"))


def test_two_who_need_the_same_set(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    config = with_places(
        dataclasses.replace(RECIPE, run=RunConfig(storage_path=str(tmp_path))), raw, f"{bucket}/shards"
    )
    both = threading.Barrier(2)
    made: list[object] = []

    def write(stages: list[Stage], shards: list[RawShard], folder: Path) -> list[Shard]:
        made.append(folder)
        return write_shards_here(stages, shards, folder)

    def one() -> None:
        both.wait()
        prepare_data(config, write)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_opening_asks_once_for_the_sizes(bucket: str, faulty: FaultyStore, tmp_path: Path) -> None:
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    config = with_places(
        dataclasses.replace(RECIPE, run=RunConfig(storage_path=str(tmp_path))), raw, f"{bucket}/shards"
    )
    folder = prepare_data(config, write_shards_here)
    faulty.seen.clear()
    open_manifest(folder)
    assert dict(faulty.seen) == {"GET": 2}
