"""Brain volumes on disk: the released h5 files and the case folders of the BraTS challenge.

Both give a `Volume`; what can be checked without reading voxels is checked by `check_*`, cheaply, and the rest by `read_*`.
Shapes: four sequences, H and W pixels of a slice, D slices.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.h5 import check_dataset, open_h5
from cggm_ray.data.formats.untrusted import check_size, finite, reading

SEQUENCES = ("flair", "t1ce", "t1", "t2")
"""The image sequences, in the order of the released code."""
SEGMENTATION = "seg"
CLASSES = 4
LABELS = np.array([0, 1, 2, 4], dtype=np.uint8)
"""Of the classes, as the challenge writes them."""
SUFFIXES = (".nii.gz", ".nii")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One case.

    Attributes:
        image: float32 [4, H, W, D] in the order of `SEQUENCES`, background 0.
        label: uint8 [H, W, D], classes 0 to 3.
    """

    image: np.ndarray
    label: np.ndarray


def check_h5(path: Path) -> int:
    """Checks keys, shapes and types of a released file; returns its number of slices D.

    Raises:
        DataError: names the file, the key, what was found and what was expected.
    """

    def check(file: Any) -> int:
        for key in ("image", "label"):
            if key not in file:
                raise DataError(f"{path}: key {key} is missing; found {listed(file.keys())}; expected image and label")
            check_dataset(file[key], path, f"key {key}")
        image, label = file["image"].shape, file["label"].shape
        if len(image) != 4 or image[0] != len(SEQUENCES) or 0 in image:
            raise DataError(f"{path}: key image has shape {image}; expected [{len(SEQUENCES)}, H, W, D]")
        if label != image[1:]:
            raise DataError(f"{path}: key label has shape {label}; the image has {image[1:]}")
        _channels(file, path)
        return int(image[3])

    return _with_h5(path, check)


def read_h5(path: Path) -> Volume:
    """A released file; its intensities are taken as they are.

    Raises:
        DataError: the file cannot be read, or holds values that cannot be.
    """

    def read(file: Any) -> Volume:
        check_dataset(file["image"], path, "key image")
        order = [_channels(file, path).index(name) for name in SEQUENCES]
        image = file["image"][:]
        for sequence, place in zip(SEQUENCES, order, strict=True):
            _check_intensities(image[place], f"{path}: key image, sequence {sequence}")
        image = image.astype(np.float32)[order]
        return Volume(image=image, label=_h5_label(file, path))

    return _with_h5(path, read)


def _h5_label(file: Any, path: Path) -> np.ndarray:
    check_dataset(file["label"], path, "key label")
    return _classes(file["label"][:], f"{path}: key label")


def _with_h5(path: Path, use: Callable[[Any], T]) -> T:
    with open_h5(path) as file:
        return use(file)


def _channels(file: Any, path: Path) -> list[str]:
    """Order of the sequences: the attribute `channels` of the file or its image if present, else the released order."""
    value = file.attrs.get("channels", file["image"].attrs.get("channels"))
    if value is None:
        return list(SEQUENCES)
    texts = [value] if isinstance(value, str | bytes) else list(value)
    names = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    names = [name.strip() for text in names for name in text.split(",")]
    if sorted(names) != sorted(SEQUENCES):
        raise DataError(
            f"{path}: attribute channels is {listed([','.join(names)])}; expected an order of {','.join(SEQUENCES)}"
        )
    return names


def case_files(folder: Path) -> dict[str, Path]:
    """The five files of a challenge case, `<case>_<sequence>.nii.gz`, by sequence and `seg`.

    Raises:
        DataError: one is missing.
    """
    files = {}
    for name in (*SEQUENCES, SEGMENTATION):
        found = [folder / f"{folder.name}_{name}{suffix}" for suffix in SUFFIXES]
        existing = [path for path in found if path.is_file()]
        if not existing:
            raise DataError(
                f"{folder}: {found[0].name} is missing; expected the sequences {', '.join(SEQUENCES)} and seg"
            )
        files[name] = existing[0]
    return files


def check_nifti(files: Mapping[str, Path]) -> int:
    """Checks that all files of a case have one shape, from their headers; returns the number of slices D.

    Raises:
        DataError: a file is no NIfTI, or shapes differ.
    """
    first, *others = files
    shape = _nifti_shape(files[first])
    for name in others:
        found = _nifti_shape(files[name])
        if found != shape:
            raise DataError(f"{files[name]}: shape {found}; {files[first].name} has {shape}; expected one shape")
    return shape[2]


def read_nifti(files: Mapping[str, Path]) -> Volume:
    """A challenge case; each sequence is z-scored over the voxels of the brain, which are those that are not 0.

    Raises:
        DataError: a file cannot be read, or holds values that cannot be.
    """
    image = np.stack([_z_scored(_nifti_values(files[name]), files[name]) for name in SEQUENCES])
    return Volume(image=image, label=_nifti_label(files[SEGMENTATION]))


def _nifti_label(path: Path) -> np.ndarray:
    return _classes(_nifti_values(path), str(path))


def geometry(path: Path) -> np.ndarray:
    """The matrix [4, 4] from voxels to millimetres of a NIfTI file; that of an h5 file, which has none, is the identity."""
    if path.suffix == ".h5":
        return np.eye(4)
    return _with_nifti(path, lambda image: np.asarray(image.affine))


def has_tumour(files: Sequence[Path]) -> bool:
    """Whether a case, its h5 file or its NIfTI files, has a tumour; only its labels are read.

    Raises:
        DataError: they cannot be read, or hold values that cannot be.
    """
    path = files[0]
    if len(files) == 1:
        return bool(_with_h5(path, lambda file: _h5_label(file, path)).any())
    return bool(_nifti_label(case_files(path.parent)[SEGMENTATION]).any())


def _z_scored(values: np.ndarray, path: Path) -> np.ndarray:
    if not finite(values).all():
        _check_intensities(values, str(path))
    values = values.astype(np.float32)
    if not values.any():
        _check_intensities(values, str(path))
    brain = values != 0
    inside = values[brain].astype(np.float64)
    deviation = inside.std()
    if deviation == 0:
        raise DataError(f"{path}: all voxels of the brain are {inside[0]:g}; expected an image")
    return np.where(brain, (values - inside.mean()) / deviation, 0).astype(np.float32)


def _nifti_shape(path: Path) -> tuple[int, ...]:
    def check(image: Any) -> tuple[int, ...]:
        shape = tuple(int(size) for size in image.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise DataError(f"{path}: shape {shape}; expected three axes")
        dtype = image.get_data_dtype()
        if dtype.kind not in "fiu":
            raise DataError(f"{path}: voxels of {dtype}; expected numbers")
        # Scaled values are float64.
        check_size(8 * math.prod(shape), path.stat().st_size, f"{path}: shape {shape}")
        return shape

    return _with_nifti(path, check)


def _nifti_values(path: Path) -> np.ndarray:
    _nifti_shape(path)
    return _with_nifti(path, lambda image: np.asanyarray(image.dataobj))


def _with_nifti(path: Path, use: Callable[[Any], T]) -> T:
    import nibabel

    # The two kinds alone: nibabel.load would try a dozen formats, and follow the header of a pair to another file.
    with reading(path, "NIfTI file"), nibabel.imageglobals.LoggingOutputSuppressor():
        with nibabel.openers.ImageOpener(str(path)) as file:
            (size,) = struct.unpack("<i", file.read(4))
        kind = nibabel.Nifti2Image if size in (540, 469893120) else nibabel.Nifti1Image
        return use(kind.from_filename(path))


def _check_intensities(values: np.ndarray, where: str) -> None:
    # Slices are kept in float16, in which larger numbers would be infinite.
    good = np.abs(values) <= np.finfo(np.float16).max if values.dtype != np.float16 else np.isfinite(values)
    if not good.all():
        voxel = tuple(int(place) for place in np.argwhere(~good)[0])
        raise DataError(
            f"{where}: {values[voxel]} at voxel {voxel}; expected finite numbers of at most {np.finfo(np.float16).max:,.0f}"
        )
    if not values.any():
        raise DataError(f"{where}: all voxels are 0; expected an image")


def _classes(label: np.ndarray, where: str) -> np.ndarray:
    """Labels {0, 1, 2, 4} or {0, 1, 2, 3} as classes 0 to 3."""
    found = np.unique(label)
    strange = found[~np.isin(found, range(CLASSES + 1))]
    if len(strange):
        raise DataError(f"{where}: label {strange[0]:g} is outside the classes; expected 0, 1, 2, 4 or 0, 1, 2, 3")
    if {3, 4} <= set(found.tolist()):
        raise DataError(f"{where}: labels 3 and 4 together; expected 0, 1, 2, 4 or 0, 1, 2, 3")
    return np.where(label == CLASSES, CLASSES - 1, label).astype(np.uint8)


def joined(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
