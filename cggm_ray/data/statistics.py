"""Mean and standard deviation of every feature over the training split, in memory that does not grow with the split.

Each shard gives the moments of its own rows; they are merged in the order of the shards (Chan, Golub and LeVeque, 1979), so the
result is the same to the last bit for any number of threads or workers that read the shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from cggm_ray.core.errors import DataError
from cggm_ray.core.kinds import feature_shape
from cggm_ray.data.loading.split import about_columns, read_masks, unreadable, view_columns
from cggm_ray.data.loading.stream import ahead
from cggm_ray.data.shards.packed import unpack
from cggm_ray.data.shards.shards import LABELLED, UNREADABLE, Manifest, column_values

THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of the features of a modality, float64, each of the shape that `feature_shape` gives.

    Attributes:
        count: values of each feature.
        mean: of them; 0 where there is none.
        m2: sum of their squared distances from the mean.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> Moments:
        """Returns the moments of no value."""
        return cls(count=np.zeros(shape), mean=np.zeros(shape), m2=np.zeros(shape))

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")
    def of(cls, values: np.ndarray, valid: np.ndarray | None, shape: tuple[int, ...]) -> Moments:
        """Returns the moments of samples.

        Args:
            values: [N, ...].
            valid: bool [N, 1] for whole samples, or [N, T] for the steps of the first axis; None where all count.
            shape: of the moments; its axes of length 1 are taken together.
        """
        axes = (0, *(axis for axis, length in enumerate(shape, start=1) if length == 1))
        x = values.astype(np.float64)
        there = np.ones((1,) * x.ndim, dtype=bool)
        if valid is not None:
            there = valid.reshape(*valid.shape, *[1] * (x.ndim - 2)) if x.ndim > 1 else valid[:, 0]
            x = np.where(there, x, 0)
        count = np.broadcast_to(there, x.shape).sum(axes, dtype=np.float64, keepdims=True)
        mean = x.sum(axes, keepdims=True) / np.maximum(count, 1)
        distance = np.where(there, x - mean, 0)
        m2 = (distance * distance).sum(axes, keepdims=True)
        return cls(count=count.reshape(shape), mean=mean.reshape(shape), m2=m2.reshape(shape))

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: Moments) -> Moments:
        """Returns the moments of the values of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * share,
            m2=self.m2 + other.m2 + delta * delta * self.count * share,
        )

    @property
    def scale(self) -> np.ndarray:
        """1 / standard deviation (of the population); 1 for a feature that is constant, or never there.

        A feature counts as constant by scikit-learn's rule: its variance is not above the rounding of the sums.
        """
        variance = self.m2 / np.maximum(self.count, 1)
        eps = np.finfo(np.float64).eps
        constant = variance <= self.count * eps * variance + (self.count * self.mean * eps) ** 2
        with np.errstate(divide="ignore", over="ignore"):
            scale = 1 / np.sqrt(variance)
            # The network holds it in single precision.
            usable = ~constant & np.isfinite(scale.astype(np.float32))
        return np.where(usable, scale, 1)

    @property
    def whole_scale(self) -> float:
        """1 / root of the mean variance of the features; 1 if all are constant, or there is none."""
        variance = float((self.m2 / np.maximum(self.count, 1)).mean())
        return 1 / math.sqrt(variance) if variance > 0 and math.isfinite(1 / math.sqrt(variance)) else 1.0


Statistics = dict[str, Moments]
"""Modality to its moments."""
MapShards = Callable[[Callable[[Path], Statistics], Sequence[Path]], Iterator[Statistics]]
"""Yields what a function gives for each path, in the order of the paths."""


def map_shards_here(work: Callable[[Path], Statistics], paths: Sequence[Path]) -> Iterator[Statistics]:
    """Works on some shards at a time, in threads of this process."""
    return ahead(work, paths, THREADS)


def training_statistics(
    folder: Path, manifest: Manifest, kinds: Mapping[str, str], map_shards: MapShards = map_shards_here
) -> Statistics:
    """Returns the moments of modalities over the training split; padding, and samples without the modality, do not count.

    Every stored view of a sample counts.

    Args:
        folder: of the set.
        manifest: of the set.
        kinds: of the modalities that are wanted.
        map_shards: runs the work on shards.

    Raises:
        DataError: a shard cannot be read, or a modality has values that are not finite.
    """
    shapes = {name: feature_shape(kind, manifest.modalities[name].shape) for name, kind in kinds.items()}
    total = {name: Moments.zero(shape) for name, shape in shapes.items()}
    paths = [folder / shard.file for shard in manifest.splits["train"]]
    for part in map_shards(partial(shard_moments, kinds=dict(kinds), shapes=shapes), paths):
        total = {name: moments.merge(part[name]) for name, moments in total.items()}
    for name, moments in total.items():
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.m2).all()):
            raise DataError(
                f"{folder}: split train: {name} holds values that are not finite, or too large to be squared, so it has no "
                "standard deviation; expected finite numbers, or --standardise off"
            )
    return total


def shard_moments(path: Path, kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Statistics:
    """Returns the moments of the rows of one shard, which is read by row groups.

    Args:
        path: of the shard.
        kinds: of the modalities that are wanted.
        shapes: of the moments of each.

    Raises:
        DataError: the shard cannot be read, or has other features than `shapes` says.
    """
    total = {name: Moments.zero(shape) for name, shape in shapes.items()}
    try:
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            views = {name: view_columns(stored, name) for name in kinds}
            about = [name for name in about_columns(stored, list(kinds)) if name != LABELLED]
            for name in kinds:
                if name not in stored:
                    raise ValueError(f"there is no column {name}")
            wanted = [*about, *(column for columns in views.values() for column in columns)]
            for group in range(file.num_row_groups):
                table = unpack(file.read_row_group(group, columns=wanted, use_threads=False))
                values = {column: column_values(table.column(column)) for column in wanted}
                flags = {column: torch.from_numpy(values[column]) for column in about}
                masks = read_masks(flags, list(kinds), {name: values[name].shape[1:] for name in kinds})
                for name, columns in views.items():
                    valid = masks[name].numpy() if name in masks else None
                    for column in columns:
                        found = _moments(values[column], valid, kinds[name], shapes[name])
                        total[name] = total[name].merge(found)
    except UNREADABLE as error:
        raise unreadable(path.parent, path, error) from None
    return total


def _moments(values: np.ndarray, valid: np.ndarray | None, kind: str, shape: tuple[int, ...]) -> Moments:
    found = feature_shape(kind, values.shape[1:])
    if found != shape:
        raise ValueError(f"features of shape {found}; expected {shape}")
    return Moments.of(values, valid, shape)
