"""Conversion: what is written, when it is reused, and that a half-written set is never used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cggm_ray.core.errors import DataError
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.loading.split import load_split
from cggm_ray.data.loading.stream import StreamSplit
from cggm_ray.data.shards import chunks
from cggm_ray.data.shards.packed import pack, unpack
from cggm_ray.data.shards.shards import (
    MANIFEST,
    RawShard,
    Shard,
    Stage,
    column_values,
    open_set,
    tensor_column,
    write_shards_here,
)
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.storage.files import file_digest
from conftest import sets, small_set, write_pickle

CPU = torch.device("cpu")


def config(pickle: Path, folder: Path) -> Config:
    return Config().replace({"data_path": pickle, "storage_path": folder})


def refuse(stages: Sequence[Stage], raw: Sequence[RawShard], folder: Path) -> list[Shard]:
    raise AssertionError("the shards should have been reused")


def test_shards_hold_the_cleaned_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = small_set()
    content["train"]["audio"][4, 1, 2] = -np.inf
    content["valid"]["audio"][0, 0, 0] = np.inf
    monkeypatch.setattr(chunks, "SHARD_BYTES", 4000)
    source = write_pickle(tmp_path / "small.pkl", content)
    folder = prepare_data(config(source, tmp_path), write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    assert len(manifest.splits["train"]) > 1
    assert manifest.sources[0].sha256 == file_digest(source)
    for split, arrays in content.items():
        loaded = load_split(folder, manifest, split, ("text", "audio", "vision"), CPU)
        assert manifest.rows(split) == len(arrays["labels"]) == len(loaded)
        for name in ("text", "audio", "vision"):
            want = arrays[name].copy()
            want[np.isinf(want)] = 0
            assert np.array_equal(loaded.inputs[name], want)
            assert manifest.modalities[name].shape == want.shape[1:]
        assert np.array_equal(loaded.target, arrays["labels"].reshape(-1, 1))
        for shard in manifest.splits[split]:
            table = unpack(pq.read_table(folder / shard.file))
            assert isinstance(table.schema.field("text").type, pa.FixedShapeTensorType)
            assert (table.num_rows, file_digest(folder / shard.file)) == (shard.rows, shard.sha256)
            assert column_values(table.column("text")).dtype == np.float32


def test_second_run_reuses_and_changed_source_rebuilds(tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "small.pkl", small_set(3))
    first = prepare_data(config(source, tmp_path), write_shards_here)
    assert prepare_data(config(source, tmp_path), refuse) == first
    write_pickle(source, small_set(4))
    second = prepare_data(config(source, tmp_path), write_shards_here)
    assert second != first
    assert open_set(first) is not None


@pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "shard gone", "shard cut"])
def test_a_damaged_set_is_made_anew(tmp_path: Path, damage: str) -> None:
    source = write_pickle(tmp_path / "small.pkl", small_set())
    folder = prepare_data(config(source, tmp_path), write_shards_here)
    good = {file.name: file.read_bytes() for file in folder.iterdir()}
    victim = folder / (MANIFEST if "manifest" in damage else "valid-00000.parquet")
    victim.unlink() if damage in ("no manifest", "shard gone") else victim.write_bytes(good[victim.name][:-20])
    assert open_set(folder) is None
    assert prepare_data(config(source, tmp_path), write_shards_here) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == good


def test_a_conversion_that_dies_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "small.pkl", small_set())

    def die(stages: Sequence[Stage], raw: Sequence[RawShard], folder: Path) -> list[Shard]:
        write_shards_here(stages, raw[:2], folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_data(config(source, tmp_path), die)
    assert sets(tmp_path / "shards") == []
    folder = prepare_data(config(source, tmp_path), write_shards_here)
    assert json.loads((folder / MANIFEST).read_text())["dataset"] == "mosi"


def test_a_changed_byte_in_a_shard_of_equal_length_is_an_error(tmp_path: Path) -> None:
    folder = prepare_data(config(write_pickle(tmp_path / "small.pkl", small_set()), tmp_path), write_shards_here)
    shard = folder / "train-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 8] = b"\xff" * 8
    content[-8:-4] = b"\xff\xff\xff\x7f"
    shard.write_bytes(content)
    manifest = open_set(folder)
    assert manifest is not None
    with pytest.raises(DataError, match=r"train-00000\.parquet: not a readable shard"):
        load_split(folder, manifest, "train", ("text",), CPU)


def without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column])


def in_double(table: pa.Table, column: str) -> pa.Table:
    values = column_values(table.column(column)).astype(np.float64)
    return table.set_column(table.schema.get_field_index(column), column, tensor_column(values))


def with_a_gap(table: pa.Table, column: str) -> pa.Table:
    kind = table.schema.field(column).type
    cells = pa.array([None, *table.column(column).to_pylist()[1:]], kind)
    return table.set_column(table.schema.get_field_index(column), column, cells)


@pytest.mark.parametrize("read", ["whole", "stream"])
@pytest.mark.parametrize(
    ("change", "column", "message"),
    [
        (without, "audio", "there is no column audio"),
        (in_double, "audio", "column 'audio' holds .*double.* of shape .*; expected float32 of shape"),
        (with_a_gap, "index", "a cell is empty"),
    ],
)
def test_a_shard_that_is_not_what_its_manifest_says(
    tmp_path: Path, change: Callable[[pa.Table, str], pa.Table], column: str, message: str, read: str
) -> None:
    folder = prepare_data(config(write_pickle(tmp_path / "small.pkl", small_set()), tmp_path), write_shards_here)
    manifest, shard = open_set(folder), folder / "train-00000.parquet"
    assert manifest is not None
    pq.write_table(pack(change(unpack(pq.read_table(shard)), column)), shard)
    opened = {"whole": load_split, "stream": partial(StreamSplit, seed=0, budget=2**20)}[read]
    with pytest.raises(DataError, match=rf"train-00000\.parquet: not a readable shard: {message}"):
        opened(folder, manifest, "train", ("text", "audio"), device=CPU)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_order_is_a_function_of_seed_and_epoch(workers: int) -> None:
    order = epoch_order(22, seed=5, epoch=2)
    assert sorted(order.tolist()) == list(range(22))
    assert torch.equal(order, epoch_order(22, seed=5, epoch=2))
    assert not torch.equal(order, epoch_order(22, seed=5, epoch=3))
    assert not torch.equal(order, epoch_order(22, seed=6, epoch=2))
    parts = [list(slices(order, 5, rank, workers)) for rank in range(workers)]
    assert {len(part) for part in parts} == {5}
    for number, batch in enumerate(order.split(5)):
        counted = [p[number].index for p in parts if p[number].weight is None]
        assert torch.equal(torch.cat(counted), batch)
        assert {p[number].samples for p in parts} == {len(batch)}
        assert all(len(p[number].index) >= 1 for p in parts)


def test_a_damaged_shard_is_named_with_its_sources(small_pickle: Path, tmp_path: Path) -> None:
    plain = config(small_pickle, tmp_path)
    verified = plain.replace({"verify": True})
    folder = prepare_data(verified, write_shards_here)
    assert prepare_data(verified, write_shards_here) == folder
    shard = folder / "valid-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert prepare_data(plain, write_shards_here) == folder
    with pytest.raises(DataError, match="damaged: sha256") as caught:
        prepare_data(verified, write_shards_here)
    assert str(shard) in str(caught.value)
    assert f"made from {small_pickle}" in str(caught.value)
