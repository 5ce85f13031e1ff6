"""Features in safetensors, h5 files, folders of .npy files, and files named after splits, against the same in an npz."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from feature_sets import arrays, as_h5, as_npy, as_npz, as_safetensors, config
from safetensors.torch import save_file
from test_features import converted

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats import columns
from cggm_ray.data.formats.columns import Column
from cggm_ray.data.formats.h5_arrays import read_h5
from cggm_ray.data.formats.stored import read_npy, read_safetensors
from cggm_ray.data.shards import chunks

Write = Callable[[Path, dict[str, np.ndarray]], Path]
PARTS = {"train": slice(0, 20), "val": slice(20, 25), "test": slice(25, 30)}


def content(split: str | None = None) -> dict[str, np.ndarray]:
    """Arrays that every format holds, of all samples or of a split."""
    of = PARTS[split] if split else slice(None)
    return {name: values[of] for name, values in arrays().items() if name in ("words", "face", "age", "label")}


def check(folder: Path, path: Path, expected: Path, **options: object) -> list[str]:
    """Compares the samples of two files, and returns the lines about the first."""
    manifest, found = converted(config(folder, path, **options))
    _, others = converted(config(folder, expected, **options))
    for split, part in found.items():
        assert set(part.inputs) == {"words", "face", "age"}
        for name, values in part.inputs.items():
            np.testing.assert_array_equal(values, others[split].inputs[name])
        np.testing.assert_array_equal(part.target, others[split].target)
        assert part.names == others[split].names
    return manifest.notes["taken"]


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("write", [as_safetensors, as_h5, as_npy])
def test_a_format_gives_what_an_npz_gives(
    tmp_path: Path, write: Write, by_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_rows:
        monkeypatch.setattr(columns, "LEAST_BYTES", 0)
        monkeypatch.setattr(chunks, "SHARD_BYTES", 2**11)
    every = write is not as_safetensors
    made = arrays() if every else content()
    taken = check(tmp_path, write(tmp_path, made), as_npz(tmp_path, made), **({"split": "part"} if every else {}))
    assert ("  names       id" in taken) == every


def named(folder: Path, name: str, values: np.ndarray) -> None:
    path = folder / "set" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


@pytest.mark.parametrize("name", ["{split}/{column}", "{column}/{split}", "{split}_{column}", "{column}-{split}"])
def test_names_and_folders_of_npy_files_say_splits(tmp_path: Path, name: str) -> None:
    for split in PARTS:
        for column, values in content(split).items():
            named(tmp_path, name.format(split=split, column=column), values)
    found = as_npz(tmp_path, content() | {"split": arrays()["part"]})
    parts = np.repeat(list(PARTS), [20, 5, 5])
    np.savez(found, **content(), split=parts)
    assert check(tmp_path, tmp_path / "set", found)[4] == "  samples     train 20, valid 5, test 5, of the file"


@pytest.mark.parametrize("write", [as_npz, as_safetensors, as_h5])
def test_files_may_be_named_after_splits(tmp_path: Path, write: Write) -> None:
    (tmp_path / "set").mkdir()
    for split in PARTS:
        made = write(tmp_path, content(split))
        made.rename(tmp_path / "set" / f"{split}{made.suffix}")
    np.savez(tmp_path / "whole.npz", **content(), split=np.repeat(list(PARTS), [20, 5, 5]))
    check(tmp_path, tmp_path / "set", tmp_path / "whole.npz")


def test_groups_of_an_h5_file_may_be_splits(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        for split in PARTS:
            for name, values in content(split).items():
                file[f"{split}/{name}"] = values
    np.savez(tmp_path / "whole.npz", **content(), split=np.repeat(list(PARTS), [20, 5, 5]))
    check(tmp_path, tmp_path / "f.hdf5", tmp_path / "whole.npz")


def test_a_folder_of_npy_files_may_have_row_numbers(tmp_path: Path) -> None:
    rows = {"train_idx": np.arange(20), "val_idx": np.arange(20, 25), "test_idx": np.arange(25, 30)}
    path = as_npy(tmp_path, content() | rows)
    assert "by test_idx, train_idx, val_idx" in check(tmp_path, path, as_npz(tmp_path, content() | rows))[4]


def test_rows_of_columns_are_those_of_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LEAST_BYTES", 0)
    values = arrays(60)["words"]
    np.save(tmp_path / "f.npy", np.asfortranarray(values))
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["words"] = values
    read = (
        read_npy(tmp_path / "f.npy"),
        read_safetensors(as_safetensors(tmp_path, {"words": values}))["words"],
        read_h5(as_h5(tmp_path, {"words": values}))["words"],
        read_h5(tmp_path / "plain.h5")["words"],
    )
    for column in read:
        assert isinstance(column, Column)
        column = pickle.loads(pickle.dumps(column))
        for rows in (
            slice(3, 9),
            np.array([2, 3, 3, 5]),
            np.array([0, 59]),
            np.array([0, 0, 59]),
            np.array([], np.int64),
        ):
            np.testing.assert_array_equal(column[rows], values[rows])
        np.testing.assert_array_equal(np.asarray(column), values)


def test_small_arrays_of_all_kinds(tmp_path: Path) -> None:
    made = {
        "flag": np.array([True, False]),
        "one": np.array(3.5),
        "none": np.zeros((0, 3), np.float32),
        "n": np.arange(2),
    }
    for found in (read_safetensors(as_safetensors(tmp_path, made)), read_h5(as_h5(tmp_path, made))):
        for name, values in made.items():
            np.testing.assert_array_equal(found[name], values)
            assert np.asarray(found[name]).dtype == values.dtype


def damaged(path: Path, *, cut: int = 100) -> Path:
    path.write_bytes(path.read_bytes()[:-cut])
    return path


@pytest.mark.parametrize("write", [as_safetensors, as_h5])
def test_a_file_that_is_cut_is_named(tmp_path: Path, write: Write) -> None:
    path = damaged(write(tmp_path, content()), cut=3000)
    with pytest.raises(DataError, match=rf"{path}: not a readable (safetensors|h5) file"):
        converted(config(tmp_path, path))


def test_an_npy_file_that_is_cut_is_named(tmp_path: Path) -> None:
    path = as_npy(tmp_path, content())
    damaged(path / "words.npy")
    with pytest.raises(
        DataError, match=r"words\.npy: the header says \(30, 5, 3\) of float32, 1,800 bytes; found 1,700"
    ):
        converted(config(tmp_path, path))


def test_objects_types_and_links_are_refused(tmp_path: Path) -> None:
    path = as_npy(tmp_path, content())
    np.save(path / "voice.npy", np.array([Path, Path], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"voice\.npy: refused to load pathlib.* a data file may hold numpy arrays"):
        converted(config(tmp_path, path))
    save_file({"voice": torch.zeros(4, 2, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match=r"field voice: found BF16; expected a type that numpy has"):
        converted(config(tmp_path, tmp_path / "b.safetensors"))
    whole = as_h5(tmp_path, content())
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file.create_dataset("flag", (2**20, 2**12), bool, chunks=(2**10, 2**12), compression="gzip")
    with pytest.raises(DataError, match=r"large\.h5, field flag, shape .*: found 4,294,967,296 bytes of data"):
        converted(config(tmp_path, tmp_path / "large.h5"))
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["age"] = h5py.ExternalLink(whole, "age")
    with pytest.raises(DataError, match=r"linked\.h5, field age: takes its values from other files"):
        converted(config(tmp_path, tmp_path / "linked.h5"))


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    named(tmp_path, "train_audio", np.zeros((4, 2)))
    named(tmp_path, "label", np.zeros(4))
    with pytest.raises(DataError, match=r"label\.npy: belongs to no split, while others do"):
        converted(config(tmp_path, tmp_path / "set"))
    named(tmp_path, "train/audio", np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"are both the column audio; expected one of them"):
        converted(config(tmp_path, tmp_path / "set"))
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        np.savez(tmp_path / "two" / f"{name}.npz", x=np.zeros(3))
    with pytest.raises(
        DataError,
        match=r"found 2 feature files, a\.npz, b\.npz; expected parquet files, one other file, one for each split",
    ):
        converted(config(tmp_path, tmp_path / "two"))


def test_what_a_command_imports_does_not_grow() -> None:
    code = "import sys, cggm_ray.data.datasets.features; print([m for m in ('h5py', 'safetensors.numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
