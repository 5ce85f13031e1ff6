"""Checks the cases of a BraTS set together: the convention of their labels, and the positions of their files in space."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.brats.labels import CONVENTIONS, Convention, decide
from cggm_ray.data.datasets.brats.layouts import SEGMENTATION, SEQUENCES, case_files
from cggm_ray.data.datasets.brats.orientation import Grid, axis_codes
from cggm_ray.data.datasets.brats.volumes import Volume, case_labels, check_h5, grid, read_h5, read_nifti
from cggm_ray.data.formats.h5 import probe
from cggm_ray.data.loading.stream import ahead
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.data.split_names import SPLITS, find_splits, split_of
from cggm_ray.storage.places import common_folder

H5 = ".h5"
READERS = 4
"""Number of segmentations that are read, and held in memory, at once."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        name: of its h5 file without suffix, or of its folder.
        files: the h5 file; or a NIfTI file for each sequence, in their order, and the segmentation where there is one.
    """

    name: str
    files: tuple[Path, ...]

    @property
    def named(self) -> dict[str, Path]:
        """NIfTI files by sequence; empty for an h5 file."""
        if self.files[0].suffix == H5:
            return {}
        return dict(zip((*SEQUENCES, SEGMENTATION), self.files, strict=False))

    def read(self, convention: Convention) -> Volume:
        """Reads the voxels.

        Raises:
            DataError: a file cannot be read, or holds values that cannot be.
        """
        return read_nifti(self.named, convention) if self.named else read_h5(self.files[0], convention)


def gather(sources: Sequence[Path], *, labelled: bool) -> list[Case]:
    """Returns the cases of the files, in the order of the files.

    Args:
        sources: h5 files, and the files of case folders.
        labelled: whether every case folder must have a segmentation.

    Raises:
        DataError: a case lacks a file, or two have one name.
    """
    cases = {}
    for path in sources:
        if path.suffix == H5:
            cases[path] = Case(name=path.stem, files=(path,))
        elif path.parent not in cases:
            found = case_files(path.parent, labelled=True if labelled else None)
            cases[path.parent] = Case(name=path.parent.name, files=tuple(found.values()))
    return list(cases.values())


def named_splits(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Returns the cases by split if they lie in folders that are named after splits, otherwise an empty dict.

    Raises:
        DataError: some cases lie in such folders and others do not, or a split has none.
    """
    root = common_folder([case.files[0].parent.parent for case in cases])
    places = [case.files[0].parent if not case.named else case.files[0].parent.parent for case in cases]
    tops = [place.relative_to(root).parts[:1] for place in places]
    names = [top[0] if top else "" for top in tops]
    if not any(split_of(name) for name in names):
        return {}
    found = find_splits(dict.fromkeys(names), str(root))
    other = next((case for case, name in zip(cases, names, strict=True) if split_of(name) is None), None)
    if other is not None:
        raise DataError(
            f"{other.files[0].parent}: lies beside folders of splits ({', '.join(found.values())}); expected all cases in such "
            "folders, or none"
        )
    if len(found) < len(SPLITS):
        raise DataError(
            f"{root}: cases in the folders {', '.join(found.values())}; expected at least one case in each of "
            f"{', '.join(SPLITS)}, or no folders of splits"
        )
    return {
        split: [case for case, name in zip(cases, names, strict=True) if split_of(name) == split] for split in SPLITS
    }


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Properties of a set that follow from all of its files.

    Attributes:
        convention: of its labels.
        slices: of each case.
        tumour: whether each case has one; None where it has no labels.
        orientations: of the cases, the most frequent first; none for h5 files.
        lines: printed lines about properties that the files do not state.
    """

    convention: Convention
    slices: list[int]
    tumour: list[bool | None]
    orientations: list[str]
    lines: list[str] = field(default_factory=list)

    def notes(self, trained: Manifest | None = None) -> dict[str, Any]:
        """Returns plain values for the manifest.

        Args:
            trained: manifest of the set that a run was trained on, where this one is only predicted. Its convention is that
                of the maps.
        """
        if trained is None:
            return {"labels": self.convention.name, "orientations": self.orientations, "lines": self.lines}
        lines, ours = list(self.lines), CONVENTIONS[trained.notes["labels"]]
        if any(tumour is not None for tumour in self.tumour) and self.convention != ours:
            lines.append(
                f"labels: of these cases {self.convention}; maps are written as {ours}, as the run was trained"
            )
        known, found = trained.notes["orientations"], self.orientations
        if known and set(found) - set(known):
            lines.append(
                f"orientation: {', '.join(found)}; the run was trained on {', '.join(known)}, so its maps may be worse"
            )
        return {"labels": ours.name, "orientations": found, "lines": lines}


def survey(cases: Sequence[Case], labels: str, *, labelled: bool = True, default: Convention | None = None) -> Survey:
    """Checks the headers of all cases and reads all labels, but no image.

    Args:
        cases: of the set.
        labels: convention that the user named, or `auto`.
        labelled: whether all must have labels.
        default: convention where the labels do not tell it.

    Raises:
        DataError: a file is damaged, the files of a case do not lie in one grid, or the labels are of no one convention.
    """
    probe([path for case in cases for path in case.files if path.suffix == H5])
    grids = [grid(case.named) if case.named else None for case in cases]
    slices = [
        check_h5(case.files[0], labelled=labelled) if lies is None else lies.header.shape[2]
        for case, lies in zip(cases, grids, strict=True)
    ]
    found = list(_all_labels(cases))
    labelled_cases = [(where, there) for where, there in found if there is not None]
    convention, line = decide(labelled_cases, labels)
    if line is not None and default is not None:
        convention, line = default, None
    codes = Counter(axis_codes(lies.header.affine) for lies in grids if lies is not None and lies.header.placed)
    lines = [] if line is None else [line]
    return Survey(
        convention=convention,
        slices=slices,
        tumour=[None if there is None else bool(there) for _, there in found],
        orientations=[code for code, _ in codes.most_common()],
        lines=[*lines, *_about_geometry(cases, [lies for lies in grids if lies is not None], codes)],
    )


def _all_labels(cases: Sequence[Case]) -> Iterator[tuple[str, frozenset[int] | None]]:
    # The filters of warnings are not thread-safe: the last thread to restore them decides.
    with warnings.catch_warnings():
        yield from ahead(lambda case: case_labels(case.files), cases, READERS)


def _about_geometry(cases: Sequence[Case], grids: Sequence[Grid], codes: Counter[str]) -> list[str]:
    lines = []
    turned = [(case, lies) for case, lies in zip(cases, grids, strict=False) if lies.turned]
    if turned:
        case, lies = turned[0]
        path = case.named[lies.turned[0]]
        lines.append(
            f"geometry: {len(turned)} of {len(cases)} cases have files in another orientation than their sequence "
            f"{lies.name}; they are turned to it by their affines; the first is {path}"
        )
    unplaced = [(case, lies) for case, lies in zip(cases, grids, strict=False) if lies.unplaced]
    if unplaced:
        case, lies = unplaced[0]
        path = case.named[lies.unplaced[0]]
        lines.append(
            f"geometry: {len(unplaced)} of {len(cases)} cases have files whose headers do not say where they lie (no code for "
            f"sform and qform, or a default affine); their voxels are taken in the order of the others; the first is {path}"
        )
    if len(codes) > 1:
        counted = ", ".join(f"{code} {count}" for code, count in codes.most_common())
        lines.append(
            f"orientation: differs among the cases ({counted}); each is cut into slices along its own third axis"
        )
    return lines
