"""A split that is read by windows: the samples are those of memory, and nothing is as long as the split."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.data.loading.sampler import InOrder, Plan, WindowOrder
from cggm_ray.data.loading.split import load_split
from cggm_ray.data.loading.windows import WindowSplit
from cggm_ray.data.shards.shards import PREDICT, Manifest, RawShard, Shard, TensorSpec, tensor_column, write_shard

CPU = torch.device("cpu")
SHAPES = {"image": (3, 5), "text": (4, 2)}
ROWS = [5, 3, 7, 1, 4]
SAMPLES = sum(ROWS)


def write(folder: Path, split: str = "train", lacking: int | None = None, unlabelled: int | None = None) -> Manifest:
    """Writes a split in shards whose rows are mixed; a sample may lack all modalities, or its label."""
    folder.mkdir()
    rng, written, first = np.random.default_rng(3), [], 0
    for number, rows in enumerate(ROWS):
        index = rng.permutation(np.arange(first, first + rows)) if split == "train" else np.arange(first, first + rows)
        columns = {
            "index": pa.array(index),
            "id": pa.array([f"sample {row}" for row in index]),
            "target": pa.array(index % 4),
            "image": tensor_column(rng.normal(size=(rows, *SHAPES["image"])).astype(np.float16)),
            "view/1/image": tensor_column(rng.normal(size=(rows, *SHAPES["image"])).astype(np.float16)),
            "text": tensor_column(rng.normal(size=(rows, *SHAPES["text"])).astype(np.float32)),
            "present/image": pa.array((index % 5 != 0) & (index != lacking)),
            "steps/text": pa.array(np.where(index == lacking, 0, index % 4 + 1)),
        }
        if unlabelled is not None:
            columns["labelled"] = pa.array(index != unlabelled)
        raw = RawShard(split=split, number=number, table=pa.table(columns))
        written.append(write_shard(lambda table: table, raw, folder))
        first += rows
    return Manifest(
        dataset="test",
        converter=1,
        options={},
        sources=(),
        modalities={
            "image": TensorSpec(shape=SHAPES["image"], dtype="float16"),
            "text": TensorSpec(shape=SHAPES["text"], dtype="float32"),
        },
        target=TensorSpec(shape=(), dtype="int64"),
        splits={split: tuple(written)},
    )


def opened(
    folder: Path, manifest: Manifest, split: str = "train", names: tuple[str, ...] = tuple(SHAPES)
) -> WindowSplit:
    return WindowSplit(folder, manifest, split, names, CPU, 7, 2**20, 2)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("split", ["train", PREDICT])
def test_the_same_batches_as_from_memory(tmp_path: Path, split: str, workers: int) -> None:
    manifest = write(tmp_path / "set", split, unlabelled=6 if split == PREDICT else None)
    memory = load_split(tmp_path / "set", manifest, split, tuple(SHAPES), CPU, 7)
    window = opened(tmp_path / "set", manifest, split)
    assert len(window) == len(memory) == SAMPLES
    for epoch in (0, 1):
        for order in (WindowOrder(torch.tensor(ROWS), 2, 1, epoch), InOrder(SAMPLES)):
            for rank in range(workers):
                plan = Plan(order, 6, rank, workers)
                pairs = list(zip(memory.batches(plan, epoch), window.batches(plan, epoch), strict=True))
                assert len(pairs) == 4
                for wanted, found in pairs:
                    one, other = tensors(wanted), tensors(found)
                    assert one.keys() == other.keys()
                    for name, values in one.items():
                        assert torch.equal(values, other[name]), name
                        assert values.dtype == other[name].dtype, name


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Returns every tensor of a batch by its name."""
    found: dict[str, torch.Tensor] = {}
    for field, value in vars(batch).items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{field} {name}": part for name, part in parts.items() if isinstance(part, torch.Tensor)}
    return found


def test_names_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set")
    names = opened(tmp_path / "set", manifest).names
    assert names is not None
    wanted = [f"sample {row}" for row in range(SAMPLES)]
    assert list(names) == names[:] == wanted
    assert len(names) == SAMPLES
    assert names[4:9] == wanted[4:9]
    assert names[::-3] == wanted[::-3]
    assert names[SAMPLES:] == []
    assert names[-1] == wanted[-1]
    with pytest.raises(IndexError):
        names[SAMPLES]


def test_a_sample_without_any_modality_is_found_when_the_split_is_opened(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set", lacking=11)
    with pytest.raises(DataError, match="split train, sample sample 11 has none of the modalities image, text"):
        opened(tmp_path / "set", manifest)
    manifest = write(tmp_path / "all")
    with pytest.raises(DataError, match="split train, sample sample 0 has none of the modalities image"):
        opened(tmp_path / "all", manifest, names=("image",))


def test_a_training_sample_without_a_label_is_found_when_the_split_is_opened(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set", unlabelled=17)
    with pytest.raises(DataError, match="split train, sample sample 17 has no label"):
        opened(tmp_path / "set", manifest)


def test_a_shard_with_other_samples_is_named(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set")
    first, second, *others = manifest.splits["train"]
    wrong = replace(manifest, splits={"train": (second, first, *others)})
    split = opened(tmp_path / "set", wrong)
    with pytest.raises(DataError, match=rf"{second.file}: the rows are not 0 to 2, each once"):
        list(split.batches(Plan(InOrder(SAMPLES), 4, 0, 1), 0))


def test_a_hundred_million_samples_are_opened_without_a_list_of_them(tmp_path: Path) -> None:
    """Only the first shard exists: the others are read when a sample of theirs is needed."""
    rows, shards = 2500, 40_000
    table = pa.table(
        {
            "index": np.arange(rows),
            "id": [f"sample {row}" for row in range(rows)],
            "target": np.arange(rows) % 4,
            "text": tensor_column(np.ones((rows, *SHAPES["text"]), np.float32)),
        }
    )
    first = write_shard(lambda table: table, RawShard(split="train", number=0, table=table), tmp_path)
    lost = [Shard(file=f"train-{number:05}.parquet", rows=rows, bytes=1, sha256="") for number in range(1, shards)]
    manifest = Manifest(
        dataset="test",
        converter=1,
        options={},
        sources=(),
        modalities={"text": TensorSpec(shape=SHAPES["text"], dtype="float32")},
        target=TensorSpec(shape=(), dtype="int64"),
        splits={"train": (first, *lost)},
    )
    tracemalloc.start()
    split = opened(tmp_path, manifest, names=("text",))
    batch = next(iter(split.batches(Plan(InOrder(rows), 64, 0, 1), 0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(split) == rows * shards
    assert batch.index.tolist() == list(range(64))
    # A path and a number for each shard; eight bytes for each sample would be 800 MB.
    assert peak < 2**25
    with pytest.raises(DataError, match=rf"{lost[-1].file}: not a readable shard"):
        next(iter(split.batches(Plan(_Last(len(split)), 64, 0, 1), 0)))


class _Last(InOrder):
    """The last sample alone."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, places: slice) -> torch.Tensor:
        return torch.tensor([self._samples - 1])
