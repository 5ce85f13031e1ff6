"""Brings the files of a case into one grid: it compares affines, and turns files that have another orientation.

The grid of a case is that of its first sequence whose header says where it lies. Headers hold an affine from voxels to
millimetres. Some tools leave it out (no code for sform and qform) or write their default. Such a file has nothing to compare
but its shape, so its voxels are taken in the order of the grid, and the reader of the set prints that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cggm_ray.core.errors import DataError
from cggm_ray.core.optional import require
from cggm_ray.data.formats.nifti import Header

NOISE = 0.05
"""Largest distance, in voxels, between the corners of two equal grids, because float32 affines are not exact."""
DEFAULTS = (np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0]))
"""Affines that nibabel users and ITK write for an array without geometry."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Position of the voxels of a case.

    Attributes:
        name: of the file whose grid it is.
        header: of it.
        turns: by file, the change of axes (nibabel's orientation) that brings it into the grid; None where it is there.
        unplaced: files that do not say where they lie.
    """

    name: str
    header: Header
    turns: Mapping[str, np.ndarray | None]
    unplaced: tuple[str, ...]

    @property
    def turned(self) -> tuple[str, ...]:
        """Files in another orientation."""
        return tuple(name for name, turn in self.turns.items() if turn is not None)

    def straight(self, name: str, values: np.ndarray) -> np.ndarray:
        """Voxels of a file as they lie in the grid."""
        turn = self.turns[name]
        return values if turn is None else np.ascontiguousarray(_orientations().apply_orientation(values, turn))


def common_grid(headers: Mapping[str, Header], sequences: tuple[str, ...]) -> Grid:
    """Returns the grid of a case.

    Args:
        headers: of its files, by name.
        sequences: names of the images; the grid is that of the first one with a place.

    Raises:
        DataError: a file has another shape, voxel spacing, direction or origin than the grid, also after it was turned.
    """
    images = [name for name in sequences if name in headers]
    placed = [name for name in images if headers[name].placed]
    first = next((name for name in placed if not _is_default(headers[name])), next(iter(placed), images[0]))
    reference = headers[first]
    turns: dict[str, np.ndarray | None] = {}
    unplaced = []
    for name, header in headers.items():
        turns[name] = None
        if not (header.placed and reference.placed):
            unplaced.append(name)
            _check_shape(header, header.shape, reference)
            continue
        if _same(header.shape, header.affine, reference):
            continue
        turn, shape, affine = _turned(header, reference)
        if _same(shape, affine, reference):
            turns[name] = turn
        elif _is_default(header) and not _is_default(reference):
            unplaced.append(name)
            _check_shape(header, header.shape, reference)
        else:
            raise _disagreement(header, shape, affine, reference)
    turned = [name for name, turn in turns.items() if turn is not None and name in sequences]
    if turned and unplaced:
        raise DataError(
            f"{headers[unplaced[0]].path}: neither sform nor qform says where it lies, and {headers[turned[0]].path.name} lies "
            f"in another orientation than {reference.path.name}; expected the affine of one of them"
        )
    return Grid(name=first, header=reference, turns=turns, unplaced=tuple(unplaced))


def axis_codes(affine: np.ndarray) -> str:
    """Orientation of an affine, such as 'LPS': where each axis of the voxels points to."""
    return "".join(code or "?" for code in _orientations().aff2axcodes(affine))


def _turned(header: Header, reference: Header) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """The change of axes to the orientation of the reference, and shape and affine after it."""
    nibabel = _orientations()
    turn = nibabel.ornt_transform(nibabel.io_orientation(header.affine), nibabel.io_orientation(reference.affine))
    places = np.argsort(turn[:, 0])
    shape = tuple(header.shape[int(place)] for place in places)
    return turn, shape, header.affine @ nibabel.inv_ornt_aff(turn, header.shape)


def _orientations() -> Any:
    return require("nibabel.orientations", extra="brats", purpose="NIfTI files")


def _is_default(header: Header) -> bool:
    return any(np.allclose(header.affine, default, atol=1e-6) for default in DEFAULTS)


def _same(shape: tuple[int, ...], affine: np.ndarray, reference: Header) -> bool:
    """Returns whether all corners of two grids coincide."""
    if shape != reference.shape:
        return False
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in shape), indexing="ij")).reshape(3, -1)
    apart = (affine - reference.affine) @ np.concatenate([corners, np.ones((1, corners.shape[1]))])
    return bool(np.linalg.norm(apart[:3], axis=0).max() <= NOISE * _spacing(reference.affine).min())


def _spacing(affine: np.ndarray) -> np.ndarray:
    """Returns the millimetres between voxels along each axis."""
    lengths: np.ndarray = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def _check_shape(header: Header, shape: tuple[int, ...], reference: Header) -> None:
    if shape != reference.shape:
        raise DataError(
            f"{header.path}: shape {shape}; {reference.path.name} has {reference.shape}; expected one shape"
        )


def _disagreement(header: Header, shape: tuple[int, ...], affine: np.ndarray, reference: Header) -> DataError:
    """Returns why no change of axes brings a file into the grid, by the field that differs."""
    _check_shape(header, shape, reference)
    spacing, wanted_spacing = _spacing(affine), _spacing(reference.affine)
    fields = {
        "voxel spacing": (spacing, wanted_spacing, " mm"),
        "direction": (affine[:3, :3] / spacing, reference.affine[:3, :3] / wanted_spacing, ""),
        "origin": (affine[:3, 3], reference.affine[:3, 3], " mm"),
    }
    limit = NOISE / 2 / max(shape)
    if np.abs(spacing - wanted_spacing).max() > limit * wanted_spacing.min():
        field = "voxel spacing"
    else:
        found, wanted, _ = fields["direction"]
        field = "direction" if np.abs(found - wanted).max() > limit else "origin"
    found, wanted, unit = fields[field]
    turned = "" if np.array_equal(affine, header.affine) else f" after turning it to {axis_codes(reference.affine)}"
    return DataError(
        f"{header.path}: {field} {_shown(found)}{unit}{turned}; {reference.path.name} has {_shown(wanted)}{unit}; expected "
        "one geometry in a case"
    )


def _shown(values: np.ndarray) -> str:
    return str(np.round(values, 4).tolist()).replace("[", "(").replace("]", ")")
