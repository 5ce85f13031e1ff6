"""Reads .npz files: small arrays whole, large ones by rows."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from cggm_ray.core.errors import DataError, listed
from cggm_ray.data.formats.columns import Column
from cggm_ray.data.formats.foreign import foreign_kind
from cggm_ray.data.formats.safe_pickle import check_npy, load_objects, npy_header
from cggm_ray.data.formats.stored import Header, StoredColumn, is_large
from cggm_ray.data.formats.untrusted import check_size, reading
from cggm_ray.storage.cache import cached

LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a file in a zip: the lengths of its name and of its extra field are the last of 30 bytes."""
READ_BYTES = 2**20


class NpzColumn(StoredColumn):
    """An array of an .npz file. A compressed one is read from an unpacked copy in the cache of the node.

    Args:
        path: of the file.
        member: name in it.
        offset: of the values, in the file or in the unpacked copy.
        header: shape, order and type.
        packed: size and time of the file if the array is compressed; they are part of the copy's name.
        unpacked: bytes of the unpacked copy.
    """

    def __init__(self, path: Path, member: str, offset: int, header: Header, packed: str | None, unpacked: int) -> None:
        super().__init__(path, offset, header)
        self.member, self.packed, self.unpacked = member, packed, unpacked

    def file(self) -> Path:
        """Returns the file that the values lie in as they are in memory."""
        if self.packed is None:
            return super().file()
        unpack = functools.partial(_unpack, self.path, self.member)
        return cached(f"{self.path}/{self.member}", self.packed, self.unpacked, unpack)


def read_npz(
    path: Path, wanted: Callable[[str], bool], *, by_rows: bool = False
) -> tuple[dict[str, np.ndarray | Column], list[str]]:
    """Returns the wanted arrays, and the names of all.

    Args:
        path: of the file.
        wanted: whether an array is of use, by its name.
        by_rows: large arrays of samples that are no single numbers are read by rows; here they are read once to compare their
            checksums, a part at a time.

    Raises:
        DataError: names file and array.
    """
    with reading(path, ".npz file"):
        kind = foreign_kind(path)
        if kind is not None and not kind.endswith("name it .npz") and path.stat().st_size:
            raise DataError(f"{path}: no .npz file but {kind}")
    with reading(path, ".npz file"), zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
        chosen = {name: member for name, member in members.items() if wanted(name)}
        declared = sum(member.file_size for member in chosen.values())
        check_size(
            declared, path.stat().st_size, f"{path}: arrays {listed(chosen)}", "np.savez keeps them uncompressed"
        )
        found: dict[str, np.ndarray | Column] = {}
        for name, member in chosen.items():
            where = f"{path}, field {name}"
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{where}: compressed by method {member.compress_type}; expected what np.savez writes")
            with archive.open(member) as file:
                shape, fortran, dtype = npy_header(file)
                start = file.tell()
                if dtype.hasobject:
                    found[name] = load_objects(file, path, member.file_size)
                    continue
                check_npy(shape, dtype, member.file_size - start, where)
            if by_rows and len(shape) > 1 and dtype.kind in "biufc" and is_large(shape, dtype):
                found[name] = _column(path, archive, member, start, (shape, fortran, dtype))
                continue
            with archive.open(member) as file:
                found[name] = npy.read_array(file, allow_pickle=False)
        return found, list(members)


def _column(
    path: Path,
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    start: int,
    header: Header,
) -> Column:
    """Returns an array that is read by rows, after its bytes were compared with the checksum in the file."""
    if member.compress_type == zipfile.ZIP_DEFLATED:
        stat = os.stat(path)
        column = NpzColumn(
            path, member.filename, start, header, f"{stat.st_size} {stat.st_mtime_ns} {member.CRC}", member.file_size
        )
        column.file()
        return column
    with archive.open(member) as file:
        while file.read(READ_BYTES):
            pass
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        names, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    offset = member.header_offset + LOCAL_HEADER.size + names + extra + start
    return NpzColumn(path, member.filename, offset, header, None, 0)


def _unpack(path: Path, member: str, target: Path) -> None:
    """Writes an array of an .npz file as it is in memory, with its header."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, READ_BYTES)
