"""Brain volumes on disk: the released h5 files and the case folders of the BraTS challenge.

Both give a `Volume`. `check_*` checks cheaply what needs no voxels, and `read_*` checks the rest.
Shapes: four sequences, H and W pixels of a slice, D slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.datasets.brats.labels import Convention, checked_labels, decide, labels_there
from cggm_ray.data.datasets.brats.layouts import SEGMENTATION, SEQUENCES
from cggm_ray.data.datasets.brats.layouts import case_files as case_files
from cggm_ray.data.datasets.brats.orientation import Grid, common_grid
from cggm_ray.data.formats.h5 import check_dataset, open_h5
from cggm_ray.data.formats.nifti import read_header, read_values
from cggm_ray.data.formats.untrusted import finite

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One case.

    Attributes:
        image: float32 [4, H, W, D] in the order of `SEQUENCES`, background 0.
        label: uint8 [H, W, D], numbers of classes; None where the case has no labels.
    """

    image: np.ndarray
    label: np.ndarray | None


def check_h5(path: Path, *, labelled: bool = True) -> int:
    """Checks keys, shapes and types of a released file; returns its number of slices D.

    Args:
        path: of the file.
        labelled: whether it must have a label.

    Raises:
        DataError: names the file, the key, what was found and what was expected.
    """

    def check(file: Any) -> int:
        for key in ("image", "label"):
            if key in file:
                check_dataset(file, key, path, f"key {key}")
            elif labelled or key == "image":
                raise DataError(f"{path}: key {key} is missing; found {listed(file.keys())}; expected image and label")
        image = file["image"].shape
        label = file["label"].shape if "label" in file else image[1:]
        if len(image) != 4 or image[0] != len(SEQUENCES) or 0 in image:
            raise DataError(f"{path}: key image has shape {image}; expected [{len(SEQUENCES)}, H, W, D]")
        if label != image[1:]:
            raise DataError(f"{path}: key label has shape {label}; the image has {image[1:]}")
        _channels(file, path)
        return int(image[3])

    return _with_h5(path, check)


def read_h5(path: Path, convention: Convention | None = None) -> Volume:
    """Reads a released file; its intensities do not change.

    Args:
        path: of the file.
        convention: of its labels; None to tell it by this file alone.

    Raises:
        DataError: the file cannot be read, or holds values that cannot be.
    """

    def read(file: Any) -> Volume:
        check_dataset(file, "image", path, "key image")
        order = [_channels(file, path).index(name) for name in SEQUENCES]
        image = file["image"][:]
        for sequence, place in zip(SEQUENCES, order, strict=True):
            _check_intensities(image[place], f"{path}: key image, sequence {sequence}")
        image = image.astype(np.float32)[order]
        return Volume(image=image, label=_classes(_h5_label(file, path), str(path), convention))

    return _with_h5(path, read)


def _h5_label(file: Any, path: Path) -> np.ndarray | None:
    if "label" not in file:
        return None
    check_dataset(file, "label", path, "key label")
    return checked_labels(file["label"][:], f"{path}: key label")


def _with_h5(path: Path, use: Callable[[Any], T]) -> T:
    with open_h5(path) as file:
        return use(file)


def _channels(file: Any, path: Path) -> list[str]:
    """Returns the order of the sequences.

    It is the attribute `channels` of the file or its image if present, otherwise the released order.
    """
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


def grid(files: Mapping[str, Path]) -> Grid:
    """Returns the grid of the voxels of a case, from the headers of its files.

    Raises:
        DataError: a file is no NIfTI, or its shape or geometry is not that of the others.
    """
    return common_grid({name: read_header(path) for name, path in files.items()}, SEQUENCES)


def check_nifti(files: Mapping[str, Path]) -> int:
    """Checks that all files of a case lie in one grid, from their headers; returns the number of slices D.

    Raises:
        DataError: a file is no NIfTI, or its shape or geometry differs from the others.
    """
    return grid(files).header.shape[2]


def read_nifti(files: Mapping[str, Path], convention: Convention | None = None) -> Volume:
    """Reads a challenge case; each sequence is z-scored over the voxels of the brain, which are those that are not 0.

    All files are brought into the orientation of the first sequence.

    Args:
        files: by sequence, and with or without a segmentation.
        convention: of its labels; None to tell it by this case alone.

    Raises:
        DataError: a file cannot be read, or holds values that cannot be.
    """
    lies = grid(files)
    image = np.stack([lies.straight(name, _z_scored(read_values(files[name]), files[name])) for name in SEQUENCES])
    if SEGMENTATION not in files:
        return Volume(image=image, label=None)
    path = files[SEGMENTATION]
    label = lies.straight(SEGMENTATION, checked_labels(read_values(path), str(path)))
    return Volume(image=image, label=_classes(label, str(path), convention))


def geometry(path: Path) -> np.ndarray:
    """Returns the matrix [4, 4] from voxels to millimetres of a NIfTI file, or the identity for an h5 file, which has none."""
    return np.eye(4) if path.suffix == ".h5" else read_header(path).affine


def case_labels(files: Sequence[Path]) -> tuple[str, frozenset[int] | None]:
    """Returns the place of the labels of a case, file and key, and the labels without 0.

    The labels are None if the case has no segmentation.

    Args:
        files: its h5 file, or its NIfTI files with the segmentation last.

    Raises:
        DataError: they cannot be read, or hold values that cannot be.
    """
    path = files[-1]
    if path.suffix == ".h5":
        label, where = _with_h5(path, lambda file: _h5_label(file, path)), f"{path}: key label"
    elif len(files) == len(SEQUENCES):
        return str(path), None
    else:
        label, where = checked_labels(read_values(path), str(path)), str(path)
    return where, None if label is None else labels_there(label)


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


def _classes(label: np.ndarray | None, where: str, convention: Convention | None) -> np.ndarray | None:
    if label is None:
        return None
    if convention is None:
        convention, _ = decide([(where, labels_there(label))])
    return convention.classes(label)
