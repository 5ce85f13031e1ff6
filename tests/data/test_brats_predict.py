"""A finished BraTS run predicts new cases: any number of them, with and without labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from brats_files import PLACE, volume, write_challenge, write_released

from cggm_ray.commands.predict import predict
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.brats.volumes import SEQUENCES
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.deeplab import DeepLabOptions
from cggm_ray.models.resnet import BACKBONES, ResNetConfig
from cggm_ray.tasks.metrics import TUMOUR_REGIONS
from conftest import DATA

CASES = DATA.parent / "cases"
# The network is the real one, with fewer channels under the name resnet18.
SMALL = ResNetConfig(blocks=(1, 1, 1, 1), bottleneck=False, width=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on cases with the labels 0 1 2 3."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_challenge(folder / "data")
    for path in data.rglob("*_seg.nii.gz"):
        label = np.array(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(label == 4, 3, label).astype(np.uint8), PLACE), path)
    config = Config(
        data=DataConfig(dataset="brats", data_path=str(data)),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(batch_size=4, num_epochs=1),
        run=RunConfig(storage_path=str(folder / "runs"), name="run", local=True),
        options=BratsOptions(crop=16, overlays=0),
        networks={"deeplab": DeepLabOptions(backbone="resnet18")},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet18", SMALL)
        assert run(config) is not None
    return folder / "runs" / "run"


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "resnet18", SMALL)


def new_cases(folder: Path, number: int, labelled: int) -> Path:
    """Case folders of several depths, the first of them with labels 0 1 2 4; slices of 16 x 32 pixels are not padded."""
    for place in range(number):
        case = folder / f"New_{place:03d}"
        case.mkdir(parents=True)
        image, label = volume(place + 20, (16, 32, 6 + place))
        for name, values in (*zip(SEQUENCES, image, strict=True), ("seg", label)):
            if name != "seg" or place < labelled:
                nibabel.save(nibabel.Nifti1Image(values, PLACE), case / f"{case.name}_{name}.nii.gz")
    return folder


def dice(said: np.ndarray, truth: np.ndarray, classes: tuple[int, ...]) -> float:
    a, b = np.isin(said, classes), np.isin(truth, classes)
    return float(2 * (a & b).sum() / (a.sum() + b.sum())) if (a | b).any() else 1.0


@pytest.mark.parametrize(("number", "labelled"), [(1, 0), (1, 1), (2, 2), (4, 0), (4, 4), (4, 2)])
def test_every_case_gets_a_map(
    trained: Path, tmp_path: Path, number: int, labelled: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = new_cases(tmp_path / "new", number, labelled), tmp_path / "maps"
    found = predict(trained, data, out=out)
    assert (found.samples, found.labelled) == (number, labelled)
    assert {path.name for path in out.glob("*.nii.gz")} == {f"{case.name}_seg.nii.gz" for case in data.iterdir()}
    scores = []
    for case in sorted(data.iterdir()):
        image, flair = nibabel.load(out / f"{case.name}_seg.nii.gz"), nibabel.load(case / f"{case.name}_flair.nii.gz")
        said = np.asanyarray(image.dataobj)
        assert said.shape == flair.shape
        np.testing.assert_array_equal(image.affine, flair.affine)
        assert set(np.unique(said)) <= {0, 1, 2, 3}
        if (case / f"{case.name}_seg.nii.gz").exists():
            truth = np.asanyarray(nibabel.load(case / f"{case.name}_seg.nii.gz").dataobj)
            truth = np.where(truth == 4, 3, truth)
            scores.append([dice(said, truth, classes) for classes in TUMOUR_REGIONS.values()])
    said_labels = "of these cases brats2021 (0, 1, 2, 4); maps are written as brats2023" in capsys.readouterr().out
    assert said_labels == bool(labelled)
    if labelled:
        wanted = np.mean(scores, 0)
        assert [found.metrics[f"dice_{name}"] for name in TUMOUR_REGIONS] == pytest.approx(wanted.tolist())
    else:
        assert not found.metrics


def test_labels_of_other_cases_do_not_change_maps(trained: Path, tmp_path: Path) -> None:
    data = new_cases(tmp_path / "new", 3, 3)
    predict(trained, data, out=tmp_path / "with")
    for path in data.rglob("*_seg.nii.gz"):
        path.unlink()
    predict(trained, data, out=tmp_path / "without")
    for path in sorted((tmp_path / "with").glob("*.nii.gz")):
        other = nibabel.load(tmp_path / "without" / path.name)
        np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj), np.asanyarray(other.dataobj))


@pytest.mark.parametrize("labelled", [True, False])
def test_released_files(trained: Path, tmp_path: Path, labelled: bool) -> None:
    """All of them, in whatever folders they are."""
    data = write_released(tmp_path / "new")
    shutil.rmtree(data / "valid")
    for path in sorted(data.rglob("*.h5")):
        if not labelled:
            with h5py.File(path, "r+") as file:
                del file["label"]
        shutil.copyfile(path, tmp_path / path.name)
    found = predict(trained, data, out=tmp_path / "maps")
    assert (found.samples, found.labelled) == (5, 5 * labelled)
    alone = predict(trained, tmp_path / "case5.h5", out=tmp_path / "alone")
    assert (alone.samples, alone.labelled) == (1, int(labelled))
    assert nibabel.load(tmp_path / "alone" / "case5_seg.nii.gz").shape == (16, 16, 5)
    part = predict(trained, tmp_path, out=tmp_path / "flat")
    assert part.samples == 5


def test_a_split_of_released_files(trained: Path, tmp_path: Path) -> None:
    found = predict(trained, write_released(tmp_path / "new"), split="test", out=tmp_path / "maps")
    assert (found.samples, found.labelled) == (2, 2)


def test_two_cases_of_one_name(trained: Path, tmp_path: Path) -> None:
    data = write_released(tmp_path / "new")
    shutil.copyfile(data / "train" / "case0.h5", data / "test" / "case0.h5")
    with pytest.raises(
        DataError, match=r"train/case0.h5: the case case0 is in .*test/case0.h5 too; expected every name"
    ):
        predict(trained, data)


def test_a_new_case_without_a_sequence(trained: Path, tmp_path: Path) -> None:
    data = new_cases(tmp_path / "new", 2, 0)
    (data / "New_001" / "New_001_t1ce.nii.gz").unlink()
    with pytest.raises(DataError, match=r"New_001: New_001_t1ce.nii.gz is missing"):
        predict(trained, data)


def test_another_orientation_than_in_training_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = new_cases(tmp_path / "new", 1, 0)
    for path in data.rglob("*.nii.gz"):
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), path)
    for _ in range(2):
        predict(trained, data, out=tmp_path / "maps")
        assert "orientation: RAS; the run was trained on LPS" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "maps")


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is missing")
@pytest.mark.parametrize(("case", "number", "labelled"), [("brats_two_new_cases", 2, 2), ("brats_unlabelled", 6, 0)])
def test_cases_of_reports(trained: Path, tmp_path: Path, case: str, number: int, labelled: int) -> None:
    found = predict(trained, CASES / case / "data", out=tmp_path / "maps")
    assert (found.samples, found.labelled) == (number, labelled)
    assert len(list((tmp_path / "maps").glob("*.nii.gz"))) == number
