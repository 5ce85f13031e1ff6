"""What bad BraTS files and options are told: one line that names the file, what was found and what was expected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from brats_files import SHAPE, configured, volume, write_challenge, write_h5, write_released

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.brats.volumes import SEQUENCES, case_labels
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.models.deeplab import DeepLabOptions
from conftest import sets


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return write_released(tmp_path / "released")


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    return write_challenge(tmp_path / "challenge")


def opened(config: Config, split: str) -> Split:
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    return build_dataset(config).open_split(shards, manifest, split, SEQUENCES, torch.device("cpu"))


def rewrite(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def put(key: str, values: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = values

    return change


def drop(key: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]

    return change


def fill(place: tuple[object, ...], value: float, key: str = "image") -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[key][place] = value

    return change


def rename_channels(file: h5py.File) -> None:
    file.attrs["channels"] = "flair,t1,t1ce"


BAD_H5: dict[str, Callable[[h5py.File], object]] = {
    "label missing": drop("label"),
    "three sequences": put("image", np.ones((3, *SHAPE))),
    "label too small": put("label", np.ones((2, 2, 2))),
    "group in place of an array": lambda file: (drop("label")(file), file.create_group("label")),
    "a channel missing": rename_channels,
    "empty sequence": fill((2,), 0),
    "NaN": fill((1, 0, 2, 3), np.nan),
    "label 7": fill((0, 0, 0), 7, "label"),
    "labels 3 and 4 together": fill((0, 0, 0), 3, "label"),
}


def test_truncated_h5(tmp_path: Path, released: Path) -> None:
    path = released / "valid" / "case3.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"valid/case3.h5: not a readable h5 file: .*truncated"):
        prepare_data(configured(tmp_path, released), write_shards_here)


def without_tumour(folder: Path) -> None:
    """Takes the tumours out of all cases of either layout."""
    for path in folder.rglob("*.h5"):
        rewrite(path, put("label", np.zeros(h5py.File(path)["label"].shape, np.uint8)))
    for path in folder.rglob("*_seg.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), path)


@pytest.mark.parametrize("local", [True, False], ids=["local", "ray"])
@pytest.mark.parametrize("there", [False, True], ids=["raw", "converted"])
@pytest.mark.parametrize(("layout", "cases"), [("released", 3), ("challenge", 4)])
def test_no_tumour_in_any_training_case(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    layout: str,
    cases: int,
    there: bool,
    local: bool,
) -> None:
    """It is said in one line before the conversion, or before the workers where a set is there, and Ray stays out of it."""
    folder: Path = request.getfixturevalue(layout)
    without_tumour(folder)
    config = configured(tmp_path, folder, crop=16)
    if there:
        # As an older version left it, which let the worker find out.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cggm_ray.data.datasets.brats.brats.require_tumour", lambda *_: None)
            prepare_data(config, write_shards_here)
    assert main(config, ["--name", "run", "--local", str(local)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"none of the {cases} training cases has a tumour; expected labels other than 0 in at least one" in line
    assert str(config.shard_root if there else folder) in line
    assert len(sets(config.shard_root)) == there
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()


def test_labels_of_every_case_are_looked_at_once(
    tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def looking(files: Sequence[Path]) -> tuple[str, frozenset[int] | None]:
        read.append(files[0].name)
        return case_labels(files)

    monkeypatch.setattr("cggm_ray.data.datasets.brats.cases.case_labels", looking)
    list(build_dataset(configured(tmp_path, released)).read(sorted(released.rglob("*.h5"))))
    assert sorted(read) == [f"case{number}.h5" for number in range(6)]


def test_no_tumour_to_score_by_slice(tmp_path: Path, released: Path) -> None:
    write_h5(released / "valid" / "case3.h5", *volume(3, tumour=False))
    assert len(opened(configured(tmp_path, released), "valid")) == SHAPE[2]
    message = "none of the 1 cases of split valid has a tumour, which --score slice needs; use --score volume"
    for folder in (tmp_path, tmp_path / "other"):
        with pytest.raises(DataError, match=message):
            prepare_data(configured(folder, released, score="slice", crop=16), write_shards_here)


def test_nifti_shapes_that_differ(tmp_path: Path, challenge: Path) -> None:
    path = challenge / "BraTS2021_00002" / "BraTS2021_00002_t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((12, 20, 5), np.float32), np.eye(4)), path)
    with pytest.raises(DataError, match=r"00002_t1.nii.gz: shape \(12, 20, 5\); .*flair.nii.gz has \(12, 20, 6\)"):
        prepare_data(configured(tmp_path, challenge), write_shards_here)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("t2", np.zeros(SHAPE, np.float32), "00001_t2.nii.gz: all voxels are 0; expected an image"),
        ("t1", np.full(SHAPE, 5, np.float32), "00001_t1.nii.gz: all voxels of the brain are 5; expected an image"),
        ("seg", np.full(SHAPE, 9, np.uint8), "00001_seg.nii.gz: label 9 is outside the classes"),
        ("seg", np.full(SHAPE, 0.5, np.float32), "00001_seg.nii.gz: label 0.5 is outside the classes"),
    ],
)
def test_bad_nifti_values(tmp_path: Path, challenge: Path, name: str, values: np.ndarray, message: str) -> None:
    path = challenge / "BraTS2021_00001" / f"BraTS2021_00001_{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    with pytest.raises(DataError, match=message):
        prepare_data(configured(tmp_path, challenge), write_shards_here)


def test_broken_nifti(tmp_path: Path, challenge: Path) -> None:
    path = challenge / "BraTS2021_00001" / "BraTS2021_00001_t1ce.nii.gz"
    content = path.read_bytes()
    for broken in (b"no image at all", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(
            DataError,
            match=r"00001_t1ce.nii.gz: (not a readable NIfTI file: .*|the NIfTI file ends too early)",
        ):
            prepare_data(configured(tmp_path, challenge), write_shards_here)


def test_a_missing_sequence(tmp_path: Path, challenge: Path) -> None:
    (challenge / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").unlink()
    with pytest.raises(DataError, match=r"BraTS2021_00001: BraTS2021_00001_seg.nii.gz is missing"):
        prepare_data(configured(tmp_path, challenge), write_shards_here)


def test_an_empty_split(tmp_path: Path, released: Path) -> None:
    (released / "valid" / "case3.h5").unlink()
    with pytest.raises(
        DataError, match=r"released/valid: no .h5 file; expected at least one case in each of train, valid"
    ):
        prepare_data(configured(tmp_path, released), write_shards_here)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "other" / "photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"other: neither <train\|valid\|test>/<case>.h5 nor .*; found photos"):
        prepare_data(configured(tmp_path, tmp_path / "other"), write_shards_here)


def test_a_full_disk_is_named(tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cggm_ray.data.shards.shards.pq.write_table", full)
    with pytest.raises(DataError, match=r"train-00000.parquet: cannot write the shard: No space left on device"):
        prepare_data(configured(tmp_path, released), write_shards_here)


def test_a_damaged_shard(tmp_path: Path, released: Path) -> None:
    config = configured(tmp_path, released)
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    path = shards / manifest.splits["valid"][0].file
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match=r"valid-00000.parquet: not a readable shard: .*; delete .* to make it anew"):
        opened(config, "valid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "voxel"}, "score: unknown 'voxel'.*available: volume, slice"),
        ({"crop": 150}, "crop: found 150; expected a multiple of 16"),
        ({"valid_part": 0.0}, "valid_part: found 0.0"),
        ({"valid_part": 0.5, "test_part": 0.5}, "test_part: 0.5 with valid_part 0.5 leaves nothing"),
        ({"overlays": -1}, "overlays: found -1"),
        ({"draws": 0}, "draws: found 0"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BratsOptions(**options)


def test_a_bad_backbone() -> None:
    with pytest.raises(UsageError, match=r"backbone: unknown 'resnet34'.*did you mean resnet"):
        DeepLabOptions(backbone="resnet34")
