"""Small BraTS sets in both raw layouts."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np

from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.brats.volumes import SEQUENCES
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig

SHAPE = (12, 20, 6)
PLACE = np.array([[-1.0, 0, 0, 5], [0, -1, 0, 239], [0, 0, 1.5, 0], [0, 0, 0, 1]])


def configured(tmp_path: Path, data: Path | None, **options: object) -> Config:
    return Config(
        data=DataConfig(dataset="brats", data_path=None if data is None else str(data)),
        run=RunConfig(storage_path=str(tmp_path / "runs"), local=True),
        options=BratsOptions(),
    ).replace(options)


def volume(seed: int, shape: tuple[int, ...] = SHAPE, tumour: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """An image with values that float16 holds exactly, and labels 1, 2 and 4 in slices 2 and 3."""
    random = np.random.default_rng(seed)
    image = random.integers(1, 100, (4, *shape)).astype(np.float32)
    label = np.zeros(shape, dtype=np.uint8)
    if tumour:
        label[2:5, 3:6, 2:4] = random.choice([1, 2, 4], (3, 3, 2))
        label[2, 3, 2:4] = 4
    return image, label


def write_h5(path: Path, image: np.ndarray, label: np.ndarray, **attributes: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label
        file.attrs.update(attributes)


def write_released(folder: Path) -> Path:
    """Three training cases, one of them without tumour, one validation and two test cases of different sizes."""
    for number, split in enumerate(("train", "train", "train", "valid", "test", "test")):
        shape = (16, 16, 5) if number == 5 else SHAPE
        write_h5(folder / split / f"case{number}.h5", *volume(number, shape, tumour=number != 1))
    return folder


def write_challenge(folder: Path) -> Path:
    """Six case folders; the first three rows of every image are background."""
    for number in range(6):
        case = f"BraTS2021_{number:05d}"
        image, label = volume(number)
        image[:, :3] = 0
        (folder / case).mkdir(parents=True)
        for name, values in (*zip(SEQUENCES, image, strict=True), ("seg", label)):
            nibabel.save(nibabel.Nifti1Image(values, PLACE), folder / case / f"{case}_{name}.nii.gz")
    return folder
