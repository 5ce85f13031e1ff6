"""BraTS from both raw layouts to batches, and what bad files are told."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from cggm_ray.config import Config, DataConfig, RunConfig
from cggm_ray.data.brats import Brats, BratsOptions
from cggm_ray.data.dataset import prepare
from cggm_ray.data.sampler import slices
from cggm_ray.data.shards import Manifest, open_set, write_shards_here
from cggm_ray.data.slices import SliceFiles, TumourSlices, VolumeSlices, augmented, centred
from cggm_ray.data.volumes import SEQUENCES
from cggm_ray.errors import DataError, UsageError

SHAPE = (12, 20, 6)
CPU = torch.device("cpu")


def configured(tmp_path: Path, data: Path | None, **options: object) -> Config:
    return Config(
        data=DataConfig(dataset="brats", data_path=None if data is None else str(data)),
        run=RunConfig(storage_path=str(tmp_path / "runs"), local=True),
        options=BratsOptions(**options),
    )


def volume(seed: int, shape: tuple[int, ...] = SHAPE, tumour: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """An image with values that float16 holds exactly, and labels 1, 2 and 4 in slices 2 and 3."""
    random = np.random.default_rng(seed)
    image = random.integers(1, 100, (4, *shape)).astype(np.float32)
    label = np.zeros(shape, dtype=np.uint8)
    if tumour:
        label[2:5, 3:6, 2:4] = random.choice([1, 2, 4], (3, 3, 2))
        label[2, 3, 2:4] = 4
    return image, label


def write_h5(path: Path, image: np.ndarray, label: np.ndarray, **attributes: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label
        file.attrs.update(attributes)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Three training cases, one of them without tumour, one validation and two test cases of different sizes."""
    folder = tmp_path / "released"
    for number, split in enumerate(("train", "train", "train", "valid", "test", "test")):
        shape = (16, 16, 5) if number == 5 else SHAPE
        write_h5(folder / split / f"case{number}.h5", *volume(number, shape, tumour=number != 1))
    return folder


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    folder = tmp_path / "challenge"
    for number in range(6):
        case = f"BraTS2021_{number:05d}"
        image, label = volume(number)
        image[:, :3] = 0
        (folder / case).mkdir(parents=True)
        for name, values in (*zip(SEQUENCES, image, strict=True), ("seg", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / case / f"{case}_{name}.nii.gz")
    return folder


def converted(config: Config) -> tuple[Path, Manifest]:
    shards = prepare(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    return shards, manifest


def files(config: Config, split: str) -> SliceFiles:
    return SliceFiles(*converted(config), split, SEQUENCES)


def test_h5_slices_come_back_as_they_were(tmp_path: Path, released: Path) -> None:
    config = configured(tmp_path, released)
    _, manifest = converted(config)
    assert [manifest.rows(split) for split in ("train", "valid", "test")] == [18, 6, 11]
    read = files(config, "test")
    for place, number in enumerate((4, 5)):
        image, label = volume(number, (16, 16, 5) if number == 5 else SHAPE)
        rows = [3, 0, 2]
        got_image, got_label = read.read(place, rows)
        np.testing.assert_array_equal(got_image, np.moveaxis(image[..., rows], 3, 0))
        np.testing.assert_array_equal(got_label, np.moveaxis(np.where(label == 4, 3, label)[..., rows], 2, 0))


def test_one_slice_is_read_without_the_whole_volume(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    random = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        image, label = random.random((4, 128, 128, 40)).astype(np.float32), np.zeros((128, 128, 40), np.uint8)
        label[60:70, 60:70, 10:20] = 2
        write_h5(folder / split / "case.h5", image, label)
    read = files(configured(tmp_path, folder), "train")
    whole = read._open(read.paths[0]).metadata
    assert whole.num_row_groups >= 5
    tracemalloc.start()
    read.read(0, [17])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.num_rows * 128 * 128 * 9 / 4


def test_channels_attribute_gives_the_order(tmp_path: Path, released: Path) -> None:
    image, label = volume(0)
    write_h5(released / "train" / "case0.h5", image, label, channels="flair,t1,t1ce,t2")
    got, _ = files(configured(tmp_path, released), "train").read(0, [2])
    np.testing.assert_array_equal(got[0], image[[0, 2, 1, 3], :, :, 2])


def test_challenge_folders_are_scored_and_split(tmp_path: Path, challenge: Path) -> None:
    config = configured(tmp_path, challenge, valid_part=0.2, test_part=0.3)
    names = {split: [facts.case for facts in files(config, split).facts] for split in ("train", "valid", "test")}
    assert [len(cases) for cases in names.values()] == [3, 1, 2]
    assert sorted(case for cases in names.values() for case in cases) == sorted(
        folder.name for folder in challenge.iterdir()
    )
    other = replace(config, options=BratsOptions(valid_part=0.2, test_part=0.3, split_seed=1))
    assert names["test"] != [facts.case for facts in files(other, "test").facts]

    number = int(names["train"][0][-5:])
    image, _ = volume(number)
    image[:, :3] = 0
    got, _ = files(config, "train").read(0, range(SHAPE[2]))
    for place in range(len(SEQUENCES)):
        brain = np.moveaxis(image[place] != 0, 2, 0)
        inside = got[:, place][brain].astype(np.float64)
        assert not got[:, place][~brain].any()
        assert inside.mean() == pytest.approx(0, abs=1e-3)
        assert inside.std() == pytest.approx(1, abs=1e-3)


def test_a_case_that_moves_to_another_split_makes_new_shards(tmp_path: Path, released: Path) -> None:
    config = configured(tmp_path, released)
    before, _ = converted(config)
    (released / "train" / "case2.h5").rename(released / "valid" / "case2.h5")
    after, manifest = converted(config)
    assert after != before
    assert manifest.rows("valid") == 12


def opened(config: Config, split: str) -> TumourSlices | VolumeSlices:
    shards, manifest = converted(config)
    found = Brats(config).open_split(shards, manifest, split, SEQUENCES, CPU)
    assert isinstance(found, TumourSlices | VolumeSlices)
    return found


def test_training_draws_by_seed_epoch_and_case_alone(tmp_path: Path, released: Path) -> None:
    split = opened(configured(tmp_path, released, crop=16), "train")
    order = torch.tensor([2, 0, 1])
    (together,) = split.batches(slices(order, 3, 0, 1), epoch=4)
    for rank in range(2):
        for part, batch in zip(
            slices(order, 3, rank, 2), split.batches(slices(order, 3, rank, 2), epoch=4), strict=True
        ):
            rows = [order.tolist().index(sample) for sample in part.index.tolist()]
            for name in SEQUENCES:
                assert torch.equal(batch.inputs[name], together.inputs[name][rows])
            assert torch.equal(batch.target, together.target[rows])
    drawn = [split.draw(0, epoch)[0].tobytes() for epoch in range(12)]
    assert len(set(drawn)) > 4
    assert drawn[3] == split.draw(0, 3)[0].tobytes()


def test_training_sees_tumour_slices_where_there_are_any(tmp_path: Path, released: Path) -> None:
    split = opened(configured(tmp_path, released, crop=16, draws=5), "train")
    assert len(split) == 15
    for sample in range(15):
        image, label = split.draw(sample, 0)
        assert image.shape == (4, 16, 16)
        assert image.any()
        assert label.any() == (sample % 3 != 1)


def test_the_released_augmentation_moves_image_and_label_alike() -> None:
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    outcomes, noisy = set(), 0
    for seed in range(400):
        image, moved = augmented(label[None].astype(np.float32), label, np.random.default_rng(seed))
        outcomes.add(moved.tobytes())
        noisy += bool((image[0] != moved).any())
        assert np.abs(image[0] - moved).max() < 0.6
    turned = {np.flip(np.rot90(label, turns), axis).tobytes() for turns in range(3) for axis in range(2)}
    assert outcomes == turned
    assert 20 <= noisy <= 60


@pytest.mark.parametrize(("height", "width"), [(4, 9), (7, 3), (6, 6)])
def test_centred(height: int, width: int) -> None:
    values = np.arange(1, height * width + 1).reshape(height, width)
    middle = centred(values, (6, 6))
    assert middle.shape == (6, 6)
    assert (middle > 0).sum() == min(height, 6) * min(width, 6)
    for axis in range(2):
        shown = np.flatnonzero(middle.any(1 - axis))
        assert abs(int(shown[0]) - (5 - int(shown[-1]))) <= 1, "margins on both sides alike"
    assert set(np.unique(middle)) <= {0, *values.flatten().tolist()}


def test_evaluation_streams_whole_volumes(tmp_path: Path, released: Path) -> None:
    split = opened(configured(tmp_path, released), "test")
    assert (len(split), split.groups) == (11, 2)
    parts = [batch for rank in range(2) for batch in split.batches(slices(torch.arange(11), 4, rank, 2), epoch=0)]
    order = torch.cat([batch.index for batch in parts]).argsort()
    target = torch.cat([batch.target for batch in parts])[order]
    group = torch.cat([batch.group for batch in parts])[order]
    assert group.tolist() == [0] * 6 + [1] * 5
    assert target.shape == (11, 16, 32)
    label = np.moveaxis(volume(4)[1], 2, 0)
    np.testing.assert_array_equal(target[:6, 2:14, 6:26], np.where(label == 4, 3, label))
    assert int((target[:6] > 0).sum()) == int((label > 0).sum())


def test_released_score_keeps_tumour_slices_only(tmp_path: Path, released: Path) -> None:
    split = opened(configured(tmp_path, released, score="slice", crop=16), "test")
    assert len(split) == 4
    (batch,) = split.batches(slices(torch.arange(4), 4, 0, 1), epoch=0)
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.target.shape == (4, 16, 16)
    assert (batch.target > 0).flatten(1).any(1).all()


def test_evaluation_holds_less_than_a_volume(tmp_path: Path) -> None:
    folder, shape = tmp_path / "many", (64, 64, 64)
    for number, split in enumerate(("train", "valid", *["test"] * 4)):
        write_h5(folder / split / f"case{number}.h5", *volume(number, shape))
    split = opened(configured(tmp_path, folder), "test")
    plan = list(slices(torch.arange(len(split)), 2, 0, 1))
    tracemalloc.start()
    seen = sum(len(batch) for batch in split.batches(plan, epoch=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 4 * 64
    assert peak < 4 * np.prod(shape) * np.dtype(np.float32).itemsize


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


BAD_H5 = {
    "no label": (drop("label"), "train/case0.h5: key label is missing; found image; expected image and label"),
    "three sequences": (
        put("image", np.ones((3, *SHAPE))),
        r"key image has shape \(3, 12, 20, 6\); expected \[4, H, W",
    ),
    "label too small": (
        put("label", np.ones((2, 2, 2))),
        r"key label has shape \(2, 2, 2\); the image has \(12, 20, 6\)",
    ),
    "group": (lambda file: (drop("label")(file), file.create_group("label")), "key label is no array of numbers"),
    "channels": (rename_channels, "attribute channels is flair,t1,t1ce; expected an order of flair,t1ce,t1,t2"),
    "all zero": (fill((2,), 0), "key image, sequence t1: all voxels are 0; expected an image"),
    "not finite": (fill((1, 0, 2, 3), np.nan), r"sequence t1ce: nan at voxel \(0, 2, 3\); expected finite numbers"),
    "label 7": (fill((0, 0, 0), 7, "label"), "key label: label 7 is outside the classes; expected 0, 1, 2, 4 or"),
    "3 and 4": (fill((0, 0, 0), 3, "label"), "key label: labels 3 and 4 together"),
}


@pytest.mark.parametrize("case", BAD_H5)
def test_bad_h5(tmp_path: Path, released: Path, case: str) -> None:
    change, message = BAD_H5[case]
    rewrite(released / "train" / "case0.h5", change)
    config = configured(tmp_path, released)
    with pytest.raises(DataError, match=message) as caught:
        prepare(config, write_shards_here)
    assert "case0.h5" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in config.shard_root.glob("*") if open_set(path)]


def test_truncated_h5(tmp_path: Path, released: Path) -> None:
    path = released / "valid" / "case3.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"valid/case3.h5: not a readable h5 file: .*truncated"):
        prepare(configured(tmp_path, released), write_shards_here)


def test_no_tumour_in_any_training_case(tmp_path: Path, released: Path) -> None:
    for number in (0, 2):
        write_h5(released / "train" / f"case{number}.h5", *volume(number, tumour=False))
    with pytest.raises(DataError, match="none of the 3 training cases has a tumour"):
        opened(configured(tmp_path, released), "train")


def test_nifti_shapes_that_differ(tmp_path: Path, challenge: Path) -> None:
    path = challenge / "BraTS2021_00002" / "BraTS2021_00002_t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((12, 20, 5), np.float32), np.eye(4)), path)
    with pytest.raises(DataError, match=r"00002_t1.nii.gz: shape \(12, 20, 5\); .*flair.nii.gz has \(12, 20, 6\)"):
        prepare(configured(tmp_path, challenge), write_shards_here)


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
        prepare(configured(tmp_path, challenge), write_shards_here)


def test_broken_nifti(tmp_path: Path, challenge: Path) -> None:
    path = challenge / "BraTS2021_00001" / "BraTS2021_00001_t1ce.nii.gz"
    content = path.read_bytes()
    for broken in (b"no image at all", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"00001_t1ce.nii.gz: not a readable NIfTI file"):
            prepare(configured(tmp_path, challenge), write_shards_here)


def test_a_missing_sequence(tmp_path: Path, challenge: Path) -> None:
    (challenge / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").unlink()
    with pytest.raises(DataError, match=r"BraTS2021_00001: BraTS2021_00001_seg.nii.gz is missing"):
        prepare(configured(tmp_path, challenge), write_shards_here)


def test_an_empty_split(tmp_path: Path, released: Path) -> None:
    (released / "valid" / "case3.h5").unlink()
    with pytest.raises(
        DataError, match=r"released/valid: no .h5 file; expected at least one case in each of train, valid"
    ):
        prepare(configured(tmp_path, released), write_shards_here)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "other" / "photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"other: neither <train\|valid\|test>/<case>.h5 nor .*; found photos"):
        prepare(configured(tmp_path, tmp_path / "other"), write_shards_here)


def test_a_full_disk_is_named(tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cggm_ray.data.shards.pq.write_table", full)
    with pytest.raises(DataError, match=r"train-00000.parquet: cannot write the shard: No space left on device"):
        prepare(configured(tmp_path, released), write_shards_here)


def test_a_damaged_shard(tmp_path: Path, released: Path) -> None:
    config = configured(tmp_path, released)
    shards, manifest = converted(config)
    path = shards / manifest.splits["valid"][0].file
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match=r"valid-00000.parquet: not a readable shard: .*; delete .* to make it anew"):
        opened(config, "valid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet34"}, "backbone: unknown 'resnet34'.*did you mean resnet"),
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
