"""Parquet shards with Arrow tensors, and the manifest that makes a folder of them a data set.

A set is a folder `<dataset>-<fingerprint>` with `manifest.json` and one parquet file a shard. It is written under another
name and renamed when it is complete, so a folder of that name is whole or does not exist.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError, listed, reason, short_repr
from cggm_ray.data.shards.packed import pack, tensor_type
from cggm_ray.data.shards.progress import Progress
from cggm_ray.storage.files import file_digest
from cggm_ray.storage.places import is_local, new_file
from cggm_ray.storage.urls import UrlPath

FORMAT = 3
MANIFEST = "manifest.json"
INDEX, IDENTITY, TARGET, LABELLED = "index", "id", "target", "labelled"
"""Columns that are no modality. `labelled` (bool) is there where some samples have no label; their target is 0."""
RESERVED = (INDEX, IDENTITY, TARGET, LABELLED)
PREDICT = "predict"
"""Name of the only split of a set to predict. Its samples are numbered in the order of its shards."""
VIEW, PRESENT, STEPS = "view/", "present/", "steps/"
"""Prefixes of columns about a modality: a further view of it, `view/1/image`, ... (view 0 is the column of the modality
itself); bool, whether a sample has it; int64, its time steps before the padding."""
UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""Errors that reading a damaged shard raises."""
SHARD_NAME = re.compile(r"(train|valid|test|predict)-\d{5,}\.parquet")
MOST_SOURCES = 3
"""Number of raw files that a message names."""
ROW_GROUP_BYTES = 2**18
"""Size of a row group, which is the least that a streamed split reads for one row."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and type of one sample."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One parquet file of a split."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One raw file."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content and origin of a set. `notes` are plain values that its dataset needs again."""

    dataset: str
    converter: int
    options: dict[str, Any]
    sources: tuple[Source, ...]
    modalities: dict[str, TensorSpec]
    target: TensorSpec
    splits: dict[str, tuple[Shard, ...]]
    notes: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def rows(self, split: str) -> int:
        """Returns the number of samples of a split."""
        return sum(shard.rows for shard in self.splits[split])

    def to_json(self) -> str:
        """Returns the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1)

    def spec(self, column: str) -> TensorSpec:
        """Returns the shape and type of a sample in a column of the shards."""
        if column == TARGET:
            return self.target
        if column == LABELLED or column.startswith(PRESENT):
            return TensorSpec(shape=(), dtype="bool")
        if column == INDEX or column.startswith(STEPS):
            return TensorSpec(shape=(), dtype="int64")
        return self.modalities[column.split("/", 2)[2] if column.startswith(VIEW) else column]

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads `manifest.json`; raises ValueError, KeyError or TypeError if it is not valid."""
        raw = json.loads(text)
        if raw.pop("format") != FORMAT:
            raise ValueError("another format")
        for name in (shard["file"] for shards in raw["splits"].values() for shard in shards):
            # A set is read and replaced by these names, so none may lead out of its folder.
            if not SHARD_NAME.fullmatch(name):
                raise ValueError(f"{short_repr(name)} is no name of a shard")
        counts = [shard[what] for shards in raw["splits"].values() for shard in shards for what in ("rows", "bytes")]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a shard without a number of rows or bytes")

        def spec(value: Mapping[str, Any]) -> TensorSpec:
            if str(np.dtype(value["dtype"])) != value["dtype"]:
                raise ValueError(f"{short_repr(value['dtype'])} is no name of a type")
            return TensorSpec(shape=tuple(value["shape"]), dtype=value["dtype"])

        return cls(
            dataset=raw["dataset"],
            converter=raw["converter"],
            options=raw["options"],
            sources=tuple(Source(**source) for source in raw["sources"]),
            modalities={name: spec(value) for name, value in raw["modalities"].items()},
            target=spec(raw["target"]),
            splits={name: tuple(Shard(**shard) for shard in shards) for name, shards in raw["splits"].items()},
            notes=raw["notes"],
        )


@dataclass(frozen=True, kw_only=True)
class RawShard:
    """A table that becomes one shard, before the dataset's `transform`.

    Attributes:
        split, number: of the shard.
        table: its rows, or what says where they are.
        together: shards of one such text that follow each other are made by one task, in their order, because each reads on
            where the one before has stopped.
    """

    split: str
    number: int
    table: pa.Table
    together: str = ""

    @property
    def file(self) -> str:
        """Name of the parquet file."""
        return f"{self.split}-{self.number:05d}.parquet"


Transform = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a conversion; a set is converted by a sequence of them, each working on whole tables.

    Attributes:
        make: makes the function of a table, in the process that will call it. It is pickled.
        pooled: what is made is expensive and used again, such as a model: a few long-lived processes make it, each with a
            GPU if there are any. Otherwise every task makes it.
    """

    make: Callable[[], Transform]
    pooled: bool = False


WriteShards = Callable[[Sequence[Stage], Sequence[RawShard], Path], list[Shard]]
"""A function that maps (stages, raw shards, folder) to the written shards in the same order."""


def is_modality(column: str) -> bool:
    """Returns whether a column of a shard holds a modality."""
    return column not in RESERVED and not column.startswith((VIEW, PRESENT, STEPS))


def tensor_column(values: np.ndarray) -> pa.Array:
    """Returns the values [N, ...] as an Arrow column of fixed-shape tensors."""
    if values.ndim == 1:
        return pa.array(values)
    if values.dtype.kind == "b":
        # Arrow has no tensors of bits. Bytes with a sign are no pixels, and so nothing scales them.
        values = values.astype(np.int8)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def check_columns(schema: pa.Schema, manifest: Manifest, columns: Iterable[str]) -> None:
    """Raises a ValueError if a shard lacks a column, or if a column differs from the manifest."""
    for name in columns:
        if name not in schema.names:
            raise ValueError(f"there is no column {name}")
        (kind, shape), wanted = tensor_type(schema.field(name)), manifest.spec(name)
        if kind != pa.from_numpy_dtype(wanted.dtype) or shape != wanted.shape:
            raise ValueError(
                f"column {short_repr(name)} holds {short_repr(str(kind))} of shape {shape}; expected {wanted.dtype} of shape "
                f"{wanted.shape}"
            )


def column_values(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column as an array [N, ...]; raises ValueError if a cell is empty."""
    if column.null_count:
        raise ValueError("a cell is empty")
    chunks = [
        chunk.to_numpy_ndarray()
        if isinstance(chunk, pa.FixedShapeTensorArray)
        else chunk.to_numpy(zero_copy_only=False)
        for chunk in column.chunks
    ]
    return np.concatenate(chunks) if chunks else np.empty(0)


def write_shard(transform: Transform, raw: RawShard, folder: Path) -> Shard:
    """Transforms a table and writes it as one parquet file, in row groups small enough to read single samples.

    Raises:
        DataError: the folder cannot be written (disk full, no permission).
    """
    path = folder / raw.file
    try:
        table = transform(raw.table)
        with new_file(path) as partial:
            return _write(table, partial, raw.file)
    except OSError as error:
        raise DataError(f"{path}: cannot write the shard: {reason(error)}") from None


def _write(table: pa.Table, path: Path, name: str) -> Shard:
    rows = max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
    # Dictionaries and statistics of features cost time and space without a benefit.
    pq.write_table(
        pack(table), path, compression="lz4", row_group_size=rows, use_dictionary=False, write_statistics=False
    )
    return Shard(file=name, rows=table.num_rows, bytes=path.stat().st_size, sha256=file_digest(path))


def write_shards_here(stages: Sequence[Stage], raw: Sequence[RawShard], folder: Path) -> list[Shard]:
    """Writes all shards in this process."""
    transforms = [stage.make() for stage in stages]

    def transform(table: pa.Table) -> pa.Table:
        for one in transforms:
            table = one(table)
        return table

    progress = Progress(len(raw))
    return [progress.after(write_shard(transform, shard, folder)) for shard in raw]


def open_set(folder: Path) -> Manifest | None:
    """Returns the manifest of a complete set, or None if the manifest or a shard is missing or cut short.

    Raises:
        DataError: a store cannot be reached.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text())
        shards = [shard for split in manifest.splits.values() for shard in split]
        whole = all(size == shard.bytes for shard, size in zip(shards, _sizes(folder, shards), strict=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    except OSError as error:
        if is_local(folder) or isinstance(error, FileNotFoundError):
            return None
        raise DataError(f"{error.filename}: cannot be read: {reason(error)}") from None
    return manifest if whole else None


def _sizes(folder: Path, shards: Sequence[Shard]) -> list[int | None]:
    """Returns the bytes of every shard that is there; in a store by one listing."""
    if isinstance(folder, UrlPath):
        sizes = {entry.key.rpartition("/")[2]: entry.size for entry in folder.entries()}
        return [sizes.get(shard.file) for shard in shards]
    return [(folder / shard.file).stat().st_size for shard in shards]


def verify_set(folder: Path, manifest: Manifest) -> None:
    """Compares every shard with its checksum in the manifest.

    Raises:
        DataError: a shard has other bytes, or cannot be read; it is named with the raw files that the set was made from.
    """
    made = listed((source.path for source in manifest.sources), MOST_SOURCES, longest=1000)
    for shards in manifest.splits.values():
        for shard in shards:
            path = folder / shard.file
            try:
                digest = file_digest(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {reason(error)}; made from {made}") from None
            if digest != shard.sha256:
                raise DataError(
                    f"{path}: damaged: sha256 {digest[:12]}..., expected {shard.sha256[:12]}... as in {MANIFEST}; made from "
                    f"{made}; remove {folder} to make it again"
                )


def one_split(raw: Iterable[RawShard], split: str | None) -> Iterator[RawShard]:
    """Yields the raw shards of all splits, or of one, as those of the split `PREDICT`, numbered in their order."""
    number = 0
    for shard in raw:
        if split in (None, shard.split) and shard.table.num_rows:
            yield replace(shard, split=PREDICT, number=number)
            number += 1
