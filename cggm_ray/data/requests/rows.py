"""Requests with the rows of a table, or with raw features: they are read by the dataset itself, as a file of new data is.

A request is checked and encoded as `predict` does it. The file and its shards are in a temporary folder until it is answered.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.new_data import prepare_new
from cggm_ray.data.requests.arrays import array_schema, number_array
from cggm_ray.data.requests.base import FORMS, RequestForm, Sample
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import PREDICT, write_shards_here

SINGLE = ("categorical", "numeric", "text")
"""Kinds of columns whose cells are no lists."""
CONTENT = "base64"
"""Name of the content of a file, in the place of a path: a service opens no file for a request."""


class Rows(RequestForm):
    """Samples that become a parquet file, one a row."""

    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """Yields all samples in one batch; a row after them may say the shapes of what all of them lack."""
        names = list(self.properties())
        columns = {
            name: [self.cell(number, name, row.get(name)) for number, row in enumerate(samples)] for name in names
        }
        further = self.shapes([name for name, cells in columns.items() if all(cell is None for cell in cells)])
        if further:
            columns = {name: [*cells, further.get(name)] for name, cells in columns.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.parquet"
            try:
                pq.write_table(pa.table({name: _column(name, cells) for name, cells in columns.items()}), path)
                split = self._split(path, Path(folder))
            except DataError as error:
                # Whoever sent the samples knows no file, and need not know where the service keeps them.
                raise DataError(str(error).replace(str(path), "samples").replace(folder, "samples")) from None
            yield from split.batches([Slice.whole(torch.arange(len(split)))], epoch=0)

    def _split(self, path: Path, folder: Path) -> Any:
        settings = self.plan.dataset.settings
        data = dataclasses.replace(settings.data, data_path=str(path), verify=False)
        dataset = type(self.plan.dataset)(dataclasses.replace(settings, data=data, shard_root=folder / "shards"))
        shards, _ = prepare_new(dataset, path, self.plan.trained, self.plan.modalities, None, write_shards_here)
        return dataset.open_split(shards, open_manifest(shards), PREDICT, self.plan.modalities, self.plan.device)

    def cell(self, number: int, name: str, value: Any) -> Any:
        """Returns a value as the file has it.

        Raises:
            DataError: it is of a kind that no such column has.
        """
        return value

    def shapes(self, missing: Sequence[str]) -> Mapping[str, Any]:
        """Returns cells for columns that no sample has, where the file must say their shape."""
        return {}


@FORMS.register("features")
class FeatureRows(Rows):
    """A sample is a raw array for every modality, as in a file of features; null where it is missing."""

    def properties(self) -> dict[str, Any]:
        """Returns nested lists of numbers by modality."""
        found = {name: array_schema(self.plan.trained.modalities[name].shape) for name in self.plan.modalities}
        for name in self._bytes:
            found[name]["description"] += "; whole numbers from 0 to 255"
        return found

    def cell(self, number: int, name: str, value: Any) -> Any:
        """Returns an array of the type that it had in the training data, because bytes are scaled and other numbers are not."""
        if value is None:
            return None
        array = number_array(number, name, value)
        if name not in self._bytes:
            return array
        if (array != array.round()).any() or array.min() < 0 or array.max() > 255:
            raise DataError(f"sample {number}, {name}: expected whole numbers from 0 to 255, as in the training data")
        return array.astype(np.uint8)

    def shapes(self, missing: Sequence[str]) -> Mapping[str, Any]:
        """Returns zeros of the shape of the training data."""
        types = {name: np.uint8 if name in self._bytes else np.float32 for name in missing}
        return {name: np.zeros(self.plan.trained.modalities[name].shape, kind) for name, kind in types.items()}

    @property
    def _bytes(self) -> tuple[str, ...]:
        return tuple(self.plan.trained.notes.get("bytes", ()))


@FORMS.register("table")
class TableRows(Rows):
    """A sample is a row: a cell for every column; null, or left out, where it is missing."""

    def properties(self) -> dict[str, Any]:
        """Returns cells by column."""
        return {name: self._schema(name) for name in self._columns}

    def cell(self, number: int, name: str, value: Any) -> Any:
        """Returns a cell, which is the content of a file in a column of media."""
        if value is None or not self._is_media(name):
            if isinstance(value, dict) or (isinstance(value, list) and self._is_single(name)):
                found = "an object" if isinstance(value, dict) else "a list"
                raise DataError(
                    f"sample {number}, {name}: found {found}; expected a cell of a {self._kind(name)} column"
                )
            return value
        content = value.get(CONTENT) if isinstance(value, dict) and len(value) == 1 else None
        try:
            return base64.b64decode(content, validate=True)  # type: ignore[arg-type]
        except (binascii.Error, TypeError, ValueError):
            raise DataError(
                f'sample {number}, {name}: expected the content of a file, {{"{CONTENT}": "..."}}; a service opens no file'
            ) from None

    @property
    def _columns(self) -> Mapping[str, Mapping[str, Any]]:
        columns: Mapping[str, Mapping[str, Any]] = self.plan.trained.notes["columns"]
        return columns

    def _kind(self, name: str) -> str:
        return str(self._columns[name]["kind"])

    def _is_single(self, name: str) -> bool:
        return self._kind(name) in SINGLE

    def _is_media(self, name: str) -> bool:
        # Here, because columns need libraries that other datasets do without.
        from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS
        from cggm_ray.data.datasets.table.media import MediaKind

        return isinstance(COLUMN_KINDS.get(self._kind(name)), MediaKind)

    def _schema(self, name: str) -> dict[str, Any]:
        about = {"description": f"{self._kind(name)}; null, or left out, where it is missing"}
        if not self._is_media(name):
            several = [] if self._is_single(name) else ["array"]
            return about | {"type": ["number", "string", "boolean", *several, "null"]}
        content = {"type": "string", "contentEncoding": "base64"}
        return about | {
            "type": ["object", "null"],
            "properties": {CONTENT: content},
            "required": [CONTENT],
            "additionalProperties": False,
        }


def _column(name: str, cells: Sequence[Any]) -> pa.Array:
    if all(cell is None for cell in cells):
        return pa.nulls(len(cells), pa.string())
    try:
        # Nested lists of arrays, because the file may hold arrays of several lengths.
        kinds = {cell.dtype.type for cell in cells if isinstance(cell, np.ndarray)}
        if kinds:
            (kind,) = kinds
            return pa.array([None if cell is None else cell.tolist() for cell in cells], _nested(cells, kind))
        return pa.array(cells)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"samples, {name}: {' '.join(str(error).split())}; expected values of one kind") from None


def _nested(arrays: Sequence[Any], kind: type[np.generic]) -> pa.DataType:
    """The type of nested lists of numbers, as deep as the arrays are; they must be of one depth."""
    depths = {array.ndim for array in arrays if array is not None}
    if len(depths) > 1:
        raise pa.ArrowInvalid(f"arrays of {len(depths)} different numbers of axes")
    found: pa.DataType = pa.from_numpy_dtype(kind)
    for _ in range(depths.pop()):
        found = pa.list_(found)
    return found
