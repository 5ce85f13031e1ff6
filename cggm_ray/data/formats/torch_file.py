"""Reads files of torch.save that hold tensors in dicts, lists and tuples; no code of a file is run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats.foreign import foreign_kind
from cggm_ray.data.formats.untrusted import check_size, reading

KIND = "file of torch.save"
_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
"""The name of a refused object in torch's message."""
_EXPECTED = "expected tensors, numbers and texts in dicts, lists and tuples"


def read_torch(path: Path) -> Any:
    """Returns what a file holds, with arrays in place of tensors.

    Raises:
        DataError: the file is damaged or older than torch 1.6, or holds other objects or tensors that numpy has not.
    """
    with reading(path, KIND):
        if not zipfile.is_zipfile(path):
            kind = foreign_kind(path)
            raise DataError(f"{path}: {kind or f'no {KIND}'}; expected one that torch 1.6 or a later one wrote")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise DataError(f"{path}: compressed inside; expected what torch.save writes")
        local = path.local() if hasattr(path, "local") else path
        try:
            content = torch.load(local, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = _OBJECT.search(str(error))
            what = "objects" if found is None else found[1]
            raise DataError(
                f"{path}: holds {what}; {_EXPECTED} (turn arrays into tensors by torch.from_numpy)"
            ) from None
        return _Converted(path).of(content, str(path))


class _Converted:
    """Arrays in place of tensors, whose bytes are counted, because a small file can name large tensors.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held, self._declared = path, path.stat().st_size, 0

    def of(self, value: Any, where: str) -> Any:
        """Returns a value without tensors."""
        if isinstance(value, Tensor):
            return self._array(value, where)
        if isinstance(value, Mapping):
            return {key: self.of(one, f"{where}, {key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(one, f"{where}, {row}") for row, one in enumerate(value)]
        if value is None or isinstance(value, str | bytes | int | float):
            return value
        raise DataError(f"{where}: found a {type(value).__name__}; {_EXPECTED}")

    def _array(self, tensor: Tensor, where: str) -> np.ndarray:
        self._declared += tensor.numel() * tensor.element_size()
        check_size(self._declared, self._held, str(self._path))
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise DataError(f"{where}: found a sparse or quantised tensor; expected a dense one")
        tensor = tensor.detach()
        # numpy has no such type; all its values are those of float32.
        array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array
