"""Splits that give the loop its batches: this module holds samples in memory, others stream them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.core.seeding import generator
from cggm_ray.data.loading.sampler import Slice
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
    VIEW,
    Manifest,
    check_columns,
    column_values,
)


class Split(Protocol):
    """Samples of a split.

    Attributes:
        names: of the samples, where they have any.
        groups: number of volumes that the samples are slices of; None where samples stand alone.
    """

    names: Sequence[str] | None
    groups: int | None

    def __len__(self) -> int: ...

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields a batch for every slice of the plan, on the device.

        Args:
            plan: which samples, in order.
            epoch: for what is drawn anew in every epoch, such as augmentation; it must not depend on anything else that
                changes between runs.
        """
        ...


class TensorSplit:
    """All samples of a split, on one device.

    Args:
        inputs: by modality, [samples, ...].
        target: [samples, ...].
        names: of the samples, where they have any.
        masks: by modality, bool [samples, T] or [samples, 1], with the meaning of `Batch.masks`.
        views: by modality that has several views, [views, samples, ...]; one is drawn for every sample and epoch.
        seed: of the draw.
        labelled: bool [samples]; None where all have a label.
    """

    def __init__(
        self,
        inputs: dict[str, Tensor],
        target: Tensor,
        names: Sequence[str] | None = None,
        masks: dict[str, Tensor] | None = None,
        views: dict[str, Tensor] | None = None,
        seed: int = 0,
        labelled: Tensor | None = None,
    ) -> None:
        self.inputs = inputs
        self.target = target
        self.names = names
        self.masks = masks or {}
        self.views = views or {}
        self.seed = seed
        self.labelled = labelled
        self.groups: int | None = None

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields a batch for every slice of the plan, on the device."""
        drawn = {name: drawn_views(len(self), len(values), self.seed, epoch) for name, values in self.views.items()}
        for part in plan:
            # The copy does not wait, because a GPU is still busy with the step before.
            rows = part.index.to(self.target.device, non_blocking=True)
            masks = {name: mask[rows] for name, mask in self.masks.items()}
            inputs = {name: values[rows] for name, values in self.inputs.items()}
            for name, values in self.views.items():
                inputs[name] = values[drawn[name][part.index].to(rows.device, non_blocking=True), rows]
            yield Batch(
                inputs={name: full(values) for name, values in inputs.items()},
                target=self.target[rows],
                index=part.index,
                present={name: mask.any(1) for name, mask in masks.items()} or None,
                weight=None if part.weight is None else part.weight.to(self.target.device, non_blocking=True),
                masks=masks or None,
                labelled=None if self.labelled is None else self.labelled[rows],
            )


def drawn_views(samples: int, views: int, seed: int, epoch: int) -> Tensor:
    """Returns the view of every sample in an epoch, int64 [samples], as a function of seed, epoch and sample."""
    return torch.randint(views, (samples,), generator=generator(seed, "view", epoch))


def drawn_of_several(samples: int, views: Mapping[str, Sequence[str]], seed: int, epoch: int) -> dict[str, Tensor]:
    """Returns what `drawn_views` does for every modality of which there are several views.

    Args:
        samples: of the split.
        views: columns of the views by modality.
        seed: of the draw.
        epoch: for which is drawn.
    """
    several = {name: columns for name, columns in views.items() if len(columns) > 1}
    return {name: drawn_views(samples, len(columns), seed, epoch) for name, columns in several.items()}


def full(values: Tensor) -> Tensor:
    """Returns features that are stored in half precision in single precision, and anything else unchanged."""
    return values.float() if values.dtype == torch.float16 else values


def view_columns(columns: Sequence[str], modality: str) -> list[str]:
    """Returns the columns of a shard that hold the views of a modality, in their order."""
    further = [name for name in columns if name.startswith(VIEW) and name.split("/", 2)[2] == modality]
    return [modality, *sorted(further, key=lambda name: int(name.split("/")[1]))]


def set_bytes(folder: Path, manifest: Manifest, modalities: Sequence[str]) -> int:
    """Returns the bytes of memory that all splits of a set need.

    Raises:
        DataError: a shard cannot be read.
    """
    total = 0
    for split, shards in manifest.splits.items():
        columns = shard_columns(folder, folder / shards[0].file) if shards else []
        views = {name: len(view_columns(columns, name)) for name in modalities}
        sample = sum(manifest.modalities[name].bytes * views[name] for name in modalities)
        total += manifest.rows(split) * (sample + manifest.target.bytes)
    return total


def shard_columns(folder: Path, path: Path) -> list[str]:
    """Returns the names of the columns of a shard; raises DataError if it cannot be read."""
    try:
        with open_shard(path) as file:
            return file.schema_arrow.names
    except UNREADABLE as error:
        raise unreadable(folder, path, error) from None


def unreadable(folder: Path, path: Path, error: Exception) -> DataError:
    """Returns the error for a shard that cannot be read."""
    return DataError(f"{path}: not a readable shard: {error}; delete {folder} to make it anew")


def load_split(
    folder: Path, manifest: Manifest, split: str, modalities: Sequence[str], device: torch.device, seed: int = 0
) -> TensorSplit:
    """Reads the shards of a split into memory.

    Raises:
        DataError: a shard cannot be read, rows are missing or doubled, or a sample has none of the modalities.
    """
    first = manifest.splits[split][0]
    stored = shard_columns(folder, folder / first.file)
    views = {name: view_columns(stored, name) for name in modalities}
    wanted = [INDEX, TARGET, *(column for columns in views.values() for column in columns)]
    wanted += about_columns(stored, modalities)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    names: list[str] = []
    for shard in manifest.splits[split]:
        path = folder / shard.file
        try:
            check_columns(pq.read_schema(path), manifest, wanted)
            table = unpack(pq.read_table(path))
            for name, values in columns.items():
                values.append(column_values(table.column(name)))
        except UNREADABLE as error:
            raise unreadable(folder, path, error) from None
        if IDENTITY in table.column_names:
            names += table.column(IDENTITY).to_pylist()
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    rows = rows_in_order(joined[INDEX], split, range(manifest.rows(split)), f"{folder}: the rows of split {split}")
    tensors = {name: torch.from_numpy(values[rows]).to(device) for name, values in joined.items() if name != INDEX}
    identities = [names[row] for row in rows] if names else None
    masks = read_masks(tensors, modalities, {name: manifest.modalities[name].shape for name in modalities})
    check_presence(masks, modalities, f"{folder}: split {split}", identities)
    check_labelled(tensors.get(LABELLED), split, folder, identities)
    several = {name: torch.stack([tensors[c] for c in columns]) for name, columns in views.items() if len(columns) > 1}
    return TensorSplit(
        {name: tensors[name] for name in modalities if name not in several},
        tensors[TARGET],
        identities,
        masks,
        several,
        seed,
        tensors.get(LABELLED),
    )


def training_targets(folder: Path, manifest: Manifest) -> Tensor:
    """Returns the targets of the training split, [samples, values], without reading anything else of the shards.

    Raises:
        DataError: a shard cannot be read.
    """
    parts = []
    for shard in manifest.splits["train"]:
        path = folder / shard.file
        try:
            with open_shard(path) as file:
                target = column_values(unpack(file.read([TARGET])).column(TARGET))
        except UNREADABLE as error:
            raise unreadable(folder, path, error) from None
        parts.append(torch.from_numpy(target).reshape(len(target), -1))
    return torch.cat(parts)


def rows_in_order(index: np.ndarray, split: str, wanted: range, what: str) -> np.ndarray:
    """Returns the places of samples among rows, in the order of the samples.

    Samples to predict are in the order of the rows.

    Args:
        index: numbers of the samples by row, [rows].
        split: of the samples.
        wanted: the numbers that the rows should have.
        what: the rows, for the error.

    Raises:
        DataError: rows are missing or doubled.
    """
    rows = np.arange(len(index)) if split == PREDICT else np.argsort(index)
    found = rows + wanted.start if split == PREDICT else index[rows]
    if not np.array_equal(found, np.arange(wanted.start, wanted.stop)):
        raise DataError(f"{what} are not {wanted.start} to {wanted.stop - 1}, each once")
    return rows


def about_columns(stored: Sequence[str], modalities: Sequence[str]) -> list[str]:
    """Returns the columns of a shard about its samples: missing modalities and labels, and time steps without padding."""
    names = [prefix + name for name in modalities for prefix in (PRESENT, STEPS)]
    return [name for name in (*names, LABELLED) if name in stored]


def read_masks(
    columns: Mapping[str, Tensor], modalities: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Returns the masks of the modalities that have any, from the columns about steps and presence.

    Args:
        columns: values by column name, [samples].
        modalities: to look for.
        shapes: of one sample of each modality, [T, ...].
    """
    masks = {}
    for name in modalities:
        if STEPS + name in columns:
            steps = torch.arange(shapes[name][0], device=columns[STEPS + name].device)
            masks[name] = steps < columns[STEPS + name][:, None]
        elif PRESENT + name in columns:
            masks[name] = columns[PRESENT + name].bool()[:, None]
    return masks


def check_presence(
    masks: Mapping[str, Tensor], modalities: Sequence[str], where: str, names: Sequence[str] | None, first: int = 0
) -> None:
    """Raises a DataError if a sample has none of the modalities.

    Args:
        masks: of some samples, as `read_masks` returns them.
        modalities: that the network takes.
        where: the samples are, for the error.
        names: of all samples of the split, where they have any.
        first: number in the split of the first of these samples.

    Raises:
        DataError: names the first of them.
    """
    if len(masks) < len(modalities):
        return
    there = torch.stack([mask.any(1) for mask in masks.values()]).any(0)
    if not bool(there.all()):
        bad = first + int((~there).nonzero()[0])
        raise DataError(
            f"{where}, sample {names[bad] if names else bad} has none of the modalities {', '.join(modalities)}; "
            "expected at least one"
        )


def check_labelled(
    labelled: Tensor | None, split: str, folder: Path, names: Sequence[str] | None, first: int = 0
) -> None:
    """Raises a DataError if samples lack a label and are not only predicted.

    Args:
        labelled: bool [samples]; None where all have a label.
        split: of the samples.
        folder: of the set.
        names: of all samples of the split, where they have any.
        first: number in the split of the first of these samples.

    Raises:
        DataError: names the first of them.
    """
    if split == PREDICT or labelled is None or bool(labelled.all()):
        return
    bad = first + int((~labelled).nonzero()[0])
    raise DataError(
        f"{folder}: split {split}, sample {names[bad] if names else bad} has no label; expected one for every sample"
    )
