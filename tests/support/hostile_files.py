"""Files that attack their reader, and damage to whole files."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
from food101_files import edit
from PIL import Image

Spoil = Callable[[Path], object]
"""Damages whole data in a folder."""


def cut(path: Path) -> object:
    return path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def npz_header(shape: tuple[int, ...]) -> bytes:
    """An archive whose array says that it has this shape, and has 8 bytes."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8))
    return packed.getvalue()


def npz_bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(2**20))
    return packed.getvalue()


def linked(folder: Path) -> None:
    """The label of a case is a link to the label of another file."""
    with h5py.File(folder / "train" / "case0.h5", "r+") as file:
        del file["label"]
        file["label"] = h5py.ExternalLink(str(folder / "train" / "case1.h5"), "label")


def absurd(folder: Path) -> None:
    """A few hundred bytes that say they are a terabyte of image."""
    with h5py.File(folder / "train" / "case0.h5", "r+") as file:
        for key, shape in (("image", (4, 65536, 4096, 1024)), ("label", (65536, 4096, 1024))):
            del file[key]
            file.create_dataset(key, shape=shape, dtype="f2", chunks=True, fillvalue=1)


def nifti(name: str, values: np.ndarray) -> Spoil:
    path = f"BraTS2021_00001/BraTS2021_00001_{name}.nii.gz"
    return lambda folder: nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / path)


def moved_nifti(folder: Path) -> None:
    path = folder / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz"
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] -= 1
    nibabel.save(nibabel.Nifti1Image(np.array(image.dataobj), affine), path)


def huge_nifti(folder: Path) -> None:
    path = folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    path.unlink()
    header = nibabel.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)).header
    header["dim"][1:4] = 32767
    path.with_suffix("").write_bytes(header.binaryblock + bytes(40))


def record(key: str, value: Any) -> Spoil:
    return lambda folder: edit(folder / "train.json", lambda content: content[2].__setitem__(key, value))


def picture(form: str, size: tuple[int, int]) -> Spoil:
    return lambda folder: Image.new("1" if form == "PNG" else "RGB", size).save(folder / "images" / "5.jpg", form)


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
POINTERS = (
    b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR(I1\n(I2\ntcnumpy\ndtype\n(VO8\nI00\nI01\ntR"
    b"(I3\nV|\nNNNI-1\nI-1\nI0\ntbI00\nC\x10AAAAAAAAAAAAAAAAtb."
)
