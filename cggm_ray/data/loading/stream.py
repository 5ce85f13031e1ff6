"""Streams the samples of a split that does not fit in memory from its shards while the loop trains.

The loop requests samples in the order that is a function of seed and epoch. Row groups hold a sample or a few, so any sample
can be read by itself. Threads read a few batches ahead; otherwise targets, names and the places of the samples stay in memory.
Where the order goes by windows of shards, `windows` reads instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import (
    about_columns,
    check_labelled,
    check_presence,
    drawn_of_several,
    full,
    read_masks,
    rows_in_order,
    unreadable,
    view_columns,
)
from cggm_ray.data.shards.packed import unpack
from cggm_ray.data.shards.reading import open_shard
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    TARGET,
    UNREADABLE,
    Manifest,
    TensorSpec,
    check_columns,
    column_values,
)

T = TypeVar("T")
U = TypeVar("U")

MOST_AHEAD = 8
MOST_THREADS = 4


def ahead(work: Callable[[T], U], items: Iterable[T], depth: int) -> Iterator[U]:
    """Yields `work(item)` for every item in order, and starts up to `depth` of them before they are needed."""
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(min(depth, MOST_THREADS), thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def device_batches(
    make: Callable[[Slice], Batch], plan: Iterable[Slice], depth: int, device: torch.device
) -> Iterator[Batch]:
    """Yields the batches of a plan on a device, made by threads ahead of their use.

    On the way to a GPU they lie in page-locked memory: from any other the copy would make the host wait.

    Args:
        make: makes a batch on the host; several threads call it.
        plan: of this worker.
        depth: batches that are made ahead.
        device: where they go.
    """
    pins = device.type == "cuda"
    for batch in ahead(lambda part: make(part).pinned() if pins else make(part), plan, depth):
        yield batch.to(device)


def read_ahead(
    make: Callable[[Slice], Batch],
    plan: Iterable[Slice],
    specs: Collection[TensorSpec],
    budget: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yields the batches of a plan in full precision, made by threads as far ahead as the budget allows.

    Args:
        make: makes a batch on the host, as its inputs are stored; several threads call it.
        plan: of this worker.
        specs: shapes and types of the inputs of one sample, as stored.
        budget: bytes of batches that may be in memory at once; two in full precision and two as stored are there in
            any case.
        device: where they go.
    """
    plan = list(plan) if isinstance(plan, Iterator) else plan
    # Only the last batches are smaller than the first one.
    samples = next((len(part.index) for part in plan), 1)
    stored = samples * sum(spec.bytes for spec in specs)
    wide = samples * sum(spec.bytes * (2 if spec.dtype == "float16" else 1) for spec in specs)
    # The loop holds a batch in full precision while the next is made; one more is waited for beside those ahead.
    depth = max(1, min(MOST_AHEAD, (budget - 2 * wide) // max(1, stored) - 1))
    for batch in device_batches(make, plan, depth, device):
        batch.inputs.update({name: full(values) for name, values in batch.inputs.items()})
        yield batch


class StreamSplit:
    """A split that stays in its shards. It implements `cggm_ray.data.loading.split.Split`.

    Args:
        folder: of the set.
        manifest: of the set.
        split: which one.
        modalities: to read.
        device: of the batches.
        seed: of the draw among several views of a sample.
        budget: bytes of batches that may be in memory at once; two in full precision and two as stored are there in
            any case.

    Raises:
        DataError: a shard cannot be read, rows are missing or doubled, or there are columns that mean something else.
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
    ) -> None:
        self.groups: int | None = None
        self._folder = folder
        self._device = device
        self._seed = seed
        self._budget = budget
        self._files = [folder / shard.file for shard in manifest.splits[split]]
        self._specs = {name: manifest.modalities[name] for name in modalities}
        small, places, names, stored = _survey(folder, manifest, self._files, modalities)
        rows = rows_in_order(small[INDEX], split, range(manifest.rows(split)), f"{folder}: the rows of split {split}")
        self._places = places[rows]
        columns = {name: torch.from_numpy(values[rows]) for name, values in small.items()}
        self._target = columns[TARGET]
        self.names: Sequence[str] | None = [names[row] for row in rows] if names else None
        self.masks = read_masks(columns, modalities, {name: spec.shape for name, spec in self._specs.items()})
        check_presence(self.masks, modalities, f"{folder}: split {split}", self.names)
        self._labelled = columns.get(LABELLED)
        check_labelled(self._labelled, split, folder, self.names)
        self._views = {name: view_columns(stored, name) for name in modalities}

    def __len__(self) -> int:
        return len(self._target)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields a batch for every slice of the plan, read ahead by threads."""
        drawn = drawn_of_several(len(self), self._views, self._seed, epoch)
        return read_ahead(lambda part: self._read(part, drawn), plan, self._specs.values(), self._budget, self._device)

    def _read(self, part: Slice, drawn: dict[str, Tensor]) -> Batch:
        rows = part.index.numpy()
        arrays = {name: np.empty((len(rows), *spec.shape), dtype=spec.dtype) for name, spec in self._specs.items()}
        of_views = {name: [self._views[name][int(view)] for view in drawn[name][part.index]] for name in drawn}
        columns = {name: of_views.get(name) or [name] * len(rows) for name in self._specs}
        by_group: dict[tuple[int, int], list[int]] = {}
        for place, (file, group, _) in enumerate(self._places[rows].tolist()):
            by_group.setdefault((file, group), []).append(place)
        for (file, group), places in by_group.items():
            wanted = sorted({columns[name][place] for name in columns for place in places})
            values = _row_group(self._folder, self._files[file], group, wanted)
            for place in places:
                offset = self._places[rows[place], 2]
                for name, array in arrays.items():
                    array[place] = values[columns[name][place]][offset]
        return self._batch(part, arrays)

    def _batch(self, part: Slice, arrays: dict[str, np.ndarray]) -> Batch:
        masks = {name: mask[part.index] for name, mask in self.masks.items()}
        return Batch(
            inputs={name: torch.from_numpy(array) for name, array in arrays.items()},
            target=self._target[part.index],
            index=part.index,
            present={name: mask.any(1) for name, mask in masks.items()} or None,
            weight=part.weight,
            masks=masks or None,
            labelled=None if self._labelled is None else self._labelled[part.index],
        )


def _survey(
    folder: Path, manifest: Manifest, files: Sequence[Path], modalities: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str], list[str]]:
    """Returns the small columns of all shards, the place of every row, the names, and the names of all columns.

    A place is (file, row group, offset in it); places are [rows, 3].

    Args:
        folder: of the set.
        manifest: of the set.
        files: of the split.
        modalities: to read.
    """
    small: dict[str, list[np.ndarray]] = {}
    places: list[np.ndarray] = []
    names: list[str] = []
    stored: list[str] = []
    for number, path in enumerate(files):
        try:
            with open_shard(path) as file:
                stored = file.schema_arrow.names
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                wanted = [INDEX, TARGET, *about_columns(stored, modalities)]
                views = [column for name in modalities for column in view_columns(stored, name)]
                check_columns(file.schema_arrow, manifest, [*wanted, *views])
                table = unpack(file.read([*wanted, *([IDENTITY] if IDENTITY in stored else [])]))
            for name in wanted:
                small.setdefault(name, []).append(column_values(table.column(name)))
        except UNREADABLE as error:
            raise unreadable(folder, path, error) from None
        if IDENTITY in stored:
            names += table.column(IDENTITY).to_pylist()
        rows = np.arange(sum(sizes))
        groups = np.repeat(np.arange(len(sizes)), sizes)
        within = rows - (np.cumsum(sizes) - sizes)[groups] if sizes else rows
        places.append(np.stack([np.full_like(rows, number), groups, within], axis=1).astype(np.int32))
    joined = {name: np.concatenate(values) for name, values in small.items()}
    return joined, np.concatenate(places), names, stored


def _row_group(folder: Path, path: Path, group: int, columns: list[str]) -> dict[str, np.ndarray]:
    try:
        with open_shard(path) as file:
            table = unpack(file.read_row_group(group, columns=columns, use_threads=False))
        return {column: column_values(table.column(column)) for column in columns}
    except UNREADABLE as error:
        raise unreadable(folder, path, error) from None
