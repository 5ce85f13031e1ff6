"""Names of files and folders in the BraTS challenges of 2017 to 2024.

A case is a folder with a file for each sequence and, where it has labels, one for the segmentation: the name of the case, '_'
or '-', and the name of the sequence. Case folders may lie some folders deeper (HGG and LGG), and other files beside them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cggm_ray.core.errors import DataError, listed
from cggm_ray.storage.places import walk

SEQUENCES = ("flair", "t1ce", "t1", "t2")
"""The image sequences, in the order of the released code."""
SEGMENTATION = "seg"
NAMES = {
    "flair": "flair",
    "t2f": "flair",
    "t1ce": "t1ce",
    "t1c": "t1ce",
    "t1gd": "t1ce",
    "t1": "t1",
    "t1n": "t1",
    "t2": "t2",
    "t2w": "t2",
    SEGMENTATION: SEGMENTATION,
}
"""Names of the sequences in file names, in lower case."""
FILE = re.compile(
    rf"(?:(?P<case>.*)(?P<mark>[-_.]))?(?P<name>{'|'.join(NAMES)})(?P<suffix>\.nii(?:\.gz)?)", re.IGNORECASE
)
DEEPEST = 4
"""Number of folder levels below the path of the data in which cases are searched."""


def case_folders(root: Path) -> list[Path]:
    """Returns the folders that hold a file of a case, in order, without hidden files and folders, which macOS writes.

    Raises:
        DataError: two cases have one name.
    """
    found = []
    for folder, inner, files in walk(root):
        below = len(folder.relative_to(root).parts)
        inner[:] = [name for name in inner if below < DEEPEST and not _is_hidden(name)]
        matches = [match for name in files if not _is_hidden(name) and (match := FILE.fullmatch(name))]
        roles = {NAMES[match["name"].lower()] for match in matches}
        # A single file of another sequence is no case, because data folders also hold atlases and segmentations.
        if SEQUENCES[0] in roles or len(roles) > 1:
            found.append(folder)
    names: dict[str, Path] = {}
    for path in sorted(found):
        if path.name in names:
            raise DataError(f"{path}: the case {path.name} is in {names[path.name]} too; expected every case once")
        names[path.name] = path
    return sorted(found)


def case_files(folder: Path, *, labelled: bool | None = True) -> dict[str, Path]:
    """Returns the files of a case, by sequence and `seg`.

    Args:
        folder: of the case.
        labelled: whether there must be a segmentation; None to take it where there is one.

    Raises:
        DataError: a file is missing, there are two for one sequence, or files of several cases.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not _is_hidden(entry.name))
    cases: dict[str, dict[str, list[str]]] = {}
    example: dict[str, re.Match[str]] = {}
    for name in names:
        match = FILE.fullmatch(name)
        if match is not None:
            case = (match["case"] or "").lower()
            example.setdefault(case, match)
            cases.setdefault(case, {}).setdefault(NAMES[match["name"].lower()], []).append(name)
    own = folder.name.lower()
    if own not in cases and len(cases) > 1:
        raise DataError(f"{folder}: files of several cases: {_joined(sorted(cases))}; expected a folder for every case")
    case = own if own in cases else next(iter(cases), own)
    wanted = (*SEQUENCES, SEGMENTATION) if labelled or SEGMENTATION in cases.get(case, {}) else SEQUENCES
    files = {}
    for role in wanted:
        found = cases.get(case, {}).get(role, [])
        if not found:
            own_files = {name for members in cases.get(case, {}).values() for name in members}
            others = [name for name in names if name not in own_files]
            raise DataError(_missing(folder, role, example.get(case), own_files, others))
        files[role] = folder / _only(folder, role, found)
    return files


def _only(folder: Path, role: str, found: list[str]) -> str:
    """Returns the single file of a sequence; if it exists packed and unpacked, the packed one."""
    packed = [name for name in found if not (name.lower().endswith(".nii") and f"{name}.gz" in found)]
    if len(packed) > 1:
        raise DataError(f"{folder}: {_joined(packed)} are files of the sequence {role}; expected one")
    return packed[0]


def _missing(folder: Path, role: str, example: re.Match[str] | None, own_files: set[str], others: Sequence[str]) -> str:
    """Returns the missing files of a case, named like its other files, and the files that belong to no sequence."""
    suffix, mark, name = (".nii.gz", "_", role)
    if example is not None:
        suffix, mark = example["suffix"], example["mark"] or ""
        # The names of 2023 and 2024, where its other files have those.
        late = {"flair": "t2f", "t1ce": "t1c", "t1": "t1n", "t2": "t2w"}
        matches = [match for own in own_files if (match := FILE.fullmatch(own))]
        if any(match["name"].lower() in late.values() for match in matches):
            name = late.get(role, role)
    prefix = folder.name if example is None else example["case"] or ""
    beside = f"; found {_joined(others)} beside the others" if others else ""
    return (
        f"{folder}: {prefix}{mark}{name}{suffix} is missing{beside}; expected the sequences {', '.join(SEQUENCES)} and "
        f"{SEGMENTATION}"
    )


def _joined(names: Sequence[str]) -> str:
    return listed(names, 5)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
