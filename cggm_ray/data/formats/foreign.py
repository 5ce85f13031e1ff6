"""Recognises files that a reader cannot use, and gives advice about them."""

from __future__ import annotations

import zipfile
from pathlib import Path

TORCH = "a file of torch.save; load it with torch.load, turn every tensor into an array with .numpy(), and pickle the arrays"
_UNPACK = "unpack it first"
_BEGINNINGS = {
    b"\x1f\x8b": f"compressed by gzip; {_UNPACK}",
    b"BZh": f"compressed by bzip2; {_UNPACK}",
    b"\xfd7zXZ\x00": f"compressed by xz; {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed by zstd; {_UNPACK}",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (.h5, .csd, or .mat of version 7.3); write its arrays with np.savez",
    b"MATLAB 5.0 MAT-file": "a MATLAB file; read it with scipy.io.loadmat and write its arrays with np.savez",
    b"\x93NUMPY": "one array of np.save; write modalities and target together with np.savez",
    b"ARROW1": "a file of Arrow or Feather; write it with pyarrow.parquet.write_table",
    b"PAR1": "a parquet file; name it .parquet",
    # torch.save without zip begins with its magic number, 0x1950a86a20f9469cfc6c, as a pickle of its own.
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19": TORCH,
    b"version https://git-lfs": "a pointer of git-lfs and not the file itself; fetch it with git lfs pull",
    b"<!DOCTYPE": "a web page and not the data; download the file itself",
    b"<html": "a web page and not the data; download the file itself",
}
_REMEDIES = {
    "torch": "it holds torch tensors; turn every tensor into an array with .numpy() and pickle the arrays",
    "pandas": "it holds a table of pandas; write it with DataFrame.to_parquet",
    "joblib": "a file of joblib.dump; write its arrays with np.savez",
    "scipy": "it holds sparse arrays of scipy; turn them into arrays with .toarray()",
}


def foreign_kind(path: Path) -> str | None:
    """Returns what the first bytes say about the kind of a file, with advice, or None if they say nothing.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(64)
    for start, kind in _BEGINNINGS.items():
        if beginning.startswith(start):
            return kind
    if beginning.startswith(b"PK\x03\x04"):
        return _archive(path)
    return None


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return "a zip file that is not whole"
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return "a file of np.savez; name it .npz"
    return f"a zip file; {_UNPACK}"


def remedy(module: str) -> str | None:
    """Returns advice about a pickle of objects from this module, or None if there is none."""
    return _REMEDIES.get(module.split(".")[0].lstrip("_"))
