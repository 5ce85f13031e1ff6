"""BraTS from both raw layouts to batches."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from brats_files import SHAPE, configured, volume, write_challenge, write_h5, write_released

from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.brats.volumes import SEQUENCES
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.slices import SliceFiles, TumourSlices, VolumeSlices, augmented, centred
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config

CPU = torch.device("cpu")


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return write_released(tmp_path / "released")


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    return write_challenge(tmp_path / "challenge")


def converted(config: Config) -> tuple[Path, Manifest]:
    shards = prepare_data(config, write_shards_here)
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
    whole = pq.ParquetFile(read.paths[0]).metadata
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
    found = build_dataset(config).open_split(shards, manifest, split, SEQUENCES, CPU)
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
    for number, split in enumerate(("train", "valid", "test", "test")):
        write_h5(folder / split / f"case{number}.h5", *volume(number, shape))
    split = opened(configured(tmp_path, folder), "test")
    plan = list(slices(torch.arange(len(split)), 2, 0, 1))
    tracemalloc.start()
    seen = sum(len(batch) for batch in split.batches(plan, epoch=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 2 * 64
    assert peak < 4 * np.prod(shape) * np.dtype(np.float32).itemsize
