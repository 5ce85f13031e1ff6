"""BraTS 2021 (Baid et al. 2021): tumour segmentation from four MRI sequences.

Two layouts are read. The released one: `<train|valid|test>/<case>.h5` with `image` [4, H, W, D], `label` [H, W, D] and, if
the order of the sequences is not flair, t1ce, t1, t2, the attribute `channels`. The challenge's: a folder per case with
`<case>_<flair|t1ce|t1|t2|seg>.nii.gz`, which is split here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.config.fields import one_of, option
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.core.seeding import derive_seed, generator
from cggm_ray.data.dataset import DATASETS, PICTURES, SPLITS, Dataset
from cggm_ray.data.datasets.brats.maps import MapWriter
from cggm_ray.data.datasets.brats.overlay import draw_overlays
from cggm_ray.data.datasets.brats.volumes import (
    SEGMENTATION,
    SEQUENCES,
    SUFFIXES,
    case_files,
    check_h5,
    check_nifti,
    has_tumour,
    joined,
    read_h5,
    read_nifti,
)
from cggm_ray.data.formats.h5 import probe
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
from cggm_ray.data.settings import DatasetOptions
from cggm_ray.data.shards.shards import Manifest, RawShard
from cggm_ray.models.net import MultimodalNet
from cggm_ray.tasks import Segmentation, Task

if TYPE_CHECKING:
    from cggm_ray.engine.evaluation import Collector

SCORES = ("volume", "slice")


@dataclass(frozen=True, kw_only=True)
class BratsOptions(DatasetOptions):
    """Options of BraTS."""

    crop: int = option(160, "pixels of the square that training sees")
    draws: int = option(1, "tumour slices that training draws of every case in an epoch")
    score: str = option(
        "volume", "Dice of validation and test: volume (in 3-D), slice (cropped tumour slices, as released)"
    )
    valid_part: float = option(0.1, "challenge folders: part of the cases for validation")
    test_part: float = option(0.2, "challenge folders: part of the cases for test")
    split_seed: int = option(0, "challenge folders: seed of the split")
    overlays: int = option(3, "test cases of which a picture is left", resume=True)

    def __post_init__(self) -> None:
        one_of(self, "score", SCORES)
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
    """BraTS 2021: classes background, necrotic core, oedema, enhancing tumour."""

    name = "brats"
    converter = 1
    network = "deeplab"
    Options = BratsOptions

    @property
    def options(self) -> BratsOptions:
        """The configuration's section of this dataset."""
        options = self.settings.options
        assert isinstance(options, BratsOptions)
        return options

    def shard_options(self) -> dict[str, Any]:
        """The split of challenge folders."""
        options = self.options
        return {name: getattr(options, name) for name in ("valid_part", "test_part", "split_seed")}

    def locate(self, path: Path) -> list[Path]:
        """All h5 files of the three split folders, or the five files of every case folder."""
        if not path.is_dir():
            raise DataError(
                f"data_path: {path} is a file; expected a folder with train, valid, test, or with case folders"
            )
        released = {split: sorted((path / split).glob("*.h5")) for split in SPLITS}
        if any(released.values()):
            for split, files in released.items():
                if not files:
                    raise DataError(
                        f"{path / split}: no .h5 file; expected at least one case in each of {', '.join(SPLITS)}"
                    )
            return [file for files in released.values() for file in files]
        cases = sorted({file.parent for suffix in SUFFIXES for file in path.glob(f"*/*_{SEQUENCES[0]}{suffix}")})
        if not cases:
            raise DataError(
                f"{path}: neither <train|valid|test>/<case>.h5 nor <case>/<case>_{SEQUENCES[0]}.nii.gz; found "
                f"{joined(sorted(entry.name for entry in path.iterdir())) or 'an empty folder'}"
            )
        return [file for case in cases for file in case_files(case).values()]

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """One raw shard a case, with the paths of its files; headers are checked, and labels up to the first tumour."""
        split_of = self._split([path.parent for path in sources if SEGMENTATION in path.name])
        cases: dict[str, list[tuple[str, list[Path]]]] = {split: [] for split in SPLITS}
        for path in sources:
            if path.suffix == ".h5":
                cases[path.parent.name].append((path.stem, [path]))
            elif path.parent in split_of:
                folder = path.parent
                cases[split_of.pop(folder)].append((folder.name, list(case_files(folder).values())))
        probe([path for path in sources if path.suffix == ".h5"])
        for split, members in cases.items():
            start = 0
            for number, (case, files) in enumerate(members):
                slices = check_h5(files[0]) if len(files) == 1 else check_nifti(case_files(files[0].parent))
                row = {"case": case, "files": list(map(str, files)), "start": start}
                yield RawShard(split=split, number=number, table=pa.Table.from_pylist([row]))
                start += slices
        root = Path(os.path.commonpath([path.parent for path in sources]))
        for split in self._drawn_splits:
            found = (has_tumour(files) for _, files in cases[split])
            require_tumour(found, split, len(cases[split]), root)

    def _split(self, folders: list[Path]) -> dict[Path, str]:
        """A seeded split of case folders, in the order of the folders."""
        if not folders:
            return {}
        if len(folders) < len(SPLITS):
            raise DataError(f"{folders[0].parent}: {len(folders)} case folders; expected at least one case a split")
        options = self.options
        valid, test = (max(1, round(part * len(folders))) for part in (options.valid_part, options.test_part))
        order = torch.randperm(len(folders), generator=generator(options.split_seed, "split")).tolist()
        if len(folders) - valid - test < 1:
            raise DataError(
                f"{folders[0].parent}: {len(folders)} case folders, of which valid_part and test_part take {valid} and "
                f"{test}; expected one to train on"
            )
        names = {place: "valid" if rank < valid else "test" for rank, place in enumerate(order) if rank < valid + test}
        return {folder: names.get(place, "train") for place, folder in enumerate(folders)}

    def transform(self, table: pa.Table) -> pa.Table:
        """Reads a case and cuts it into slices."""
        (row,) = table.to_pylist()
        files = [Path(file) for file in row["files"]]
        volume = read_h5(files[0]) if len(files) == 1 else read_nifti(case_files(files[0].parent))
        image = dict(zip(SEQUENCES, volume.image, strict=True))
        return slice_table(image, volume.label, case=row["case"], start=row["start"])

    def accept(self, folder: Path, manifest: Manifest) -> None:
        """Stops where no case has a tumour to draw; `read` does the same before a set is made."""
        for split in self._drawn_splits:
            shards = manifest.splits[split]
            found = (read_facts(folder / shard.file).has_tumour for shard in shards)
            require_tumour(found, split, len(shards), folder)

    @property
    def _drawn_splits(self) -> tuple[str, ...]:
        """Splits of which only slices with tumour are used."""
        return SPLITS if self.options.score == "slice" else ("train",)

    def demonstration(self, folder: Path, seed: int) -> Path:
        """`brats-<seed>`: heads with a tumour whose parts show in different sequences."""
        path = folder / f"brats-{seed}"
        if not path.exists():
            partial = folder / f".brats-{seed}.{os.getpid()}.part"
            shutil.rmtree(partial, ignore_errors=True)
            write_demonstration(partial, seed)
            partial.rename(path)
        return path

    def task(self, manifest: Manifest) -> Task:
        """Cross-entropy and Dice, scored by volume or by slice."""
        return Segmentation(by_slice=self.options.score == "slice")

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Random tumour slices for training, all slices in order for validation and test."""
        files, options = SliceFiles(folder, manifest, split, modalities), self.options
        if split == "train":
            seed = self.settings.seed
            return TumourSlices(files, seed=seed, crop=options.crop, draws=options.draws, device=device)
        return VolumeSlices(files, crop=options.crop if options.score == "slice" else None, device=device)

    def open_maps(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        modalities: tuple[str, ...],
        device: torch.device,
        out: Path,
        sources: Sequence[Path],
    ) -> tuple[Split, Collector]:
        """Whole volumes, and a NIfTI file for each."""
        whole = VolumeSlices(SliceFiles(folder, manifest, split, modalities), crop=None, device=device)
        cases = {path.stem if path.suffix == ".h5" else path.parent.name: path for path in sources}
        return whole, MapWriter(out, whole, cases)

    def finish(self, folder: Path, net: MultimodalNet, test: Split) -> None:
        """Pictures of prediction and truth for the first test cases."""
        assert isinstance(test, VolumeSlices)
        draw_overlays(folder / PICTURES, net, test, self.options.overlays)


DEMONSTRATION_CASES = {"train": 8, "valid": 2, "test": 2}
DEMONSTRATION_SHAPE = (64, 64, 16)


def write_demonstration(folder: Path, seed: int) -> None:
    """h5 files in the released layout.

    A head is an ellipsoid of smooth tissue. Its tumour has a core (1) that is dark in t1, oedema (2) around it that is
    bright in flair and faintly so in t2, and an enhancing rim (4) that only t1ce shows.
    """
    import h5py

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
