"""User features: any modalities, from files of arrays or parquet, for regression or classification.

Missing modalities of a sample are masked everywhere: a null in parquet, or a False in the array `<modality>_present` of an
npz or pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.config.fields import at_least, one_of, option
from cggm_ray.core.errors import UsageError, listed
from cggm_ray.core.kinds import KINDS, SEQUENCE
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.data.datasets.feature_demonstration import write_demonstration
from cggm_ray.data.datasets.feature_files import PRESENT_SUFFIX, find_files, read_tables
from cggm_ray.data.datasets.feature_splits import SPLIT, divide, row_arrays, stated_rows
from cggm_ray.data.datasets.feature_table import (
    check_rounding,
    choose_modalities,
    gather,
    read_classes,
    read_values,
    shape_kinds,
)
from cggm_ray.data.datasets.new_samples import Labels, masked_steps, new_shards, part_of
from cggm_ray.data.datasets.samples import SOURCE, ReadRows, Samples
from cggm_ray.data.datasets.sentiment import is_sentiment, range_of
from cggm_ray.data.datasets.taken import LENGTH_SUFFIXES, block, find_lengths, left_out
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.settings import DatasetOptions, DatasetSettings
from cggm_ray.data.shards.shards import (
    IDENTITY,
    Manifest,
    RawShard,
    Stage,
    Transform,
    column_values,
    is_modality,
    tensor_column,
)
from cggm_ray.data.split_names import says_rows
from cggm_ray.tasks import Classification, Regression, Task

TASKS = ("regression", "classification")
AUTO, SENTIMENT, PLAIN = "auto", "sentiment", "plain"
METRICS = (AUTO, SENTIMENT, PLAIN)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(DatasetOptions):
    """Options of the pipeline for features."""

    task: str = option("classification", "regression or classification")
    target: str = option("label", "column of the target")
    target_index: int | None = option(None, "which of several targets of a sample, from 0")
    metrics: str = option(
        AUTO,
        "metrics of a regression: sentiment (Acc-2, Acc-7, F1 and more), plain (MAE and correlation), or auto, by the names "
        "of target and modalities",
    )
    split: str | None = option(
        None, "column with train, valid or test; default the file's own splits or its column 'split', else drawn"
    )
    classes: tuple[str, ...] | None = option(None, "all classes; default those of the train split")
    kinds: tuple[str, ...] = option((), "modality:sequence|vector|image, where the shape does not say it")
    lengths: tuple[str, ...] = option(
        (), "modality:column, a column with the number of time steps, where the rest is padding"
    )
    valid_share: float = option(0.1, "share of the samples, or of train, that is drawn for validation if none is given")
    test_share: float = option(0.1, "share of the samples that is drawn for the test if there are no splits")
    split_seed: int = option(0, "seed of the drawn splits")

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"task: unknown {self.task!r}; available: {', '.join(TASKS)}")
        one_of(self, "metrics", METRICS)
        if self.metrics == SENTIMENT and self.task != "regression":
            raise UsageError(f"metrics: found {SENTIMENT!r} with --task {self.task}; expected --task regression")
        if self.target_index is not None:
            at_least(self, "target_index", 0)
        for name, kind in self.pairs("kinds").items():
            if kind not in KINDS:
                raise UsageError(f"kinds: unknown {kind!r} for {name}; available: {', '.join(KINDS)}")
        self.pairs("lengths")
        for share in ("valid_share", "test_share"):
            if not 0 < getattr(self, share) < 0.5:
                raise UsageError(f"{share}: found {getattr(self, share)}; expected a number between 0 and 0.5")
        if self.split_seed < 0:
            raise UsageError(f"split_seed: found {self.split_seed}; expected a whole number of at least 0")

    def pairs(self, field: str) -> dict[str, str]:
        """Returns the option `kinds` or `lengths` as modality to value."""
        found = [item.split(":") for item in getattr(self, field) if item]
        for parts in found:
            if len(parts) != 2 or not all(parts):
                raise UsageError(f"{field}: found {':'.join(parts)!r}; expected modality:value")
        return dict(found)


@DATASETS.register("features")
class Features(Dataset):
    """Any modalities whose features are in a file."""

    name = "features"
    converter = 5
    network = "shaped"
    Options = FeatureOptions

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__(settings)
        assert isinstance(settings.options, FeatureOptions)
        self.options = settings.options
        self._root = Path()
        self._notes: dict[str, Any] = {}
        self._reader = ReadRows({}, {})

    def shard_options(self) -> dict[str, Any]:
        """Returns all options, and the modalities, because only those are read."""
        names = self.settings.data.modalities
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self.options).items()}
        return plain | {"modalities": None if names is None else sorted(names)}

    def locate(self, path: Path) -> list[Path]:
        """Returns the file, or the files of the folder."""
        self._root = path
        return find_files(path)

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields slices of every split, after checking it as a whole."""
        splits = self._splits(sources)
        self._reader = ReadRows.of(splits.values())
        incomplete = {name for part in splits.values() for name, flags in part.present.items() if not flags.all()}
        for split, part in splits.items():
            yield from part.shards(split, incomplete)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields the samples of a file with or without labels and splits, with the modalities and classes of the training
        data.
        """
        options, notes = self.options, trained.notes
        self._notes = dict(notes)
        lengths, names = options.pairs("lengths"), tuple(trained.modalities)
        column = options.split or SPLIT
        about = {options.target, column, IDENTITY, *lengths.values()}
        about |= {name + suffix for name in names for suffix in (PRESENT_SUFFIX, *LENGTH_SUFFIXES)}

        def wanted(name: str) -> bool:
            return name in names or name in about or (split is not None and says_rows(name) is not None)

        tables = read_tables(sources, self._root, wanted, about - {IDENTITY})
        whole, rows = tables.get(WHOLE), None
        if whole is not None and split is not None:
            rows, _ = stated_rows(tables, column if column in whole.available else None, names[0])
        parts = part_of(tables, split, rows)
        labels = Labels(column=options.target, classes=notes["classes"], index=options.target_index)
        samples, shards = new_shards(parts, names, masked_steps(trained), lengths, labels)
        self._reader = ReadRows.of([samples])
        return shards

    def takes(self, modality: str, trained: tuple[int, ...], found: tuple[int, ...]) -> bool:
        """Returns whether a sample has the shape of the training data; sequences may have any length."""
        if self._notes["kinds"][modality] == SEQUENCE:
            return super().takes(modality, trained, found)
        return trained == found

    def stages(self) -> tuple[Stage, ...]:
        """Returns the reading of rows that `read` did not read, if there are any, and `transform`."""
        return Stage(make=partial(_reading, self._reader)), *super().stages()

    def transform(self, table: pa.Table) -> pa.Table:
        """Converts features to float32; bytes (uint8) are scaled to [0, 1]."""
        for name in filter(is_modality, table.column_names):
            values = column_values(table.column(name))
            scale = 255 if values.dtype == np.uint8 else 1
            scaled = values.astype(np.float32) / np.float32(scale)
            table = table.set_column(table.schema.get_field_index(name), name, tensor_column(scaled))
        return table

    def notes(self) -> dict[str, Any]:
        """Returns the kinds, the classes, whether the target is a sentiment, and lines about the interpretation of the file."""
        return self._notes

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `features-<seed>.npz`: an image, a sequence and a vector; some samples lack one of them."""
        return write_demonstration(folder / f"features-{seed}.npz", seed)

    def task(self, manifest: Manifest) -> Task:
        """Returns the task of the option `task`, with the classes of the notes."""
        self._notes = manifest.notes
        classes = self._notes["classes"]
        return (
            Regression(sentiment=self._notes.get("sentiment", False))
            if classes is None
            else Classification(len(classes))
        )

    def kinds(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, str]:
        """Returns the kinds from the options or the shapes at the time when the set was made."""
        return {name: manifest.notes["kinds"][name] for name in modalities}

    def _splits(self, sources: list[Path]) -> Mapping[str, Samples]:
        """Returns the samples of every split, with the notes for the manifest."""
        options, modalities = self.options, self.settings.data.modalities
        given = options.pairs("lengths")
        about = {
            name for name in (options.target, options.split or SPLIT, IDENTITY, *given.values()) if name is not None
        }
        beside = {name + suffix for name in modalities or () for suffix in LENGTH_SUFFIXES}

        def wanted(column: str) -> bool:
            named = modalities is None or column.removesuffix(PRESENT_SUFFIX) in modalities
            return named or column in about or column in beside or says_rows(column) is not None

        tables = read_tables(sources, self._root, wanted, about - {IDENTITY})
        rows, how = stated_rows(tables, options.split, options.target)
        about |= set(row_arrays(tables[WHOLE], options.split)) if WHOLE in tables else set()
        names = choose_modalities(tables, modalities, about)
        found, unused = find_lengths(tables, [name for name in names if name not in given])
        lengths = given | found
        kinds = shape_kinds(tables, names, options.pairs("kinds"), lengths)
        if options.task == "classification":
            target, classes = read_classes(tables, options.target, options.classes, rows, options.target_index)
        else:
            target, classes = read_values(tables, options.target, options.target_index), None
            check_rounding(tables, options.target, options.target_index)
        samples = gather(tables, names, lengths, target)
        by_name = options.task == "regression" and is_sentiment(options.target, names)
        sentiment = options.metrics == SENTIMENT or (options.metrics == AUTO and by_name)
        shares = (options.valid_share, options.test_share)
        splits, said = divide(tables, samples, rows, shares, options.split_seed)
        self._notes = {"kinds": kinds, "classes": None if classes is None else list(classes), "sentiment": sentiment}
        ragged = [name for name in names if any(name in table.steps for table in tables.values())]
        self._notes["masked"] = sorted({*ragged, *lengths})
        # What brings samples in another form must know that these are scaled.
        self._notes["bytes"] = sorted(
            {n for part in splits.values() for n, v in part.inputs.items() if v.dtype == np.uint8}
        )
        known = about | {*names, *lengths.values()}
        self._notes["taken"] = block(
            str(self._root),
            self._target_in_words(splits, classes, sentiment),
            splits,
            ", ".join(filter(None, (how, said))),
            lengths | dict.fromkeys(ragged, "the lengths of the sequences"),
            kinds,
            tables,
            left_out(next(iter(tables.values())), known, modalities is not None, unused),
        )
        return splits

    def _target_in_words(self, splits: Mapping[str, Samples], classes: tuple[str, ...] | None, sentiment: bool) -> str:
        options = self.options
        column = options.target if options.target_index is None else f"{options.target} [{options.target_index}]"
        if classes is not None:
            return f"{column}, {len(classes)} classes: {listed(classes, 10)}"
        values = np.concatenate([part.target for part in splits.values()])
        return f"{column}, {range_of(values, sentiment)}{', metrics of sentiment' if sentiment else ''}"


def _reading(reader: ReadRows) -> Transform:
    """Returns what reads rows, or leaves shards as they are that have their inputs."""
    return lambda table: reader(table) if SOURCE in table.column_names else table
