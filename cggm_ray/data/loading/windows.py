"""Streams a split in the order of windows of shards, and holds nothing that is as long as the split.

What is known of a split is how many samples each shard has. The samples of a shard follow those of the shard before it, so
the place of a sample follows from its number. Targets, masks and names are read with the shard that holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.data.loading.held import FetchAhead, Held, check_window
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import (
    about_columns,
    check_labelled,
    check_presence,
    drawn_of_several,
    read_masks,
    rows_in_order,
    shard_columns,
    unreadable,
    view_columns,
)
from cggm_ray.data.loading.stream import ahead, read_ahead
from cggm_ray.data.shards.packed import unpack
from cggm_ray.data.shards.reading import open_shard
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    PREDICT,
    PRESENT,
    STEPS,
    TARGET,
    UNREADABLE,
    Manifest,
    check_columns,
    column_values,
)
from cggm_ray.storage.places import is_local

NAMES_HELD = 2
"""Shards whose names stay in memory."""
CHECKED_AHEAD = 4
"""Shards that are read at the same time when a split is opened."""


class WindowSplit:
    """A split that stays in its shards, of which two windows are in memory. It implements `data.loading.split.Split`.

    A shard is read, and checked, when a sample of it is needed. When the split is opened, the columns that say which modalities
    a sample has are gone through, but only where a sample may have none.

    Args:
        folder: of the set.
        manifest: of the set.
        split: which one.
        modalities: to read.
        device: of the batches.
        seed: of the draw among several views of a sample.
        budget: bytes of batches that may be in memory at once; two in full precision and two as stored are there in
            any case.
        window: shards that the order goes through together, at least 1.

    Raises:
        DataError: a shard cannot be read, or a sample has none of the modalities or no label.
        UsageError: the shards of two windows are larger than the budget.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        modalities: Sequence[str],
        device: torch.device,
        seed: int,
        budget: int,
        window: int,
    ) -> None:
        self.groups: int | None = None
        shards = manifest.splits[split]
        check_window(window, budget, [shard.bytes for shard in shards])
        self._folder, self._manifest, self._split = folder, manifest, split
        self._device, self._seed, self._budget, self._window = device, seed, budget, window
        self._specs = {name: manifest.modalities[name] for name in modalities}
        self._files = [folder / shard.file for shard in shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        stored = shard_columns(folder, self._files[0])
        self._views = {name: view_columns(stored, name) for name in modalities}
        self._about = about_columns(stored, modalities)
        self.names: Sequence[str] | None = None
        if IDENTITY in stored:
            self.names = StoredNames(folder, self._files, self._starts, split)
        self._held: Held[int, dict[str, np.ndarray]] = Held(self._load, 2 * window)
        self._check_samples()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields a batch for every slice of the plan, read ahead by threads.

        Raises:
            DataError: a shard cannot be read, or does not have the samples that follow those of the shard before it.
        """
        drawn = drawn_of_several(len(self), self._views, self._seed, epoch)
        # It is gone through twice where files are copied ahead.
        plan = list(plan) if isinstance(plan, Iterator) else plan
        fetch = None if is_local(self._folder) else FetchAhead(self._needed(plan), self._window)
        try:
            yield from read_ahead(
                lambda part: self._read(part, drawn, fetch), plan, self._specs.values(), self._budget, self._device
            )
        finally:
            if fetch is not None:
                fetch.close()

    def _shards_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _needed(self, plan: Iterable[Slice]) -> Iterator[Path]:
        """Yields the files of a plan in their order, those of a batch once."""
        for part in plan:
            for number in dict.fromkeys(self._shards_of(part.index.numpy()).tolist()):
                yield self._files[number]

    def _load(self, number: int) -> dict[str, np.ndarray]:
        """Returns what batches need of a shard by column, [rows, ...], in the order of its samples."""
        path = self._files[number]
        views = [column for columns in self._views.values() for column in columns]
        wanted = [TARGET, *self._about, *views]
        try:
            # A file of a store is copied into the cache of the node first.
            with pq.ParquetFile(path) as file:
                check_columns(file.schema_arrow, self._manifest, [INDEX, *wanted])
                table = unpack(file.read([INDEX, *wanted]))
            columns = {name: column_values(table.column(name)) for name in [INDEX, *wanted]}
        except UNREADABLE as error:
            raise unreadable(self._folder, path, error) from None
        start, stop = self._starts[number], self._starts[number + 1]
        rows = rows_in_order(columns[INDEX], self._split, range(start, stop), f"{path}: the rows")
        in_order = np.array_equal(rows, np.arange(len(rows)))
        return {name: columns[name] if in_order else columns[name][rows] for name in wanted}

    def _read(self, part: Slice, drawn: Mapping[str, Tensor], fetch: FetchAhead | None) -> Batch:
        rows = part.index.numpy()
        shards = self._shards_of(rows)
        found: dict[str, np.ndarray] = {}
        for number in np.unique(shards):
            if fetch is not None:
                fetch.needs(self._files[number])
            columns = self._held.get(int(number))
            places = np.flatnonzero(shards == number)
            offsets = rows[places] - self._starts[number]
            for name in (TARGET, *self._about, *self._specs):
                values = columns[name]
                if name not in found:
                    found[name] = np.empty((len(rows), *values.shape[1:]), values.dtype)
                if name not in drawn:
                    found[name][places] = values[offsets]
                    continue
                for place, offset in zip(places, offsets, strict=True):
                    view = self._views[name][int(drawn[name][rows[place]])]
                    found[name][place] = columns[view][offset]
        tensors = {name: torch.from_numpy(values) for name, values in found.items()}
        masks = self._masks(tensors)
        return Batch(
            inputs={name: tensors[name] for name in self._specs},
            target=tensors[TARGET],
            index=part.index,
            present={name: mask.any(1) for name, mask in masks.items()} or None,
            weight=part.weight,
            masks=masks or None,
            labelled=tensors.get(LABELLED),
        )

    def _masks(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return read_masks(columns, list(self._specs), {name: spec.shape for name, spec in self._specs.items()})

    def _check_samples(self) -> None:
        """Raises a DataError for the first sample that has no modality or no label; reads the columns that say so."""
        # A modality without such a column is there in every sample.
        always = any(not {PRESENT + name, STEPS + name} & {*self._about} for name in self._specs)
        wanted = [name for name in self._about if name == LABELLED or not always]
        if not wanted:
            return
        where = f"{self._folder}: split {self._split}"
        parts = ahead(lambda number: self._columns_about(number, wanted), range(len(self._files)), CHECKED_AHEAD)
        for first, columns in zip(self._starts.tolist(), parts, strict=False):
            check_presence(self._masks(columns), list(self._specs), where, self.names, first)
            check_labelled(columns.get(LABELLED), self._split, self._folder, self.names, first)

    def _columns_about(self, number: int, wanted: Sequence[str]) -> dict[str, Tensor]:
        table, order = samples_of(self._folder, self._files[number], self._split, wanted)
        return {name: torch.from_numpy(column_values(table.column(name))[order]) for name in wanted}


class StoredNames(Sequence[str]):
    """The names of samples, read from the shards that hold them; those of the shards that were used last stay.

    Args:
        folder: of the set.
        files: of the split.
        starts: the number of every shard's first sample, and of all samples, int64 [shards + 1].
        split: which one.
    """

    def __init__(self, folder: Path, files: Sequence[Path], starts: np.ndarray, split: str) -> None:
        self._folder, self._files, self._starts, self._split = folder, files, starts, split
        self._held: Held[int, list[str]] = Held(self._load, NAMES_HELD)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        """Returns the name of a sample, or those of several.

        Raises:
            DataError: a shard cannot be read.
            IndexError: there is no such sample.
        """
        if isinstance(place, slice):
            return [self._name(number) for number in range(*place.indices(len(self)))]
        return self._name(range(len(self))[place])

    def _name(self, number: int) -> str:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._held.get(shard)[number - int(self._starts[shard])]

    def _load(self, number: int) -> list[str]:
        table, order = samples_of(self._folder, self._files[number], self._split, [IDENTITY])
        return table.column(IDENTITY).take(order).to_pylist()


def samples_of(folder: Path, path: Path, split: str, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
    """Returns small columns of a shard, of which nothing else is read, and the places of its samples in their order.

    Raises:
        DataError: the shard cannot be read.
    """
    try:
        with open_shard(path) as file:
            table = unpack(file.read([INDEX, *columns]))
        index = column_values(table.column(INDEX))
    except UNREADABLE as error:
        raise unreadable(folder, path, error) from None
    return table, np.arange(len(index)) if split == PREDICT else np.argsort(index)
