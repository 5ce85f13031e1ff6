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
from cggm_ray.data.shards import IDENTITY, INDEX, PRESENT, STEPS, TARGET, Manifest, column_values
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
        masks: by modality, bool [samples, T] or [samples, 1]; see `Batch.masks`.
    """

    def __init__(
        self,
        inputs: dict[str, Tensor],
        target: Tensor,
        names: Sequence[str] | None = None,
        masks: dict[str, Tensor] | None = None,
    ) -> None:
        self.inputs = inputs
        self.target = target
        self.names = names
        self.masks = masks or {}
        self.groups: int | None = None

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """See `Split`."""
        for part in plan:
            rows = part.index.to(self.target.device)
            masks = {name: mask[rows] for name, mask in self.masks.items()}
            yield Batch(
                inputs={name: values[rows] for name, values in self.inputs.items()},
                target=self.target[rows],
                index=part.index,
                present={name: mask.any(1) for name, mask in masks.items()} or None,
                weight=None if part.weight is None else part.weight.to(self.target.device),
                masks=masks or None,
            )


def load_split(
    folder: Path, manifest: Manifest, split: str, modalities: Sequence[str], device: torch.device
) -> TensorSplit:
    """Reads the shards of a split.

    Raises:
        DataError: a shard cannot be read, rows are missing or doubled, or a sample has none of the modalities.
    """
    wanted = [*(prefix + name for name in modalities for prefix in ("", PRESENT, STEPS)), INDEX, TARGET]
    columns: dict[str, list[np.ndarray]] = {}
    names: list[str] = []
    for shard in manifest.splits[split]:
        path = folder / shard.file
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable shard: {error}; delete {folder} to make it anew") from None
        for name in wanted:
            if name in table.column_names:
                columns.setdefault(name, []).append(column_values(table.column(name)))
        if IDENTITY in table.column_names:
            names += table.column(IDENTITY).to_pylist()
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    rows = np.argsort(joined[INDEX])
    if not np.array_equal(joined[INDEX][rows], np.arange(manifest.rows(split))):
        raise DataError(f"{folder}: the rows of split {split} are not 0 to {manifest.rows(split) - 1}, each once")
    tensors = {name: torch.from_numpy(values[rows]).to(device) for name, values in joined.items() if name != INDEX}
    names = [names[row] for row in rows] if names else []
    masks = _masks(tensors, modalities)
    if len(masks) == len(modalities):
        there = torch.stack([mask.any(1) for mask in masks.values()]).any(0)
        if not bool(there.all()):
            bad = int((~there).nonzero()[0])
            raise DataError(
                f"{folder}: split {split}, sample {names[bad] if names else bad} has none of the modalities "
                f"{', '.join(modalities)}; expected at least one"
            )
    return TensorSplit({name: tensors[name] for name in modalities}, tensors[TARGET], names or None, masks)


def _masks(tensors: dict[str, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """Masks of the modalities that have any, from the columns about steps and presence."""
    masks = {}
    for name in modalities:
        if STEPS + name in tensors:
            steps = torch.arange(tensors[name].shape[1], device=tensors[name].device)
            masks[name] = steps < tensors[STEPS + name][:, None]
        elif PRESENT + name in tensors:
            masks[name] = tensors[PRESENT + name][:, None]
    return masks
