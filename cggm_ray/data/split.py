"""The samples of a split, as the loop asks for them: in memory here, streamed where a dataset needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cggm_ray.batch import Batch
from cggm_ray.data.sampler import Slice
from cggm_ray.data.shards import IDENTITY, INDEX, TARGET, Manifest, column_values
from cggm_ray.errors import DataError


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
        """A batch for every slice of the plan, on the device.

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
    """

    def __init__(self, inputs: dict[str, Tensor], target: Tensor, names: Sequence[str] | None = None) -> None:
        self.inputs = inputs
        self.target = target
        self.names = names
        self.groups: int | None = None

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """See `Split`."""
        for part in plan:
            rows = part.index.to(self.target.device)
            yield Batch(
                inputs={name: values[rows] for name, values in self.inputs.items()},
                target=self.target[rows],
                index=part.index,
                weight=None if part.weight is None else part.weight.to(self.target.device),
            )


def load_split(
    folder: Path, manifest: Manifest, split: str, modalities: Sequence[str], device: torch.device
) -> TensorSplit:
    """Reads the shards of a split.

    Raises:
        DataError: a shard cannot be read, or rows are missing or doubled.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (INDEX, TARGET, *modalities)}
    names: list[str] = []
    for shard in manifest.splits[split]:
        path = folder / shard.file
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable shard: {error}; delete {folder} to make it anew") from None
        for name, values in columns.items():
            values.append(column_values(table.column(name)))
        if IDENTITY in table.column_names:
            names += table.column(IDENTITY).to_pylist()
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    rows = np.argsort(joined[INDEX])
    if not np.array_equal(joined[INDEX][rows], np.arange(manifest.rows(split))):
        raise DataError(f"{folder}: the rows of split {split} are not 0 to {manifest.rows(split) - 1}, each once")
    tensors = {name: torch.from_numpy(values[rows]).to(device) for name, values in joined.items() if name != INDEX}
    target = tensors.pop(TARGET)
    return TensorSplit(tensors, target, [names[row] for row in rows] if names else None)
