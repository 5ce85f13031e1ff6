"""The interface of a dataset: it turns raw files into shards, and names the task.

A dataset is one file in `data/datasets` with a class that is registered under its name. Conversion has two halves. `read`
lists the raw shards on the driver and checks everything that can be checked early. `transform` does the work on them, in Ray
Data tasks or in this process. A dataset whose work needs several steps, one with a model among them, lists `stages`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import torch
from torch import nn

from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import VECTOR, kind_of
from cggm_ray.core.registry import Registry
from cggm_ray.data.loading.split import Split, load_split, set_bytes
from cggm_ray.data.loading.stream import StreamSplit
from cggm_ray.data.loading.windows import WindowSplit
from cggm_ray.data.settings import DatasetOptions, DatasetSettings
from cggm_ray.data.shards.shards import (
    Manifest,
    RawShard,
    Shard,
    Source,
    Stage,
    TensorSpec,
    one_split,
)
from cggm_ray.data.shards.sources import describe_sources
from cggm_ray.data.shards.specs import table_specs
from cggm_ray.data.split_names import SPLITS as SPLITS
from cggm_ray.tasks import Classification, MultiLabel, Task

if TYPE_CHECKING:
    pass


class Dataset(ABC):
    """Base class of the datasets.

    Attributes:
        name: as registered.
        converter: version of `read` and its stages; a new number makes new shards.
        Options: class of the configuration's section `options`.
        network: name of the network that is trained where the configuration names none.
        kind: of all modalities, one of `core.kinds.KINDS` or `FRAMES`; None where the shape of a sample decides.

    Args:
        settings: the settings of the run that datasets receive; its `options` are an `Options`.

    Raises:
        UsageError: the options are those of another dataset.
    """

    name: ClassVar[str]
    converter: ClassVar[int]
    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    network: ClassVar[str] = "shaped"
    kind: ClassVar[str | None] = None

    def __init__(self, settings: DatasetSettings) -> None:
        if not isinstance(settings.options, self.Options):
            raise UsageError(
                f"dataset: {self.name} takes options of {self.Options.__name__}, found {type(settings.options).__name__}; "
                "start from its own recipe"
            )
        self.settings = settings

    @classmethod
    def parts(cls) -> list[tuple[str, str]]:
        """Returns registry and name of the entries that the dataset uses, so that a run records where they are defined."""
        return []

    def shard_options(self) -> dict[str, Any]:
        """Returns plain values of the options that change the shards; they are part of a set's fingerprint."""
        return {}

    def folds(self) -> dict[str, DatasetOptions]:
        """Returns the options of every fold by its name; the dict is empty if the configuration is a single run."""
        return {}

    @abstractmethod
    def locate(self, path: Path) -> list[Path]:
        """Returns the raw files under the path that the user gave.

        Raises:
            DataError: nothing there that looks like the dataset.
        """

    def locate_new(self, path: Path) -> list[Path]:
        """Returns the raw files under the path of data to predict, which needs neither splits nor labels.

        The default is `locate`.

        Raises:
            DataError: nothing there that looks like the dataset.
        """
        return self.locate(path)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterable[RawShard]:
        """Checks and returns the raw shards of data to predict.

        All of them belong to the split `PREDICT` and are numbered 0, 1, ... in their order.

        The predictions are in this order. `stages` turns these shards into the same columns as those of `read`; of a shard
        with a sample that has no label there is also a column `labelled` (bool), and its target is 0. All shards have the
        same columns. By default the shards of `read`, so the data needs what training data needs.

        Args:
            sources: from `locate_new`.
            trained: manifest of the set that the run was trained on: its notes say which classes there are, its modalities
                which columns the network may take.
            split: the part that is wanted where the data has parts; None for all samples.

        Raises:
            DataError: an input is not what the format promises, or there is no such part.
        """
        return one_split(self.read(sources), split)

    def takes(self, modality: str, trained: tuple[int, ...], found: tuple[int, ...]) -> bool:
        """Returns whether a network that was trained on samples of one shape accepts those of another.

        By default the first of several axes, time, may differ.
        """
        return (
            len(trained) == len(found)
            and trained[1 if len(trained) > 1 else 0 :] == found[1 if len(found) > 1 else 0 :]
        )

    @abstractmethod
    def read(self, sources: list[Path]) -> Iterable[RawShard]:
        """Checks and returns the raw shards of all splits.

        Raises:
            DataError: an input is not what the format promises.
        """

    def describe(self, sources: list[Path]) -> tuple[Source, ...]:
        """Returns the origin of the set, all of which is part of the fingerprint; the default is the checksum of every file."""
        return describe_sources(sources, self.settings.shard_root)

    def transform(self, table: pa.Table) -> pa.Table:
        """Converts a raw table to the columns `index`, `target`, one per modality, and `id` if samples have names.

        It runs in Ray Data tasks or in this process.

        A modality may have further views in the training split, in the columns `view/1/NAME`, `view/2/NAME`, ...; one view
        is drawn for every sample and epoch. Where samples may lack a modality m there is a column `present/m` (bool)
        too; where its sequences are padded at the end there may be `steps/m` (int64, 0 where it is missing). All shards of
        a split have the same columns.
        """
        return table

    def stages(self) -> tuple[Stage, ...]:
        """Returns the steps from a raw table to a shard; called after `read`. The default is `transform` alone."""
        return (Stage(make=lambda: self.transform),)

    def notes(self) -> dict[str, Any]:
        """Returns plain values that the manifest keeps for `task`, `network` and `open_split`; called after `read`."""
        return {}

    def inspect(self, folder: Path, raw: Sequence[RawShard], shards: Sequence[Shard]) -> dict[str, Any]:
        """Returns further notes, or the same ones anew, from shards that are written and not yet published.

        Args:
            folder: of the shards.
            raw: what was read, in the order of the shards.
            shards: written from them.

        Raises:
            DataError: the shards show what `read` could not see, such as too many files that do not decode; the set is dropped.
        """
        return {}

    def specs(self, first: RawShard) -> Mapping[str, TensorSpec]:
        """Returns the shape and type of one sample for every column, before there are shards; called after `read`.

        The default converts the first sample by the stages. A dataset whose stages are expensive returns them directly.
        """
        table = first.table.slice(0, 1)
        for stage in self.stages():
            table = stage.make()(table)
        return table_specs(table)

    def accept(self, folder: Path, manifest: Manifest) -> None:  # noqa: B027 (most datasets take every set of theirs)
        """Raises a DataError if this configuration may not use a set that was made before."""

    @abstractmethod
    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes a small generated set in the raw format and returns its path; the same file for the same seed."""

    @abstractmethod
    def task(self, manifest: Manifest) -> Task:
        """Returns the task. It is also called before the conversion, with a manifest that lists no shards yet."""

    def shapes(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one sample by modality, as the network receives it. The default is the shape in the shards."""
        return {name: manifest.modalities[name].shape for name in modalities}

    def kinds(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, str]:
        """Returns one of `core.kinds.KINDS`, or `FRAMES`, by modality, for networks that choose encoders by kind.

        The default is `kind`, or follows the shape of a sample.
        """
        shapes = self.shapes(manifest, modalities)
        return {name: self.kind or kind_of(shape) or VECTOR for name, shape in shapes.items()}

    def pretrained(self, manifest: Manifest, modalities: tuple[str, ...]) -> Mapping[str, Callable[[bool], nn.Module]]:
        """Returns trained models that encode a modality and are trained with the rest of the network; by default none.

        Each function makes the module, with its weights or, for a network that a checkpoint fills, without. The module maps
        what the shards hold, and a mask or None, to states [N, T, F]; `shapes` says [T, F], and `kinds` a sequence.
        """
        return {}

    def class_names(self, manifest: Manifest) -> tuple[str, ...] | None:
        """Returns the names of the classes, or None if the task has no classes.

        The default is the entry `classes` of the notes, or numbers.
        """
        return self._output_names(manifest, Classification)

    def label_names(self, manifest: Manifest) -> tuple[str, ...] | None:
        """Returns the names of labels, of which a sample may have several, or None for another task.

        The default is the entry `classes` of the notes, or numbers.
        """
        return self._output_names(manifest, MultiLabel)

    def _output_names(self, manifest: Manifest, kind: type[Task]) -> tuple[str, ...] | None:
        task = self.task(manifest)
        if not isinstance(task, kind):
            return None
        names = manifest.notes.get("classes")
        return tuple(map(str, range(task.outputs) if names is None else names))

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Opens a split: in memory on the device if the whole set fits the budget, otherwise streamed from its shards."""
        budget = self.settings.data.memory_budget * 2**20
        if set_bytes(folder, manifest, modalities) <= budget:
            return load_split(folder, manifest, split, modalities, device, self.settings.seed)
        window, seed = self.settings.data.window, self.settings.seed
        if window:
            return WindowSplit(folder, manifest, split, modalities, device, seed, budget, window)
        return StreamSplit(folder, manifest, split, modalities, device, seed, budget)


DATASETS: Registry[type[Dataset]] = Registry("dataset", "cggm_ray.data.datasets")
