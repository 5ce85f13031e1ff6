"""CMU-MOSI (Zadeh et al. 2016) in the pickle format of the released code, and other sets of sentiment in those of theirs.

{'train' | 'valid' | 'test': {'text': [N, T, D], 'audio': ..., 'vision': ..., 'labels': [N, 1, 1][, 'id': [N]]}}

What else is read is in `layouts`, `stacked` and `sentiment`: `regression_labels` and `<modality>_lengths` (MMSA, Self-MM),
lists, arrays of objects, keys as bytes, MAG-BERT's samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from cggm_ray.config.fields import one_of, option
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.datasets.feature_files import split_files
from cggm_ray.data.datasets.new_samples import Labels, masked_steps, new_shards, part_of
from cggm_ray.data.datasets.sentiment import target_in
from cggm_ray.data.datasets.sentiment_layouts import LAYOUTS, write_layout
from cggm_ray.data.datasets.sentiment_sets import Sentiments, read_sentiments, tables_of
from cggm_ray.data.formats.layouts import columns_by_split
from cggm_ray.data.formats.safe_pickle import load_pickle
from cggm_ray.data.settings import DatasetOptions, DatasetSettings
from cggm_ray.data.shards.shards import (
    TARGET,
    Manifest,
    RawShard,
    column_values,
    is_modality,
    tensor_column,
)
from cggm_ray.tasks import Regression, Task

LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class MosiOptions(DatasetOptions):
    """Options of sets of sentiment."""

    target: str | None = option(None, "field of the sentiment; default labels, else regression_labels (MMSA)")
    target_index: int | None = option(None, "which of several targets of a sample, from 0")
    demonstration: str = option(
        "released", "layout of the generated set that is made without data_path: released, mmsa, mult", resume=True
    )

    def __post_init__(self) -> None:
        one_of(self, "demonstration", tuple(LAYOUTS))
        if self.target_index is not None and self.target_index < 0:
            raise UsageError(f"target_index: found {self.target_index}; expected a whole number of at least 0")


@DATASETS.register("mosi")
class Mosi(Dataset):
    """CMU-MOSI: a sentiment in [-3, 3] from text, audio and vision."""

    name = "mosi"
    converter = 2
    network = "sequence"
    kind = SEQUENCE
    Options = MosiOptions
    rounds: ClassVar[bool] = True
    """Whether the metrics round sentiments to whole numbers."""

    def __init__(self, settings: DatasetSettings) -> None:
        if type(settings.options) is DatasetOptions:
            # A configuration that says nothing about options means the defaults.
            settings = dataclasses.replace(settings, options=MosiOptions())
        super().__init__(settings)
        assert isinstance(settings.options, MosiOptions)
        self.options = settings.options
        self._notes: dict[str, Any] = {}

    def shard_options(self) -> dict[str, Any]:
        """Returns the chosen target, if one was chosen."""
        return {key: value for key, value in vars(self.options).items() if value is not None and key != "demonstration"}

    def locate(self, path: Path) -> list[Path]:
        """Returns the pickle itself, the one that a folder holds, or its pickles that are named after the splits."""
        if not path.is_dir():
            return [path]
        found = sorted(path.glob("mosi_data_noalign.pkl")) or sorted(path.glob("*.pkl"))
        if len(found) != 1 and not split_files(found, path):
            raise DataError(f"{path}: found {len(found)} .pkl files; expected mosi_data_noalign.pkl, or exactly one")
        return found

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields slices of every split, after checking it as a whole."""
        contents = {path: load_pickle(path) for path in sources}
        where = str(sources[0] if len(sources) == 1 else sources[0].parent)
        found = read_sentiments(
            contents, where, self.options.target, self.options.target_index, self.settings.data.modalities, self.rounds
        )
        self._notes = {
            "taken": found.taken,
            "missing": list(found.missing),
            "masked": sorted(found.splits["train"].steps),
        }
        return self._shards(found)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields the samples of pickles with or without labels and splits, with the modalities of the training data."""
        contents = {path: load_pickle(path) for path in sources}
        where = str(sources[0] if len(sources) == 1 else sources[0].parent)
        parts = part_of(tables_of(columns_by_split(contents, where), where), split, None)
        labels = Labels(column=self.options.target or target_in(parts), index=self.options.target_index)
        _, shards = new_shards(parts, tuple(trained.modalities), masked_steps(trained), {}, labels)
        return shards

    def _shards(self, found: Sentiments) -> Iterator[RawShard]:
        for split in SPLITS:
            yield from found.splits[split].shards(split)

    def transform(self, table: pa.Table) -> pa.Table:
        """Converts features to float32, with infinities of the audio features as 0, like the released code."""
        for name in (*filter(is_modality, table.column_names), TARGET):
            values = column_values(table.column(name)).astype(np.float32)
            if name == "audio":
                values[np.isinf(values)] = 0
            table = table.set_column(table.schema.get_field_index(name), name, tensor_column(values))
        return table

    def notes(self) -> dict[str, Any]:
        """Returns lines about the interpretation of the file, and the modalities that it lacks."""
        return self._notes

    def accept(self, folder: Path, manifest: Manifest) -> None:
        """Raises a DataError if the set lacks a modality, unless the run names its modalities."""
        missing = manifest.notes.get("missing")
        if missing and self.settings.data.modalities is None:
            raise DataError(
                f"{manifest.sources[0].path}: field {missing[0]} is missing; name the others with --modalities"
            )

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `mosi-<seed>.pkl`: text is learned fast, audio and vision carry information that text lacks."""
        layout = self.options.demonstration
        name = f"{self.name}-{seed}.pkl" if layout == "released" else f"{self.name}-{layout}-{seed}.pkl"
        return write_layout(folder / name, self.generated(seed), layout)

    def generated(self, seed: int) -> dict[str, Any]:
        """Returns the generated set in the released layout."""
        return planted_imbalance(seed)

    def task(self, manifest: Manifest) -> Task:
        """Returns L1 regression with the sentiment metrics."""
        return Regression(sentiment=True)


def planted_imbalance(seed: int, *, samples: Mapping[str, int] | None = None, steps: int = 12) -> dict[str, Any]:
    """Generates a set in the released pickle format with a planted imbalance.

    The label is 0.7 a + 0.5 b + 0.5 c, clipped to [-3, 3]. Every text step shows a linearly, under little noise: text learns
    fast. Audio shows b at one random step only, as a bump in noise; vision shows c as the product of two features that
    are noise each by themselves. Both are learned slowly, and only by an encoder that keeps getting gradient.

    Args:
        seed: of the generator.
        samples: by split.
        steps: time steps of every modality.
    """
    rng = np.random.default_rng(derive_seed(seed, "demonstration"))
    text_map, audio_map = rng.normal(size=(1, 24)), rng.normal(size=(1, 16))

    def split(n: int) -> dict[str, np.ndarray]:
        a, b, c = rng.normal(size=(3, n, 1)) * 1.5
        text = 0.6 * a[:, :, None] * text_map + rng.normal(size=(n, steps, 24))
        audio = 1.5 * rng.normal(size=(n, steps, 16))
        audio[np.arange(n), rng.integers(steps, size=n)] += b * audio_map
        vision = 0.5 * rng.normal(size=(n, steps, 16))
        carrier = rng.choice([-1.0, 1.0], size=(n, 1))
        vision[:, :, 0] += carrier
        vision[:, :, 1] += carrier * c
        labels = np.clip(0.7 * a + 0.5 * b + 0.5 * c, -3, 3)
        arrays = {"text": text, "audio": audio, "vision": vision, LABELS: labels[:, :, None]}
        return {name: values.astype(np.float32) for name, values in arrays.items()}

    return {name: split(n) for name, n in (samples or {"train": 960, "valid": 240, "test": 240}).items()}
