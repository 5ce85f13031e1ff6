"""What the labels of a set mean: decided over all cases, kept in the manifest, and used for maps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from brats_files import configured, write_challenge, write_released
from torch import nn

from cggm_ray.commands.cli import main
from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.brats.brats import open_maps
from cggm_ray.data.datasets.brats.cases import gather
from cggm_ray.data.datasets.brats.labels import CONVENTIONS, checked_labels, decide, labels_there
from cggm_ray.data.datasets.brats.volumes import SEQUENCES
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.slices import SliceFiles
from cggm_ray.data.maps import MapPlan
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, build_network, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.tasks.metrics import CAVITY_REGIONS, VolumeDiceMetrics
from conftest import DATA, sets

CPU = torch.device("cpu")
CASES = DATA.parent / "cases"


@pytest.fixture(params=["released", "challenge"])
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write = write_released if request.param == "released" else write_challenge
    return write(tmp_path / "data")


def relabel(folder: Path, place: int | None, change: dict[int, int]) -> Path:
    """Gives voxels of one case, or of all, other labels; returns the last file."""
    files = sorted([*folder.rglob("*.h5"), *folder.rglob("*_seg.nii.gz")], key=lambda path: path.name)
    for path in files if place is None else [files[place]]:
        if path.suffix == ".h5":
            with h5py.File(path, "r+") as file:
                file["label"][:] = changed(file["label"][:], change)
        else:
            image = nibabel.load(path)
            nibabel.save(nibabel.Nifti1Image(changed(np.array(image.dataobj), change), image.affine), path)
    return path


def changed(label: np.ndarray, change: dict[int, int]) -> np.ndarray:
    result = label.copy()
    for old, new in change.items():
        result[label == old] = new
    return result


def converted(config: Config) -> tuple[Path, Manifest]:
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    return shards, manifest


def classes_of(config: Config) -> np.ndarray:
    shards, manifest = converted(config)
    found = []
    for split in ("train", "valid", "test"):
        files = SliceFiles(shards, manifest, split, SEQUENCES)
        for volume, facts in enumerate(files.facts):
            found.append(np.unique(files.read(volume, range(len(facts.tumour)))[1]))
    return np.unique(np.concatenate(found))


@pytest.mark.parametrize(
    ("change", "name"),
    [({}, "brats2021"), ({4: 3}, "brats2023"), ({4: 2}, "brats2021"), ({1: 0, 2: 0, 4: 0}, "brats2021")],
)
def test_one_convention_for_a_set(
    tmp_path: Path, data: Path, change: dict[int, int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if change:
        relabel(data, None, change)
    config = configured(tmp_path, data, crop=16)
    if set(change) == {1, 2, 4}:
        with pytest.raises(DataError, match="training cases has a tumour"):
            converted(config)
        return
    _, manifest = converted(config)
    assert manifest.notes["labels"] == name
    assert classes_of(config).tolist() == ([0, 1, 2] if change == {4: 2} else [0, 1, 2, 3])
    assert ("no case has label 3 or 4; taken as brats2021 (0, 1, 2, 4)" in capsys.readouterr().out) == (
        change == {4: 2}
    )
    assert build_dataset(config).task(manifest).outputs == 4


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("usual", [3, 4])
def test_two_conventions_in_one_set_are_refused(tmp_path: Path, data: Path, usual: int, place: int) -> None:
    """Whatever split the odd case would be in."""
    if place == 1 and (data / "train").exists():
        pytest.skip("the second released case has no tumour")
    odd = 7 - usual
    relabel(data, None, {4: usual})
    path = relabel(data, place, {usual: odd})
    with pytest.raises(DataError, match=r"label 3; .*label 4; expected 0, 1, 2, 4 or 0, 1, 2, 3 in all") as error:
        prepare_data(configured(tmp_path, data, crop=16), write_shards_here)
    assert path.name in str(error.value)
    assert "or with --labels brats2024 enhancing tumour as 3" in str(error.value)


def test_both_labels_in_one_file_are_refused(tmp_path: Path, data: Path) -> None:
    path = relabel(data, 3, {1: 3})
    with pytest.raises(DataError, match=rf"{path.name}.*: labels 3 and 4; expected"):
        prepare_data(configured(tmp_path, data, crop=16), write_shards_here)


def test_refused_by_the_command_before_ray(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relabel(data, 3, {4: 3})
    config = configured(tmp_path, data, crop=16)
    assert main(config, ["--name", "run", "--local", "false"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not sets(config.shard_root)
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        ("brats2021", {4: 3}, r"label 3; expected the labels of --labels brats2021 \(0, 1, 2, 4\)"),
        ("brats2023", {}, r"label 4; expected the labels of --labels brats2023 \(0, 1, 2, 3\)"),
        ("brats2024", {1: 5}, r"label 5 is outside the classes"),
    ],
)
def test_a_named_convention_is_checked(
    tmp_path: Path, data: Path, labels: str, change: dict[int, int], message: str
) -> None:
    relabel(data, None, change)
    with pytest.raises(DataError, match=message):
        prepare_data(configured(tmp_path, data, crop=16, labels=labels), write_shards_here)


def test_a_named_convention_is_taken(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relabel(data, None, {4: 2})
    _, manifest = converted(configured(tmp_path, data, crop=16, labels="brats2023"))
    assert manifest.notes["labels"] == "brats2023"
    assert "labels:" not in capsys.readouterr().out


def test_the_resection_cavity_is_a_class_of_its_own(tmp_path: Path, data: Path) -> None:
    relabel(data, None, {4: 3})
    relabel(data, 3, {1: 4})
    config = configured(tmp_path, data, crop=16, labels="brats2024", backbone="resnet18")
    _, manifest = converted(config)
    assert manifest.notes["labels"] == "brats2024"
    assert classes_of(config).tolist() == [0, 1, 2, 3, 4]
    dataset = build_dataset(config)
    task = dataset.task(manifest)
    assert task.outputs == 5
    assert task.metric_names() == ["loss", "dice_et", "dice_tc", "dice_wt", "dice_rc", "dice_mean"]
    net, _ = build_network(config, dataset, manifest, ("flair", "t1ce"))
    inputs = {name: torch.zeros(2, 1, 32, 32) for name in ("flair", "t1ce")}
    logits = net(inputs)
    assert logits.shape == (2, 5, 32, 32)
    loss = task.loss(logits, torch.full((2, 32, 32), 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert task.utility("dice")(logits, Batch.of_loop(torch.zeros(2, 32, 32, dtype=torch.long))).shape == (2,)


def test_dice_with_a_cavity() -> None:
    """By hand: the cavity is no part of the whole tumour."""
    random = np.random.default_rng(0)
    said, truth = random.integers(0, 5, (2, 6, 8, 8))
    metrics = VolumeDiceMetrics(2, regions=CAVITY_REGIONS)
    logits = nn.functional.one_hot(torch.from_numpy(said), 5).movedim(-1, 1).float()
    batch = Batch.of_loop(torch.from_numpy(truth))
    metrics.update(logits, replace(batch, group=torch.tensor([0, 0, 0, 1, 1, 1])))
    found = metrics.compute(metrics.sums)
    for name, classes in {"et": [3], "tc": [1, 3], "wt": [1, 2, 3], "rc": [4]}.items():
        scores = []
        for rows in (slice(0, 3), slice(3, 6)):
            a, b = np.isin(said[rows], classes), np.isin(truth[rows], classes)
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert found[f"dice_{name}"] == pytest.approx(np.mean(scores))
    assert found["dice_mean"] == pytest.approx(np.mean([found[f"dice_{name}"] for name in ("et", "tc", "wt", "rc")]))


@pytest.mark.parametrize("labels", ["brats2021", "brats2023", "brats2024"])
def test_maps_have_the_labels_of_the_input(tmp_path: Path, data: Path, labels: str) -> None:
    if labels != "brats2021":
        relabel(data, None, {4: 3})
    if labels == "brats2024":
        relabel(data, None, {1: 4})
    config = configured(tmp_path, data, labels=labels)
    shards, manifest = converted(config)
    out, dataset = tmp_path / "maps", build_dataset(config)
    out.mkdir()
    sources = dataset.locate(data)
    whole, maps = open_maps(
        MapPlan(
            dataset=dataset,
            shards=shards,
            manifest=manifest,
            split="test",
            modalities=SEQUENCES,
            device=CPU,
            out=out,
            sources=sources,
        )
    )
    classes = len(CONVENTIONS[labels].labels)
    for batch in whole.batches(list(slices(torch.arange(len(whole)), 3, 0, 1)), epoch=0):
        maps.take(batch, nn.functional.one_hot(batch.target, classes).movedim(-1, 1).float())
    raw = {case.name: case for case in gather(sources, labelled=True)}
    written = sorted(out.iterdir())
    assert written
    for path in written:
        found = np.asanyarray(nibabel.load(path).dataobj)
        (*_, truth) = raw[path.name.removesuffix("_seg.nii.gz")].files
        if truth.suffix == ".h5":
            with h5py.File(truth) as file:
                np.testing.assert_array_equal(found, file["label"][:])
        else:
            np.testing.assert_array_equal(found, np.asanyarray(nibabel.load(truth).dataobj))


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 1, 2, 4], np.int64),
        np.array([0, 1, 2, 4], ">u2"),
        np.array([0, 1, 2, 4], np.float16),
        np.array([-0.0, 0.99999, 2.00001, 4.0005]),
    ],
)
def test_labels_of_any_type(values: np.ndarray) -> None:
    assert checked_labels(values, "x").tolist() == [0, 1, 2, 4]
    assert labels_there(checked_labels(values, "x")) == {1, 2, 4}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1, 5, 0.5, 255])
def test_labels_that_are_none(bad: float) -> None:
    with pytest.raises(DataError, match=r"x: label .* is outside the classes; expected 0, 1, 2, 4 or 0, 1, 2, 3"):
        checked_labels(np.array([0, 1, bad]), "x")


def test_empty_segmentations_decide_nothing() -> None:
    convention, line = decide([("a", frozenset()), ("b", frozenset({3})), ("c", frozenset())])
    assert (convention.name, line) == ("brats2023", None)
    assert labels_there(np.zeros((2, 2), np.uint8)) == frozenset()


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is missing")
@pytest.mark.parametrize(
    ("case", "labels"),
    [
        ("brats_labels123", "brats2023"),
        ("brats2023_names", "brats2023"),
        ("brats2018_hgg_lgg", "brats2021"),
        ("brats_seg_flipped", "brats2021"),
        ("brats2024_label4_cavity", None),
    ],
)
def test_cases_of_reports(tmp_path: Path, case: str, labels: str | None) -> None:
    config = configured(tmp_path, CASES / case / "data", crop=16)
    if labels is None:
        with pytest.raises(DataError, match=r"00000_seg.nii.gz: label 3; .*00002_seg.nii.gz: label 4"):
            converted(config)
        return
    _, manifest = converted(config)
    assert manifest.notes["labels"] == labels
    assert classes_of(config).tolist() == [0, 1, 2, 3]
