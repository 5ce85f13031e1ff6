"""Streaming from shards: the same batches as from memory, for any number of workers, within bounds."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cggm_ray.core.errors import DataError
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.loading.split import TensorSplit, load_split, set_bytes
from cggm_ray.data.loading.stream import StreamSplit, ahead
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    TARGET,
    Manifest,
    RawShard,
    TensorSpec,
    is_modality,
    tensor_column,
    write_shard,
)

SAMPLES, VIEWS = 23, 3
SHAPES = {"image": (7, 5), "text": (4, 3)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Three shards in mixed order; the first modality is stored in half precision and has three views."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(3)
    order = rng.permutation(SAMPLES)
    written = []
    for number, rows in enumerate(np.array_split(order, 3)):
        columns = {
            INDEX: pa.array(rows),
            IDENTITY: pa.array([f"sample {row}" for row in rows]),
            TARGET: pa.array(rows % 4),
            "image": tensor_column(rng.normal(size=(len(rows), *SHAPES["image"])).astype(np.float16)),
            "text": tensor_column(rng.normal(size=(len(rows), *SHAPES["text"])).astype(np.float32)),
            "present/image": pa.array(rows % 5 != 0),
            "steps/text": pa.array(rows % SHAPES["text"][0] + 1),
        }
        for view in range(1, VIEWS):
            values = rng.normal(size=(len(rows), *SHAPES["image"])).astype(np.float16)
            columns[f"view/{view}/image"] = tensor_column(values)
        raw = RawShard(split="train", number=number, table=pa.table(columns))
        with pytest.MonkeyPatch.context() as patch:
            # Row groups of several samples, and a last one that is shorter.
            patch.setattr("cggm_ray.data.shards.shards.ROW_GROUP_BYTES", 3 * raw.table.nbytes // raw.table.num_rows)
            written.append(write_shard(lambda table: table, raw, folder))
    manifest = Manifest(
        dataset="test",
        converter=1,
        options={},
        sources=(),
        modalities={
            "image": TensorSpec(shape=SHAPES["image"], dtype="float16"),
            "text": TensorSpec(shape=SHAPES["text"], dtype="float32"),
        },
        target=TensorSpec(shape=(), dtype="int64"),
        splits={"train": tuple(written)},
    )
    return folder, manifest


def open_both(shards: tuple[Path, Manifest], budget: int = 2**20) -> tuple[TensorSplit, StreamSplit]:
    folder, manifest = shards
    device = torch.device("cpu")
    return (
        load_split(folder, manifest, "train", tuple(SHAPES), device, seed=5),
        StreamSplit(folder, manifest, "train", tuple(SHAPES), device, 5, budget),
    )


@pytest.mark.parametrize("budget", [1, 2**20], ids=["least", "ample"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_same_batches_as_from_memory(shards: tuple[Path, Manifest], workers: int, budget: int) -> None:
    memory, stream = open_both(shards, budget)
    assert len(stream) == SAMPLES
    assert stream.names == memory.names == [f"sample {row}" for row in range(SAMPLES)]
    for epoch in (0, 1):
        for rank in range(workers):
            plan = list(slices(epoch_order(SAMPLES, 9, epoch), 7, rank, workers))
            pairs = list(zip(memory.batches(plan, epoch), stream.batches(plan, epoch), strict=True))
            assert len(pairs) == 4
            for want, got in pairs:
                assert torch.equal(got.index, want.index)
                assert torch.equal(got.target, want.target)
                assert (got.weight is None) == (want.weight is None)
                for name in SHAPES:
                    assert got.inputs[name].dtype == torch.float32
                    assert torch.equal(got.inputs[name], want.inputs[name])
                    assert torch.equal(got.masks[name], want.masks[name])
                    assert torch.equal(got.present[name], want.present[name])
                assert torch.equal(want.masks["text"].sum(1), want.index % SHAPES["text"][0] + 1)
                assert torch.equal(want.present["image"], want.index % 5 != 0)


def test_views_are_a_function_of_epoch_and_sample(shards: tuple[Path, Manifest]) -> None:
    memory, _ = open_both(shards)
    everything = list(slices(torch.arange(SAMPLES), SAMPLES, 0, 1))

    def images(epoch: int) -> torch.Tensor:
        (batch,) = memory.batches(everything, epoch)
        return batch.inputs["image"]

    assert torch.equal(images(2), images(2))
    seen = torch.stack([images(epoch) for epoch in range(30)])
    for sample in range(SAMPLES):
        assert len(seen[:, sample].unique(dim=0)) == VIEWS
    (batch,) = memory.batches(list(slices(torch.tensor([4, 11]), 2, 0, 1)), 2)
    assert torch.equal(batch.inputs["image"], images(2)[[4, 11]])


def test_set_bytes_counts_every_view(shards: tuple[Path, Manifest]) -> None:
    folder, manifest = shards
    assert set_bytes(folder, manifest, ("image", "text")) == SAMPLES * (VIEWS * 7 * 5 * 2 + 4 * 3 * 4 + 8)
    assert not is_modality("view/1/image")
    assert is_modality("image")


def test_no_more_results_wait_than_allowed() -> None:
    lock = threading.Lock()
    begun = 0

    def work(item: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        return item

    for taken, item in enumerate(ahead(work, range(20), 3)):
        assert item == taken
        with lock:
            assert begun <= taken + 1 + 3
    assert begun == 20


def test_an_error_of_a_thread_reaches_the_loop() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise DataError("spoiled")
        return item

    results = ahead(work, range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="spoiled"):
        next(results)


def test_damaged_shard_is_named(shards: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = shards
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / manifest.splits["train"][1].file
    content = bytearray(damaged.read_bytes())
    stream = StreamSplit(tmp_path, manifest, "train", ("text",), torch.device("cpu"), 0, 2**20)
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=rf"{damaged.name}: not a readable shard"):
        list(stream.batches(slices(torch.arange(SAMPLES), 4, 0, 1), 0))
    damaged.write_bytes(b"PAR1")
    for opened in (load_split, StreamSplit):
        arguments = (tmp_path, manifest, "train", ("text",), torch.device("cpu"), 0)
        with pytest.raises(DataError, match=rf"{damaged.name}: not a readable shard"):
            opened(*arguments, *([2**20] if opened is StreamSplit else []))  # type: ignore[arg-type]
