"""Files of a case that lie differently in space: brought into one grid, taken with a word, or refused by field."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from brats_files import PLACE, SHAPE, configured, volume
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.brats.brats import Brats
from cggm_ray.data.datasets.brats.cases import Case
from cggm_ray.data.datasets.brats.labels import CONVENTIONS
from cggm_ray.data.datasets.brats.maps import MapWriter
from cggm_ray.data.datasets.brats.volumes import SEQUENCES, case_files, check_nifti, geometry, read_nifti
from cggm_ray.data.loading.slices import SliceFiles, VolumeSlices
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import prepare_data
from conftest import DATA

CASES = DATA.parent / "cases"
NAMES = (*SEQUENCES, "seg")
OBLIQUE = np.array([[-0.98, 0.199, 0, 5], [-0.199, -0.98, 0, 239], [0, 0, 1.5, -20], [0, 0, 0, 1]])


def write_case(folder: Path, place: np.ndarray = PLACE, seed: int = 0) -> dict[str, Path]:
    """A case whose files all have one affine, by name."""
    image, label = volume(seed)
    image[:, :3] = 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (*zip(SEQUENCES, image, strict=True), ("seg", label)):
        nibabel.save(nibabel.Nifti1Image(values, place), folder / f"{folder.name}_{name}.nii.gz")
    return case_files(folder)


def turn(path: Path, codes: str) -> None:
    """Writes a file again with its axes along others, by nibabel's own functions, so that it shows the same in space."""
    image = nibabel.load(path)
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    values = apply_orientation(np.asanyarray(image.dataobj), change)
    nibabel.save(nibabel.Nifti1Image(values, image.affine @ inv_ornt_aff(change, image.shape)), path)


def rewrite(path: Path, place: np.ndarray | None, values: np.ndarray | None = None) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.array(image.dataobj) if values is None else values, place), path)


@pytest.mark.parametrize("place", [PLACE, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ["RAS", "LAS", "RPI", "SAR", "ASL", "PIR"])
@pytest.mark.parametrize("names", [("seg",), ("t1ce",), ("t1ce", "t1", "t2"), (*SEQUENCES[1:], "seg")])
def test_files_in_another_orientation_are_turned(
    tmp_path: Path, place: np.ndarray, codes: str, names: tuple[str, ...]
) -> None:
    files = write_case(tmp_path / "case", place)
    want = read_nifti(files)
    for name in names:
        turn(files[name], codes)
    assert check_nifti(files) == SHAPE[2]
    got = read_nifti(files)
    np.testing.assert_allclose(got.image, want.image, atol=1e-6)
    np.testing.assert_array_equal(got.label, want.label)


@pytest.mark.parametrize("codes", ["RAS", "SAR"])
def test_the_grid_is_that_of_the_first_sequence(tmp_path: Path, codes: str) -> None:
    files = write_case(tmp_path / "case")
    want = read_nifti(files)
    turn(files["flair"], codes)
    change = ornt_transform(io_orientation(PLACE), axcodes2ornt(codes))
    got = read_nifti(files)
    for name, values in zip(SEQUENCES, want.image, strict=True):
        np.testing.assert_allclose(got.image[SEQUENCES.index(name)], apply_orientation(values, change), atol=1e-6)
    np.testing.assert_array_equal(got.label, apply_orientation(want.label, change))


def test_a_consistent_case_is_taken_as_it_lies(tmp_path: Path) -> None:
    image, label = volume(0)
    image[:, :3] = 0
    got = read_nifti(write_case(tmp_path / "case"))
    np.testing.assert_array_equal(got.label, np.where(label == 4, 3, label))
    for values, z_scored in zip(image, got.image, strict=True):
        inside = values[values != 0].astype(np.float64)
        want = np.where(values != 0, (values - inside.mean()) / inside.std(), 0).astype(np.float32)
        np.testing.assert_array_equal(z_scored, want)


def shifted(rows: tuple[float, ...]) -> np.ndarray:
    moved = PLACE.copy()
    moved[:3, 3] += rows
    return moved


def scaled(*by: float) -> np.ndarray:
    return PLACE @ np.diag([*by, 1.0])


TURNED_A_LITTLE = PLACE @ np.array([[0.98, -0.199, 0, 0], [0.199, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["seg", "t2"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (shifted((1, 0, 0)), r"origin \(6.0, 239.0, 0.0\) mm; case_flair.nii.gz has \(5.0, 239.0, 0.0\) mm"),
        (shifted((0, 0, 0.75)), r"origin \(5.0, 239.0, 0.75\) mm"),
        (scaled(1, 1, 2), r"voxel spacing \(1.0, 1.0, 3.0\) mm; case_flair.nii.gz has \(1.0, 1.0, 1.5\) mm"),
        (scaled(1.01, 1, 1), r"voxel spacing \(1.01, 1.0, 1.5\) mm"),
        (TURNED_A_LITTLE, r"direction .*; case_flair.nii.gz has"),
        (np.diag([1.0, 1.0, 1.5, 1.0]), r"origin .* mm after turning it to LPS; case_flair.nii.gz has"),
        (PLACE[[1, 0, 2, 3]], r"case_\w+.nii.gz: shape \(20, 12, 6\); case_flair.nii.gz has \(12, 20, 6\)"),
    ],
)
def test_other_disagreements_are_refused(tmp_path: Path, name: str, place: np.ndarray, message: str) -> None:
    files = write_case(tmp_path / "case")
    rewrite(files[name], place)
    for check in (check_nifti, read_nifti):
        with pytest.raises(DataError, match=rf"case_{name}.nii.gz: .*expected one") as caught:
            check(files)
        assert caught.match(message)


def test_images_with_the_identity_are_compared_like_any(tmp_path: Path) -> None:
    """It is the default of a tool, and says little, but all files of the case agree on it."""
    files = write_case(tmp_path / "case", np.eye(4))
    assert check_nifti(files) == SHAPE[2]
    moved = np.eye(4)
    moved[0, 3] = 1
    rewrite(files["seg"], moved)
    with pytest.raises(DataError, match=r"case_seg.nii.gz: origin \(1.0, 0.0, 0.0\) mm"):
        check_nifti(files)


def test_noise_is_no_disagreement(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case", OBLIQUE)
    want = read_nifti(files)
    noise = np.random.default_rng(0).normal(0, 1e-5, (3, 4))
    for name in ("t1", "seg"):
        rewrite(files[name], OBLIQUE + np.concatenate([noise, np.zeros((1, 4))]))
    got = read_nifti(files)
    np.testing.assert_array_equal(got.image, want.image)
    np.testing.assert_array_equal(got.label, want.label)


def test_sform_alone_and_qform_alone_say_the_same(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case", OBLIQUE)
    want = read_nifti(files)
    image = nibabel.load(files["seg"])
    image = nibabel.Nifti1Image(np.array(image.dataobj), OBLIQUE)
    image.set_sform(None, code=0)
    image.set_qform(OBLIQUE, code=1)
    nibabel.save(image, files["seg"])
    header = nibabel.load(files["seg"]).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 1)
    np.testing.assert_array_equal(read_nifti(files).label, want.label)
    turn(files["seg"], "RAS")
    np.testing.assert_array_equal(read_nifti(files).label, want.label)


@pytest.mark.parametrize(
    "place", [None, np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])], ids=["no code", "nibabel's default", "ITK's default"]
)
@pytest.mark.parametrize("name", ["seg", "flair", "t1"])
def test_a_file_without_geometry_is_taken_with_a_word(
    tmp_path: Path, name: str, place: np.ndarray | None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for number in range(4):
        files = write_case(data / f"case{number}", seed=number)
        want = read_nifti(files)
        rewrite(files[name], place)
        got = read_nifti(files)
        np.testing.assert_array_equal(got.label, want.label)
        np.testing.assert_array_equal(got.image, want.image)
    config = configured(tmp_path, data, crop=16)
    for _ in range(2):
        prepare_data(config, write_shards_here)
        said = capsys.readouterr().out
        assert "geometry: 4 of 4 cases have files whose headers do not say where they lie" in said
        assert f"_{name}.nii.gz" in said


def test_a_file_without_geometry_has_the_shape_of_the_others(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    rewrite(files["seg"], None, np.zeros((20, 12, 6), np.uint8))
    with pytest.raises(DataError, match=r"case_seg.nii.gz: shape \(20, 12, 6\); case_flair.nii.gz has \(12, 20, 6\)"):
        check_nifti(files)


def test_a_file_without_geometry_among_orientations_that_differ(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    turn(files["t2"], "RAS")
    rewrite(files["seg"], None)
    with pytest.raises(DataError, match=r"case_seg.nii.gz: .*says where it lies, and case_t2.nii.gz lies in another"):
        check_nifti(files)


def test_an_affine_that_cannot_be_inverted(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    image = nibabel.load(files["t1"])
    image = nibabel.Nifti1Image(np.array(image.dataobj), PLACE)
    image.header["srow_x"] = 0
    nibabel.save(image, files["t1"])
    # nibabel writes the affine of the image, so the row is emptied in the file.
    raw = bytearray(gzip.decompress(files["t1"].read_bytes()))
    raw[280:296] = bytes(16)
    files["t1"].write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DataError, match=r"case_t1.nii.gz: sform is .*; expected an affine that can be inverted"):
        check_nifti(files)


def test_trailing_axes_of_length_one(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    want = read_nifti(files)
    for name in ("flair", "t2", "seg"):
        values = np.array(nibabel.load(files[name]).dataobj)
        rewrite(files[name], PLACE, values[..., None] if name != "seg" else values[..., None, None])
    turn(files["t1"], "SAR")
    got = read_nifti(files)
    np.testing.assert_allclose(got.image, want.image, atol=1e-6)
    np.testing.assert_array_equal(got.label, want.label)


def test_sequences_in_one_file_are_refused(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    rewrite(files["flair"], PLACE, np.ones((*SHAPE, 4), np.float32))
    with pytest.raises(
        DataError, match=r"case_flair.nii.gz: shape \(12, 20, 6, 4\); expected three axes, one sequence"
    ):
        check_nifti(files)


def test_compression_is_seen_from_the_bytes(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    want = read_nifti(files)
    for name in ("flair", "seg"):
        files[name].write_bytes(gzip.decompress(files[name].read_bytes()))
    packed = files["t1"].rename(files["t1"].with_name("case_t1.nii"))
    got = read_nifti(files | {"t1": packed})
    np.testing.assert_array_equal(got.image, want.image)
    np.testing.assert_array_equal(got.label, want.label)


def test_scaled_integers_and_floats_as_labels(tmp_path: Path) -> None:
    files = write_case(tmp_path / "case")
    want = read_nifti(files).label
    label = np.array(nibabel.load(files["seg"]).dataobj)
    rewrite(files["seg"], PLACE, label.astype(np.float64))
    np.testing.assert_array_equal(read_nifti(files).label, want)
    image = nibabel.Nifti1Image((label * 10).astype(np.int16), PLACE)
    image.header.set_slope_inter(0.1, 0)
    nibabel.save(image, files["seg"])
    raw = bytearray(gzip.decompress(files["seg"].read_bytes()))
    raw[112:116] = np.float32(0.1).tobytes()
    raw[352:] = (label * 10).astype("<i2").tobytes(order="F")
    files["seg"].write_bytes(gzip.compress(bytes(raw)))
    assert set(np.unique(nibabel.load(files["seg"]).get_fdata()).round(5)) == {0, 1, 2, 4}
    np.testing.assert_array_equal(read_nifti(files).label, want)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR"])
@pytest.mark.parametrize("form", ["sform", "qform", "both", "none"])
def test_maps_lie_in_the_grid_of_their_case(tmp_path: Path, codes: str, form: str) -> None:
    data = tmp_path / "data"
    for number in range(4):
        files = write_case(data / f"case{number}", OBLIQUE, seed=number)
        turn(files["flair"], codes)
        image = nibabel.load(files["flair"])
        image = nibabel.Nifti1Image(np.array(image.dataobj), image.affine)
        image.set_qform(image.affine, code=1 if form in ("qform", "both") else 0)
        image.set_sform(image.affine, code=4 if form in ("sform", "both") else 0)
        nibabel.save(image, files["flair"])
        if form == "none":
            for name in NAMES[1:]:
                rewrite(files[name], None, apply_first(files[name], codes))
    config = configured(tmp_path, data, crop=16)
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert manifest is not None
    split = VolumeSlices(SliceFiles(shards, manifest, "test", SEQUENCES), crop=None, device=torch.device("cpu"))
    name = split.facts(0).case
    files = case_files(data / name)
    out = tmp_path / "maps"
    out.mkdir()
    case = Case(name=name, files=tuple(files.values()))
    writer = MapWriter(out, split, {name: case}, CONVENTIONS["brats2021"])
    (batch,) = split.batches([everything(len(split))], epoch=0)
    writer.take(batch, perfect(batch))
    written, reference = nibabel.load(out / f"{name}_seg.nii.gz"), nibabel.load(files["flair"])
    assert written.shape == reference.shape
    np.testing.assert_allclose(written.affine, reference.affine, atol=1e-4)
    for key in ("sform_code", "qform_code"):
        assert written.header[key] == reference.header[key]
    np.testing.assert_allclose(written.header.get_zooms(), reference.header.get_zooms(), atol=1e-5)
    # What was predicted is the truth, which lies where the segmentation says.
    truth = nibabel.load(files["seg"])
    values = np.asanyarray(truth.dataobj)
    if form != "none":
        values = apply_orientation(
            values, ornt_transform(io_orientation(truth.affine), io_orientation(reference.affine))
        )
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), values)


def apply_first(path: Path, codes: str) -> np.ndarray:
    image = nibabel.load(path)
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    return apply_orientation(np.asanyarray(image.dataobj), change)


def everything(samples: int) -> object:
    from cggm_ray.data.loading.sampler import Slice

    return Slice.whole(torch.arange(samples))


def perfect(batch: Batch) -> torch.Tensor:
    return torch.nn.functional.one_hot(batch.target, 4).movedim(-1, 1).float()


def test_cases_of_several_orientations_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for number in range(4):
        files = write_case(data / f"case{number}", seed=number)
        if number == 2:
            for path in files.values():
                turn(path, "RAS")
    config = configured(tmp_path, data, crop=16)
    manifest = open_set(prepare_data(config, write_shards_here))
    assert manifest is not None
    assert manifest.notes["orientations"] == ["LPS", "RAS"]
    assert "orientation: differs among the cases (LPS 3, RAS 1)" in capsys.readouterr().out


def test_turned_segmentations_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for number in range(4):
        turn(write_case(data / f"case{number}", seed=number)["seg"], "RAS")
    prepare_data(configured(tmp_path, data, crop=16), write_shards_here)
    said = capsys.readouterr().out
    assert "geometry: 4 of 4 cases have files in another orientation than" in said
    assert "_seg.nii.gz" in said


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is missing")
def test_a_flipped_segmentation_lies_on_its_image(tmp_path: Path) -> None:
    """Enhancing tumour is bright in t1ce: 3.78 standard deviations where the labels lie right, -0.16 where they do not."""
    folder = CASES / "brats_seg_flipped" / "data" / "BraTS2021_00000"
    files = case_files(folder)
    found = read_nifti(files)
    assert found.label is not None
    assert float(found.image[1][found.label == 3].mean()) == pytest.approx(3.78, abs=0.005)
    assert geometry(files["seg"])[0, 0] == 1
    assert geometry(files["flair"])[0, 0] == -1
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    image = nibabel.load(files["flair"])
    rewrite(copy / files["seg"].name, image.affine)
    wrong = read_nifti(case_files(copy))
    assert wrong.label is not None
    assert float(wrong.image[1][wrong.label == 3].mean()) < 1, "the same voxels under the affine of the image"
    assert Brats.converter > 1
