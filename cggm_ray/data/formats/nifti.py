"""Reads single NIfTI files: shape and position from the header, and the voxels."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.core.optional import require
from cggm_ray.data.formats.untrusted import check_size, reading

GZIP = b"\x1f\x8b"
NIFTI2 = (540, 469893120)
"""Sizes of a header of the second version, in either byte order."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Header:
    """Header of a NIfTI file.

    Attributes:
        path: of the file.
        shape: of its three axes.
        affine: [4, 4] from voxels to millimetres.
        placed: whether the file says where it lies; without a code for sform or qform the affine is a guess.
        sform, qform: codes of the two ways to say so.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    sform: int
    qform: int

    @property
    def placed(self) -> bool:
        """Whether sform or qform has a code."""
        return self.sform > 0 or self.qform > 0


def read_header(path: Path) -> Header:
    """Returns the header of a file; trailing axes of length 1 are dropped.

    Raises:
        DataError: the file is no NIfTI, has not three axes, or holds no numbers.
    """
    return with_nifti(path, lambda image: _header(image, path))


def read_values(path: Path) -> np.ndarray:
    """Returns the voxels [H, W, D] of a file, scaled as its header says.

    Raises:
        DataError: the header is not valid, or the voxels cannot be read.
    """

    def values(image: Any) -> np.ndarray:
        shape = _header(image, path).shape
        return np.asanyarray(image.dataobj).reshape(shape, order="F")

    return with_nifti(path, values)


def with_nifti(path: Path, use: Callable[[Any], T]) -> T:
    """Returns the result of a function of an open file.

    The first bytes decide whether the file is compressed, not its name.

    Raises:
        DataError: the file cannot be read.
    """
    nibabel = require("nibabel", extra="brats", purpose="NIfTI files")

    # The two kinds alone: nibabel.load would try a dozen formats, and follow the header of a pair to another file.
    with reading(path, "NIfTI file"), nibabel.imageglobals.LoggingOutputSuppressor():
        with path.open("rb") as raw:
            compressed = raw.read(2) == GZIP
        with gzip.open(path) if compressed else path.open("rb") as file:
            (size,) = struct.unpack("<i", file.read(4))
            file.seek(0)
            kind = nibabel.Nifti2Image if size in NIFTI2 else nibabel.Nifti1Image
            return use(kind.from_stream(file))


def _header(image: Any, path: Path) -> Header:
    found = tuple(int(size) for size in image.shape)
    shape = found
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise DataError(f"{path}: shape {found}; expected three axes, one sequence a file")
    dtype = image.get_data_dtype()
    if dtype.kind not in "fiu":
        raise DataError(f"{path}: voxels of {dtype}; expected numbers")
    # Scaled values are float64.
    check_size(8 * math.prod(shape), path.stat().st_size, f"{path}: shape {found}")
    header = Header(
        path=path,
        shape=shape,
        affine=np.asarray(image.affine, dtype=np.float64),
        sform=int(image.header["sform_code"]),
        qform=int(image.header["qform_code"]),
    )
    if header.placed and (not np.isfinite(header.affine).all() or abs(np.linalg.det(header.affine)) < 1e-9):
        field = "sform" if header.sform > 0 else "qform"
        raise DataError(f"{path}: {field} is {header.affine[:3].tolist()}; expected an affine that can be inverted")
    return header
