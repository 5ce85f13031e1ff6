"""File and folder names of the challenges, as people have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brats_files import configured, write_challenge, write_released

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.brats.layouts import case_files, case_folders
from cggm_ray.data.datasets.brats.volumes import SEQUENCES
from cggm_ray.data.loading.slices import SliceFiles
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from conftest import DATA

CASES = DATA.parent / "cases"
LATE = {"flair": "t2f", "t1ce": "t1c", "t1": "t1n", "t2": "t2w", "seg": "seg"}


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    return write_challenge(tmp_path / "challenge")


def renamed(folder: Path, out: Path, name: str, place: str = "{case}") -> Path:
    """A copy whose files have other names; `{case}`, `{old}` and `{new}` stand for case and sequence."""
    for path in sorted(folder.rglob("*.nii.gz")):
        case, sequence = path.parent.name, path.name.removesuffix(".nii.gz").rsplit("_", 1)[1]
        target = out / place.format(case=case, group="HGG" if int(case[-1]) % 2 else "LGG")
        target.mkdir(parents=True, exist_ok=True)
        target = target / name.format(case=case, old=sequence, new=LATE[sequence], OLD=sequence.upper())
        if name.endswith(".nii"):
            nibabel.save(nibabel.load(path), target)
        else:
            shutil.copyfile(path, target)
    return out


def content(tmp_path: Path, data: Path) -> dict[str, bytes]:
    """Images and labels of all cases by name."""
    config = configured(tmp_path, data, crop=16)
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert isinstance(manifest, Manifest)
    found = {}
    for split in ("train", "valid", "test"):
        files = SliceFiles(shards, manifest, split, SEQUENCES)
        for number, facts in enumerate(files.facts):
            image, label = files.read(number, range(len(facts.tumour)))
            found[facts.case] = image.tobytes() + label.tobytes()
    return found


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("{case}_{old}.nii.gz", "{group}/{case}"),
        ("{case}_{old}.nii.gz", "MICCAI_BraTS_2019_Data_Training/{group}/{case}"),
        ("{case}_{old}.nii.gz", "more/{case}"),
        ("{case}_{old}.nii", "{case}"),
        ("{case}-{new}.nii.gz", "{case}"),
        ("{case}-{new}.nii", "Training/{case}"),
        ("{case}_{new}.nii.gz", "{case}"),
        ("{case}_{OLD}.NII.GZ", "{case}"),
        ("{old}.nii.gz", "{case}"),
    ],
)
def test_names_of_the_challenges(tmp_path: Path, challenge: Path, name: str, place: str) -> None:
    data = renamed(challenge, tmp_path / "data", name, place)
    assert content(tmp_path, data) == content(tmp_path, challenge)


def test_the_split_does_not_depend_on_a_folder_above(tmp_path: Path, challenge: Path) -> None:
    data = renamed(challenge, tmp_path / "data", "{case}-{new}.nii.gz", "one/too/many/{case}")
    splits = []
    for path in (data, challenge):
        config = configured(tmp_path, path, crop=16)
        manifest = open_set(prepare_data(config, write_shards_here))
        assert manifest is not None
        splits.append({split: manifest.rows(split) for split in manifest.splits})
        names = [
            shard.table["case"].to_pylist() for shard in build_dataset(config).read(build_dataset(config).locate(path))
        ]
        splits.append(names)
    assert splits[:2] == splits[2:]


def test_what_else_lies_beside_the_files(tmp_path: Path, challenge: Path) -> None:
    want = content(tmp_path, challenge)
    (challenge / ".DS_Store").write_bytes(b"x")
    (challenge / "name_mapping.csv").write_text("a,b")
    (challenge / "__MACOSX" / "BraTS2021_00000").mkdir(parents=True)
    (challenge / "__MACOSX" / "BraTS2021_00000" / "._BraTS2021_00000_flair.nii.gz").write_bytes(b"x")
    (challenge / "atlas").mkdir()
    (challenge / "atlas" / "mni_t1.nii.gz").write_bytes(b"x")
    for folder in sorted(challenge.glob("BraTS*")):
        for path in sorted(folder.iterdir()):
            (folder / f"._{path.name}").write_bytes(b"Mac OS X")
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / "notes.txt").write_text("x")
        shutil.copyfile(folder / f"{folder.name}_seg.nii.gz", folder / f"{folder.name}_t1_brain_seg.nii.gz")
    assert content(tmp_path, challenge) == want


def test_appledouble_files_beside_h5_files(tmp_path: Path) -> None:
    released = write_released(tmp_path / "released")
    want = content(tmp_path, released)
    for path in sorted(released.rglob("*.h5")):
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    assert content(tmp_path, released) == want


def test_names_of_splits(tmp_path: Path) -> None:
    released = write_released(tmp_path / "released")
    want = content(tmp_path, released)
    (released / "valid").rename(released / "val")
    (released / "train").rename(released / "Training")
    assert content(tmp_path, released) == want


def test_case_folders_below_folders_of_splits(tmp_path: Path, challenge: Path) -> None:
    """They are the splits, in place of drawn ones."""
    for split, numbers in {"train": (3, 4), "val": (0, 5), "test": (1, 2)}.items():
        for number in numbers:
            shutil.copytree(
                challenge / f"BraTS2021_{number:05d}", tmp_path / "data" / split / f"BraTS2021_{number:05d}"
            )
    config = configured(tmp_path, tmp_path / "data", crop=16)
    dataset = build_dataset(config)
    raw = list(dataset.read(dataset.locate(tmp_path / "data")))
    assert [(shard.split, shard.table["case"][0].as_py()[-1]) for shard in raw] == [
        ("train", "3"), ("train", "4"), ("valid", "0"), ("valid", "5"), ("test", "1"), ("test", "2")
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "data" / "test")
    with pytest.raises(
        DataError, match=r"cases in the folders train, val; expected at least one case in each of train"
    ):
        list(dataset.read(dataset.locate(tmp_path / "data")))


def test_packed_and_unpacked_side_by_side(tmp_path: Path, challenge: Path) -> None:
    want = content(tmp_path, challenge)
    for path in sorted(challenge.rglob("*_t2.nii.gz")):
        nibabel.save(nibabel.load(path), path.with_suffix(""))
    assert content(tmp_path, challenge) == want


def test_one_name_twice_is_refused(tmp_path: Path, challenge: Path) -> None:
    data = renamed(challenge, tmp_path / "data", "{case}_{old}.nii.gz", "{group}/{case}")
    shutil.copytree(data / "HGG" / "BraTS2021_00001", data / "LGG" / "BraTS2021_00001")
    with pytest.raises(
        DataError, match=r"LGG/BraTS2021_00001: the case BraTS2021_00001 is in .*HGG/BraTS2021_00001 too"
    ):
        case_folders(data)


def test_two_files_of_one_sequence(challenge: Path) -> None:
    folder = challenge / "BraTS2021_00001"
    shutil.copyfile(folder / f"{folder.name}_t1.nii.gz", folder / f"{folder.name}_t1n.nii.gz")
    with pytest.raises(
        DataError, match=r"_t1.nii.gz, BraTS2021_00001_t1n.nii.gz are files of the sequence t1; expected"
    ):
        case_files(folder)


def test_several_cases_in_one_folder(tmp_path: Path, challenge: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in challenge.rglob("*.nii.gz"):
        shutil.copyfile(path, flat / path.name)
    with pytest.raises(
        DataError, match=r"flat: files of several cases: brats2021_00000, .*; expected a folder for every"
    ):
        case_files(flat)


@pytest.mark.parametrize("missing", ["flair", "t1ce", "t1", "t2", "seg"])
@pytest.mark.parametrize(
    ("name", "wanted"), [("{case}_{old}.nii", "{case}_{old}.nii"), ("{case}-{new}.nii.gz", "{case}-{new}.nii.gz")]
)
def test_a_missing_file_is_named_as_it_would_be(
    tmp_path: Path, challenge: Path, name: str, wanted: str, missing: str
) -> None:
    data = renamed(challenge, tmp_path / "data", name)
    case = "BraTS2021_00003"
    path = data / case / wanted.format(case=case, old=missing, new=LATE[missing])
    path.rename(path.with_name("W39_1998.09.19_Segm.nii"))
    with pytest.raises(
        DataError,
        match=rf"{case}: {path.name} is missing; found W39_1998.09.19_Segm.nii beside the others; expected the",
    ):
        prepare_data(configured(tmp_path, data, crop=16), write_shards_here)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is missing")
def test_cases_of_reports(tmp_path: Path) -> None:
    for case in ("brats2018_hgg_lgg", "brats2023_names"):
        found = content(tmp_path, CASES / case / "data")
        assert len(found) == 6
        assert all(np.frombuffer(values, np.uint8).any() for values in found.values())
    with pytest.raises(
        DataError, match=r"BraTS20_Training_355_seg.nii is missing; found W39_1998.09.19_Segm.nii beside"
    ):
        content(tmp_path, CASES / "brats2020_nii_355" / "data")
