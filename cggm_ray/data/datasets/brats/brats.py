"""BraTS (Baid et al. 2021): tumour segmentation from four MRI sequences.

Two layouts are read. The released one: `<train|valid|test>/<case>.h5` with `image` [4, H, W, D], `label` [H, W, D] and, if
the order of the sequences is not flair, t1ce, t1, t2, the attribute `channels`. That of the challenges of 2017 to 2024: a
folder per case with a NIfTI file for each sequence (`cggm_ray.data.datasets.brats.layouts`), which is split here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.config.fields import one_of, option
from cggm_ray.core.errors import DataError, UsageError, listed
from cggm_ray.core.kinds import IMAGE
from cggm_ray.core.optional import check_installed, require
from cggm_ray.core.seeding import derive_seed, generator
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.datasets.brats.cases import H5, Case, gather, named_splits, survey
from cggm_ray.data.datasets.brats.labels import AUTO, CHOICES, CONVENTIONS, Convention
from cggm_ray.data.datasets.brats.layouts import SEQUENCES, case_files, case_folders
from cggm_ray.data.datasets.brats.maps import MapWriter
from cggm_ray.data.loading.collector import Collector
from cggm_ray.data.loading.slices import (
    STRIDE,
    SliceFiles,
    TumourSlices,
    VolumeSlices,
    read_facts,
    require_tumour,
    slice_table,
)
from cggm_ray.data.loading.split import Split
from cggm_ray.data.maps import MAPS, MapPlan
from cggm_ray.data.settings import DatasetOptions
from cggm_ray.data.shards.shards import PREDICT, Manifest, RawShard
from cggm_ray.data.split_names import find_splits
from cggm_ray.storage.files import whole_folder
from cggm_ray.storage.places import as_path, common_folder
from cggm_ray.tasks import Segmentation, Task
from cggm_ray.tasks.segmentation import CLASS_WEIGHTS

SCORES = ("volume", "slice")


@dataclass(frozen=True, kw_only=True)
class BratsOptions(DatasetOptions):
    """Options of BraTS."""

    crop: int = option(160, "height and width in pixels of the crops in training")
    draws: int = option(1, "slices with tumour that are drawn from every case in an epoch of training")
    score: str = option(
        "volume", "Dice of validation and test: volume (in 3-D), slice (cropped tumour slices, as released)"
    )
    labels: str = option(
        AUTO,
        "what the labels mean: brats2021 (0 1 2 4), brats2023 (0 1 2 3), brats2024 (0 1 2 3 and 4 for the resection cavity); "
        "auto decides over all cases",
    )
    valid_part: float = option(0.1, "challenge folders: share of the cases for validation")
    test_part: float = option(0.2, "challenge folders: share of the cases for test")
    split_seed: int = option(0, "challenge folders: seed of the split")
    overlays: int = option(3, "number of test cases of which a picture is drawn", resume=True)

    def __post_init__(self) -> None:
        one_of(self, "score", SCORES)
        one_of(self, "labels", CHOICES)
        if self.crop < STRIDE or self.crop % STRIDE:
            raise UsageError(f"crop: found {self.crop}; expected a multiple of {STRIDE}")
        for name in ("valid_part", "test_part"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name}: found {getattr(self, name)}; expected a part between 0 and 1")
        if self.valid_part + self.test_part >= 1:
            raise UsageError(
                f"test_part: {self.test_part} with valid_part {self.valid_part} leaves nothing to train on"
            )
        for name, least in (("draws", 1), ("split_seed", 0), ("overlays", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}: found {getattr(self, name)}; expected a whole number of at least {least}")


@DATASETS.register("brats")
class Brats(Dataset):
    """BraTS: classes background, necrotic core, oedema, enhancing tumour and, in sets of 2024, resection cavity."""

    name = "brats"
    converter = 2
    network = "deeplab"
    kind = IMAGE
    Options = BratsOptions

    @property
    def options(self) -> BratsOptions:
        """The configuration's section of this dataset."""
        options = self.settings.options
        assert isinstance(options, BratsOptions)
        return options

    def shard_options(self) -> dict[str, Any]:
        """Returns the split of challenge folders and the meaning of the labels."""
        options = self.options
        return {name: getattr(options, name) for name in ("valid_part", "test_part", "split_seed", "labels")}

    def locate(self, path: Path) -> list[Path]:
        """Returns all h5 files of the three split folders, or the five files of every case folder."""
        if not path.is_dir():
            raise DataError(
                f"data_path: {path} is a file; expected a folder with train, valid, test, or with case folders"
            )
        released = _h5_files(path)
        check_installed("h5py" if released else "nibabel", extra=self.name, purpose=self.name)
        if released:
            folders = find_splits(dict.fromkeys(file.parent.name for file in released), str(path))
            for split in SPLITS:
                if split not in folders:
                    raise DataError(
                        f"{path / split}: no .h5 file; expected at least one case in each of {', '.join(SPLITS)}"
                    )
            places = list(folders.values())
            return sorted(
                (file for file in released if file.parent.name in places),
                key=lambda file: (places.index(file.parent.name), file.name),
            )
        return [file for case in _case_folders(path) for file in case_files(case).values()]

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields one raw shard per case, with the paths of its files, after checking all headers and all labels."""
        found = gather(sources, labelled=True)
        cases = named_splits(found) or self._drawn(found)
        members = [case for split in SPLITS for case in cases[split]]
        seen = survey(members, self.options.labels)
        self._notes = seen.notes()
        _say(self._notes)
        tumour = iter(seen.tumour)
        root = common_folder([path.parent for path in sources])
        for split in SPLITS:
            there = [bool(next(tumour)) for _ in cases[split]]
            if split in self._drawn_splits:
                require_tumour(there, split, len(there), root)
        slices = iter(seen.slices)
        for split in SPLITS:
            yield from _raw_shards(cases[split], split, slices, seen.convention)

    def locate_new(self, path: Path) -> list[Path]:
        """Returns all h5 files at the path or in its folders, or the files of every case folder, with or without labels."""
        if path.is_file() and path.suffix == H5:
            return [path]
        if not path.is_dir():
            raise DataError(
                f"data_path: {path} is a file; expected an h5 file, or a folder with h5 files or case folders"
            )
        released = _h5_files(path, f"*{H5}") + _h5_files(path)
        # Maps are written as NIfTI files, whatever they are predicted from.
        check_installed(*(["h5py"] if released else []), "nibabel", extra=self.name, purpose=self.name)
        if released:
            return released
        return [file for case in _case_folders(path) for file in case_files(case, labelled=None).values()]

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields one raw shard per case, of all cases or of one split."""
        cases = gather(sources, labelled=False)
        if split is not None:
            parts = named_splits(cases) or self._drawn(gather(sources, labelled=True))
            cases = parts.get(split, [])
        names: dict[str, Case] = {}
        for case in cases:
            if case.name in names:
                raise DataError(
                    f"{case.files[0]}: the case {case.name} is in {names[case.name].files[0]} too; expected every name once, "
                    "because maps are named after the cases"
                )
            names[case.name] = case
        seen = survey(cases, self.options.labels, labelled=False, default=_convention(trained))
        self._notes = seen.notes(trained)
        yield from _raw_shards(cases, PREDICT, iter(seen.slices), seen.convention)

    def takes(self, modality: str, trained: tuple[int, ...], found: tuple[int, ...]) -> bool:
        """Returns True, because the network accepts slices of any size."""
        return len(trained) == len(found)

    def notes(self) -> dict[str, Any]:
        """Returns the convention of the labels, the orientations of the cases, and the lines that are printed about both."""
        return self._notes

    def _drawn(self, cases: list[Case]) -> dict[str, list[Case]]:
        """Returns a seeded split of case folders, in the order of the folders."""
        folder = cases[0].files[0].parent.parent
        if len(cases) < len(SPLITS):
            raise DataError(f"{folder}: {len(cases)} case folders; expected at least one case a split")
        options = self.options
        valid, test = (max(1, round(part * len(cases))) for part in (options.valid_part, options.test_part))
        order = torch.randperm(len(cases), generator=generator(options.split_seed, "split")).tolist()
        if len(cases) - valid - test < 1:
            raise DataError(
                f"{folder}: {len(cases)} case folders, of which valid_part and test_part take {valid} and {test}; expected one "
                "to train on"
            )
        names = {place: "valid" if rank < valid else "test" for rank, place in enumerate(order) if rank < valid + test}
        return {
            split: [case for place, case in enumerate(cases) if names.get(place, "train") == split] for split in SPLITS
        }

    def transform(self, table: pa.Table) -> pa.Table:
        """Reads a case and cuts it into slices."""
        (row,) = table.to_pylist()
        case = Case(name=row["case"], files=tuple(map(as_path, row["files"])))
        volume = case.read(CONVENTIONS[row["labels"]])
        image = dict(zip(SEQUENCES, volume.image, strict=True))
        return slice_table(image, volume.label, case=case.name, start=row["start"])

    def accept(self, folder: Path, manifest: Manifest) -> None:
        """Raises a DataError if no case has a tumour to draw, as `read` does, and prints the lines that `read` printed."""
        _say(manifest.notes)
        for split in self._drawn_splits:
            shards = manifest.splits[split]
            found = (read_facts(folder / shard.file).has_tumour for shard in shards)
            require_tumour(found, split, len(shards), folder)

    @property
    def _drawn_splits(self) -> tuple[str, ...]:
        """Returns the splits of which only slices with tumour are used."""
        return SPLITS if self.options.score == "slice" else ("train",)

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `brats-<seed>`: heads with a tumour whose parts are visible in different sequences."""
        path = folder / f"brats-{seed}"
        if not path.exists():
            with whole_folder(path) as partial:
                write_demonstration(partial, seed)
        return path

    def task(self, manifest: Manifest) -> Task:
        """Returns the task of cross-entropy and Dice, scored by volume or by slice."""
        convention = _convention(manifest)
        # The resection cavity counts as much as the enhancing tumour.
        weights = CLASS_WEIGHTS + CLASS_WEIGHTS[-1:] * (len(convention.labels) - len(CLASS_WEIGHTS))
        return Segmentation(weights, by_slice=self.options.score == "slice", regions=convention.regions)

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Opens random tumour slices for training, and all slices in order for validation and test."""
        files, options = SliceFiles(folder, manifest, split, modalities), self.options
        if split == "train":
            seed = self.settings.seed
            return TumourSlices(files, seed=seed, crop=options.crop, draws=options.draws, device=device)
        return VolumeSlices(files, crop=options.crop if options.score == "slice" else None, device=device)


@MAPS.register("brats")
def open_maps(plan: MapPlan) -> tuple[Split, Collector]:
    """Opens whole volumes, and a writer of a NIfTI file for each."""
    whole = VolumeSlices(
        SliceFiles(plan.shards, plan.manifest, plan.split, plan.modalities), crop=None, device=plan.device
    )
    if plan.split == PREDICT:
        _say(plan.manifest.notes)
    cases = {case.name: case for case in gather(plan.sources, labelled=False)}
    return whole, MapWriter(plan.out, whole, cases, _convention(plan.manifest))


def _h5_files(path: Path, pattern: str = f"*/*{H5}") -> list[Path]:
    """Returns the h5 files in the folders of a path, in order; what macOS leaves beside them begins with a dot."""
    return sorted(file for file in path.glob(pattern) if not file.name.startswith("."))


def _case_folders(path: Path) -> list[Path]:
    """Returns the case folders below a path, of which there must be at least one."""
    found = case_folders(path)
    if not found:
        raise DataError(
            f"{path}: neither <train|valid|test>/<case>.h5 nor <case>/<case>_{SEQUENCES[0]}.nii.gz; found "
            f"{listed(sorted(entry.name for entry in path.iterdir()), 5)}"
        )
    return found


def _raw_shards(cases: Sequence[Case], split: str, slices: Iterator[int], convention: Convention) -> Iterator[RawShard]:
    """Yields one raw shard per case; `slices` gives the number of slices of each."""
    start = 0
    for number, (case, count) in enumerate(zip(cases, slices, strict=False)):
        row = {"case": case.name, "files": list(map(str, case.files)), "start": start, "labels": convention.name}
        yield RawShard(split=split, number=number, table=pa.Table.from_pylist([row]))
        start += count


def _say(notes: Mapping[str, Any]) -> None:
    for line in notes["lines"]:
        print(line, flush=True)


def _convention(manifest: Manifest) -> Convention:
    """Returns the convention of the labels of a set."""
    return CONVENTIONS[manifest.notes["labels"]]


DEMONSTRATION_CASES = {"train": 8, "valid": 2, "test": 2}
DEMONSTRATION_SHAPE = (64, 64, 16)


def write_demonstration(folder: Path, seed: int) -> None:
    """Writes h5 files in the released layout.

    A head is an ellipsoid of smooth tissue. Its tumour has a core (1) that is dark in t1, oedema (2) around it that is
    bright in flair and faintly so in t2, and an enhancing rim (4) that only t1ce shows.
    """
    h5py = require("h5py", extra="brats", purpose="brats")

    brightness = {"flair": (0.3, 1.2, 0.5), "t1ce": (-0.2, -0.1, 0.9), "t1": (-0.8, -0.2, -0.1), "t2": (0.4, 0.6, 0.2)}
    number = 0
    for split, cases in DEMONSTRATION_CASES.items():
        (folder / split).mkdir(parents=True)
        for _ in range(cases):
            random = np.random.default_rng(derive_seed(seed, "demonstration", number))
            grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in DEMONSTRATION_SHAPE), indexing="ij"))
            head = ((grid / np.array([0.8, 0.7, 1.1])[:, None, None, None]) ** 2).sum(0) < 1
            centre = random.uniform(-0.3, 0.3, 3)[:, None, None, None]
            distance = np.sqrt((((grid - centre) / random.uniform(0.8, 1.2, (3, 1, 1, 1))) ** 2).sum(0))
            size = random.uniform(0.3, 0.45)
            label = np.zeros(DEMONSTRATION_SHAPE, dtype=np.uint8)
            for part, share in ((2, 1.0), (4, 0.65), (1, 0.4)):
                label[head & (distance < share * size)] = part
            image = np.zeros((len(SEQUENCES), *DEMONSTRATION_SHAPE))
            for place, name in enumerate(SEQUENCES):
                phases = random.uniform(0, 6, 3)
                tissue = 1 + 0.2 * np.sin(3 * grid + phases[:, None, None, None]).sum(0)
                for part, change in zip((1, 2, 4), brightness[name], strict=True):
                    tissue = tissue + change * (label == part)
                image[place] = head * (tissue + 0.25 * random.standard_normal(DEMONSTRATION_SHAPE))
            with h5py.File(folder / split / f"demo_{number:03d}.h5", "w") as file:
                file.create_dataset("image", data=image.astype(np.float32), compression="gzip")
                file.create_dataset("label", data=label, compression="gzip")
            number += 1
