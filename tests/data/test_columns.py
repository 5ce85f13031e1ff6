"""Large columns are read by rows: the shards are those of a file that was read whole, and damage is found all the same."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_sets import config

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.samples import ROW
from cggm_ray.data.formats import columns
from cggm_ray.data.formats.columns import Joined, Taken
from cggm_ray.data.formats.npz import NpzColumn, read_npz
from cggm_ray.data.new_data import prepare_new
from cggm_ray.data.shards import chunks
from cggm_ray.data.shards.shards import Manifest, RawShard, Shard, Stage, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data

N = 120
RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, N)
WORDS = RNG.standard_normal((N, 7, 5)).astype(np.float32)
STEPS = RNG.integers(1, 8, N)
THERE = RNG.random(N) > 0.2
SPLIT = np.array(["train", "valid", "test"])[RNG.integers(0, 3, N)]
NAMES = np.array([f"sample {n}" for n in range(N)])
FACE = RNG.integers(0, 255, (N, 4, 4, 3)).astype(np.uint8)
VECTOR = RNG.standard_normal((N, 9))


def tensors(values: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def plain(folder: Path) -> Path:
    np.savez(folder / "f.npz", label=LABEL, words=WORDS, face=FACE, id=NAMES, split=SPLIT)
    return folder / "f.npz"


def packed(folder: Path) -> Path:
    tokens = RNG.integers(0, 5000, (N, 6))
    content = {"label": LABEL, "words": WORDS, "vector": VECTOR.T.copy().T, "vector_present": THERE, "tokens": tokens}
    np.savez_compressed(folder / "f.npz", **content)
    return folder / "f.npz"


def padded(folder: Path) -> Path:
    audio = WORDS * (np.arange(7)[None, :, None] < STEPS[:, None, None])
    audio[3, 0, 1] = -np.inf
    np.savez(folder / "f.npz", label=LABEL, audio=audio, audio_lengths=STEPS, vector=VECTOR)
    return folder / "f.npz"


def sequences(folder: Path) -> Path:
    words = [
        values[:length].tolist() if there else None for values, length, there in zip(WORDS, STEPS, THERE, strict=True)
    ]
    kind = pa.list_(pa.list_(pa.float32()))
    table = {"words": pa.array(words, kind), "vector": tensors(VECTOR), "label": LABEL, "id": NAMES, "split": SPLIT}
    pq.write_table(pa.table(table), folder / "f.parquet", row_group_size=47)
    return folder / "f.parquet"


def parts(folder: Path) -> Path:
    table = pa.table({"words": tensors(WORDS), "vector": VECTOR.tolist(), "label": LABEL})
    for split, rows in {"train": (0, 70), "valid": (70, 90), "test": (90, N)}.items():
        (folder / "set" / split).mkdir(parents=True)
        for number in range(2):
            part = table.slice(rows[0], rows[1] - rows[0])
            pq.write_table(part, folder / "set" / split / f"{number}.parquet", row_group_size=31 + number)
    return folder / "set"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Makes every column a large one when it is called."""
    monkeypatch.setenv("CGGM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(chunks, "SHARD_BYTES", 2**12)

    def begin() -> None:
        monkeypatch.setattr(columns, "LEAST_BYTES", 0)
        monkeypatch.setattr(columns, "BLOCK_BYTES", 2**11)

    return begin


def made(folder: Path, raw: Path, split: str | None) -> list[Manifest]:
    """Returns the set of a run, and that of the same files as data to predict."""
    settings = config(folder, raw)
    trained = open_set(prepare_data(settings, write_shards_here))
    assert trained is not None
    dataset = build_dataset(settings, "features")
    new, _ = prepare_new(dataset, raw, trained, tuple(trained.modalities), split, write_shards_here)
    predicted = open_set(new)
    assert predicted is not None
    return [trained, predicted]


@pytest.mark.parametrize("write", [plain, packed, padded, sequences, parts])
def test_shards_are_those_of_a_file_read_whole(
    tmp_path: Path, write: Callable[[Path], Path], small: Callable[[], None]
) -> None:
    raw = write(tmp_path)
    split = "test" if write in (plain, sequences, parts) else None
    whole = made(tmp_path / "whole", raw, split)
    small()
    assert made(tmp_path / "rows", raw, split) == whole
    assert made(tmp_path / "rows", raw, None)[1].rows("predict") == (N if write is not parts else 2 * N)


def test_raw_shards_hold_rows_and_no_values(tmp_path: Path, small: Callable[[], None]) -> None:
    raw, seen = sequences(tmp_path), []
    small()

    def write(stages: list[Stage], shards: list[RawShard], folder: Path) -> list[Shard]:
        seen.extend(shards)
        # As for a task on another machine.
        return write_shards_here([pickle.loads(pickle.dumps(stages[0])), *stages[1:]], shards, folder)

    prepare_data(config(tmp_path, raw), write)  # type: ignore[arg-type]
    assert all({ROW, "index", "target"} <= set(shard.table.column_names) for shard in seen)
    assert not {"words", "vector", "id"} & {name for shard in seen for name in shard.table.column_names}
    # Rows of one row group are read one after the other, by one task.
    assert {shard.together for shard in seen} == {f"/{group}" for group in range(3)}


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, kind: str, small: Callable[[], None]) -> None:
    values = WORDS.copy()
    values[77, 2, 1] = np.nan
    if kind == "npz":
        np.savez(tmp_path / "f.npz", label=LABEL, words=values, vector=VECTOR, id=NAMES)
    else:
        table = pa.table({"label": LABEL, "words": tensors(values), "vector": tensors(VECTOR), "id": NAMES})
        pq.write_table(table, tmp_path / "f.parquet", row_group_size=50)
    small()
    with pytest.raises(DataError, match=r"modality words, row 77 \(sample 77\): a value that is not finite"):
        prepare_data(config(tmp_path, tmp_path / f"f.{kind}"), write_shards_here)
    assert not list((tmp_path / "runs" / "shards").glob("features-*"))


def test_a_changed_byte_of_an_npz_is_found_before_rows_are_read(tmp_path: Path, small: Callable[[], None]) -> None:
    raw = plain(tmp_path)
    with zipfile.ZipFile(raw) as archive:
        place = archive.getinfo("words.npy").header_offset
    content = bytearray(raw.read_bytes())
    content[place + 1000] ^= 1
    raw.write_bytes(content)
    small()
    with pytest.raises(
        DataError, match=r"f\.npz: not a readable \.npz file: BadZipFile: Bad CRC-32 for file 'words\.npy'"
    ):
        read_npz(raw, lambda name: True, by_rows=True)


def test_a_compressed_array_is_unpacked_once(tmp_path: Path, small: Callable[[], None]) -> None:
    raw = packed(tmp_path)
    small()
    found, _ = read_npz(raw, lambda name: True, by_rows=True)
    column = found["vector"]
    assert isinstance(column, NpzColumn)
    assert column.fortran
    rows = np.array([3, 17, 44])
    np.testing.assert_array_equal(column[rows], VECTOR[rows])
    copies = {path: path.stat().st_ino for path in (tmp_path / "cache" / "files").rglob("*.npy")}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(column))[5:9], VECTOR[5:9])
    assert {path: path.stat().st_ino for path in (tmp_path / "cache" / "files").rglob("*.npy")} == copies


def test_parts_and_joins_of_columns_are_those_of_arrays(tmp_path: Path, small: Callable[[], None]) -> None:
    raw = packed(tmp_path)
    small()
    found, _ = read_npz(raw, lambda name: name in ("vector", "words"), by_rows=True)
    column = found["vector"]
    assert isinstance(column, NpzColumn)
    some = np.arange(0, N, 3)
    joined, expected = Joined([column, Taken(column, some), VECTOR]), np.concatenate([VECTOR, VECTOR[some], VECTOR])
    assert joined.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(joined), expected)
    for rows in (slice(100, 170), np.array([0, 119, 120, 159, 160, 279])):
        np.testing.assert_array_equal(joined[rows], expected[rows])
