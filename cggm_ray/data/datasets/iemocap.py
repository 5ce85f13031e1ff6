"""IEMOCAP (Busso et al. 2008) in the layout of the released code: four emotions, features keyed by utterance.

A/comparE.h5, V/denseface.h5, L/bert_large.h5     utterance -> [steps, features]
A/comparE_mean_std.h5                             fold -> mean, std [features] of the audio of its training split
target/<fold>/<trn|val|tst>_label.npy             one-hot [N, 4]
target/<fold>/<trn|val|tst>_int2name.npy          utterances [N, 1], byte strings

The target files may have other names of the splits, such as train, dev and test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.config.fields import option
from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError, UsageError, listed, short_repr
from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.core.optional import check_installed
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.datasets.iemocap_demonstration import write_demonstration
from cggm_ray.data.formats.h5 import check_dataset, open_h5, probe
from cggm_ray.data.formats.safe_pickle import load_npy
from cggm_ray.data.formats.untrusted import decoded, finite, is_text, plain_array
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import Split
from cggm_ray.data.prepare import raw_path
from cggm_ray.data.settings import DatasetOptions, DatasetSettings
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    PREDICT,
    STEPS,
    TARGET,
    Manifest,
    RawShard,
    tensor_column,
)
from cggm_ray.data.split_names import find_splits
from cggm_ray.tasks import Classification, Task

FEATURES = {"text": "L/bert_large.h5", "audio": "A/comparE.h5", "vision": "V/denseface.h5"}
MEAN_STD = "A/comparE_mean_std.h5"
RELEASED_NAMES = dict(zip(SPLITS, ("trn", "val", "tst"), strict=True))
CLASSES = 4
NORMALISATIONS = ("trn", "utt")
ALL = "all"
STATISTICS = "mean_std"
"""Key of the notes: mean and standard deviation of the audio of the train split, [2, 1, D]."""


@dataclass(frozen=True, kw_only=True)
class IemocapOptions(DatasetOptions):
    """Options of IEMOCAP."""

    cv: str = option("1", "fold, a folder of target/; 'all' runs every fold and reports mean and standard deviation")
    norm_method: str = option(
        "trn",
        "audio normalisation by mean and deviation: trn (of the fold's training split) or utt (of each utterance)",
        "norm",
    )
    text_length: int = option(22, "time steps of the text; longer utterances are cut, shorter ones padded with zeros")
    audio_length: int = option(350, "time steps of the audio")
    vision_length: int = option(50, "time steps of the vision")
    padding_mask: bool = option(
        False, "hide the padding from encoders, guides and fusion (the released code attends to it)"
    )

    def __post_init__(self) -> None:
        if self.norm_method not in NORMALISATIONS:
            raise UsageError(f"norm_method: unknown {self.norm_method!r}; available: {', '.join(NORMALISATIONS)}")
        for name in FEATURES:
            if self.length(name) < 1:
                raise UsageError(f"{name}_length: found {self.length(name)}; expected at least 1")

    def length(self, modality: str) -> int:
        """Returns the time steps of a modality."""
        return int(getattr(self, f"{modality}_length"))


@DATASETS.register("iemocap")
class Iemocap(Dataset):
    """IEMOCAP: one of four emotions from text, audio and vision."""

    name = "iemocap"
    converter = 2
    network = "sequence"
    kind = SEQUENCE
    Options = IemocapOptions

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__(settings)
        assert isinstance(settings.options, IemocapOptions)
        self.options = settings.options
        self._root = Path()
        self._widths: dict[str, tuple[str, int]] = {}
        self._statistics: np.ndarray | None = None

    def shard_options(self) -> dict[str, Any]:
        """Returns fold, normalisation and lengths, but not the mask, which concerns only the model."""
        return {key: value for key, value in vars(self.options).items() if key != "padding_mask"}

    def folds(self) -> dict[str, DatasetOptions]:
        """Returns the options of every folder of target/ with `--cv all`."""
        if self.options.cv != ALL:
            return {}
        names = _fold_names(raw_path(self))
        return {f"cv{name}": dataclasses.replace(self.options, cv=name) for name in names}

    def locate(self, path: Path) -> list[Path]:
        """Returns the features, their statistics and the fold's six target files."""
        check_installed("h5py", extra=self.name, purpose=self.name)
        if not path.is_dir():
            raise DataError(f"{path}: a file; expected the folder that holds A, V, L and target")
        if not (path / "target" / self.options.cv).is_dir():
            raise DataError(
                f"{path / 'target'}: fold {self.options.cv} is missing; found {listed(_fold_names(path))}; "
                "expected one of them as --cv"
            )
        self._root = path
        files = [path / file for file in FEATURES.values()]
        if self.options.norm_method == "trn":
            files.append(path / MEAN_STD)
        for split in SPLITS:
            files += [self._target_file(split, "label"), self._target_file(split, "int2name")]
        return _existing(files)

    def locate_new(self, path: Path) -> list[Path]:
        """Returns the features, and their statistics and the target files of the fold if there are any."""
        check_installed("h5py", extra=self.name, purpose=self.name)
        if not path.is_dir():
            raise DataError(f"{path}: a file; expected the folder that holds A, V and L")
        self._root = path
        optional = [path / MEAN_STD] if self.options.norm_method == "trn" else []
        for split in SPLITS:
            optional += [self._target_file(split, "label"), self._target_file(split, "int2name")]
        return _existing([path / file for file in FEATURES.values()]) + [file for file in optional if file.is_file()]

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields utterances and classes of every split; shapes are checked here, and `transform` reads the features."""
        targets = {split: self._target(split) for split in SPLITS}
        probe([source for source in sources if source.suffix == ".h5"])
        for modality in FEATURES:
            for split, (names, _) in targets.items():
                self._check_features(modality, names, f" ({self._target_file(split, 'int2name')})")
        if self.options.norm_method == "trn":
            self._statistics = self._mean_std()
        for split, (names, labels) in targets.items():
            yield from self._shards(split, {IDENTITY: np.array(names, object), TARGET: labels})

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields every utterance that has features; the audio is normalised as for training.

        Labels are those of the fold, where the folder has it; with a split its utterances alone are read.
        """
        probe([source for source in sources if source.suffix == ".h5"])
        there = [part for part in SPLITS if self._target_file(part, "int2name") in sources]
        if split is not None and split not in there:
            raise DataError(
                f"{self._target_file(split, 'int2name')}: does not exist; leave out --split to predict everything"
            )
        targets = {part: self._target(part) for part in there}
        labels = {
            name: label for names, numbers in targets.values() for name, label in zip(names, numbers, strict=True)
        }
        names = self._utterances() if split is None else targets[split][0]
        for modality in FEATURES:
            self._check_features(modality, names)
        if self.options.norm_method == "trn":
            recorded = trained.notes.get(STATISTICS)
            # Runs of earlier versions recorded none.
            self._statistics = self._mean_std() if recorded is None else np.array(recorded, np.float32)
        columns = {
            IDENTITY: np.array(names, object),
            TARGET: np.array([labels.get(name, 0) for name in names], np.int64),
            LABELLED: np.array([name in labels for name in names]),
        }
        yield from self._shards(PREDICT, columns)

    def _shards(self, split: str, columns: Mapping[str, np.ndarray]) -> Iterator[RawShard]:
        sample_bytes = sum(4 * self.options.length(m) * width for m, (_, width) in self._widths.items())
        for number, rows in chunks(len(columns[IDENTITY]), sample_bytes):
            table = {name: pa.array(values[rows]) for name, values in columns.items()}
            table[INDEX] = pa.array(np.arange(rows.start, rows.stop))
            yield RawShard(split=split, number=number, table=pa.table(table))

    def _utterances(self) -> list[str]:
        """Returns all utterances of the features, each of which must have every modality."""
        names: list[str] = []
        for file in FEATURES.values():
            with open_h5(self._root / file) as features:
                found = list(features)
            names = names or found
            for name in sorted(set(names) ^ set(found))[:1]:
                where = self._root / file if name in names else self._root / FEATURES["text"]
                raise DataError(
                    f"{where}, utterance {name}: the key is missing; the features of another modality have it; expected every "
                    "utterance in all of them"
                )
        if not names:
            raise DataError(f"{self._root / FEATURES['text']}: no utterance; expected at least one")
        return names

    def notes(self) -> dict[str, Any]:
        """Returns the class names, and the audio statistics if they come from the train split."""
        notes: dict[str, Any] = {"classes": [str(number) for number in range(CLASSES)]}
        return notes if self._statistics is None else notes | {STATISTICS: self._statistics.tolist()}

    def transform(self, table: pa.Table) -> pa.Table:
        """Reads the utterances' features, normalises the audio, cuts and pads with zeros at the end."""
        names = table.column(IDENTITY).to_pylist()
        mean_std = self._statistics if self.options.norm_method == "trn" else None
        for modality, file in FEATURES.items():
            length = self.options.length(modality)
            with open_h5(self._root / file) as features:
                values = [features[name][()] for name in names]
            for name, value in zip(names, values, strict=True):
                if not finite(value).all():
                    step, feature = np.argwhere(~finite(value))[0]
                    raise DataError(
                        f"{self._root / file}, utterance {name}: {value[step, feature]} at step {step}, feature {feature}; "
                        "expected a finite number"
                    )
            values = [value.astype(np.float32) for value in values]
            if modality == "audio":
                values = [_normalised(value, mean_std) for value in values]
            padded = np.zeros((len(names), length, values[0].shape[1]), np.float32)
            for row, value in enumerate(values):
                padded[row, : len(value)] = value[:length]
            table = table.append_column(modality, tensor_column(padded))
            table = table.append_column(STEPS + modality, pa.array([min(length, len(value)) for value in values]))
        return table

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `iemocap-<seed>`: two folds over a few utterances, in the true widths."""
        return write_demonstration(folder / f"iemocap-{seed}", seed)

    def task(self, manifest: Manifest) -> Task:
        """Returns classification of four classes."""
        return Classification(CLASSES)

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Opens the utterances; without `padding_mask` the padding counts like any other step."""
        masked = super().open_split(folder, manifest, split, modalities, device)
        return masked if self.options.padding_mask else _Unmasked(masked)

    def _target_file(self, split: str, what: str) -> Path:
        folder = self._root / "target" / self.options.cv
        names = sorted(file.name.removesuffix(f"_{what}.npy") for file in folder.glob(f"*_{what}.npy"))
        name = find_splits(names, f"{folder}: *_{what}.npy").get(split, RELEASED_NAMES[split])
        return folder / f"{name}_{what}.npy"

    def _target(self, split: str) -> tuple[list[str], np.ndarray]:
        """Returns the utterances and class numbers of a split."""
        path = self._target_file(split, "label")
        labels = _classes(load_npy(path), path)
        path = self._target_file(split, "int2name")
        names = _names(load_npy(path), path)
        if len(names) != len(labels):
            raise DataError(
                f"{path}: {len(names)} utterances; {self._target_file(split, 'label').name} has {len(labels)} labels"
            )
        if not names:
            raise DataError(f"{path}: no utterance; expected at least one")
        return names, labels

    def _check_features(self, modality: str, names: Sequence[str], listed_in: str = "") -> None:
        """Checks that every utterance exists and that all have as many features as the first one."""
        path = self._root / FEATURES[modality]
        with open_h5(path) as features:
            for name in names:
                where = f"{path}, utterance {name}{listed_in}"
                if name not in features:
                    raise DataError(f"{where}: the key is missing; the file has {len(features)} utterances")
                check_dataset(features, name, path, f"utterance {name}")
                shape, dtype = features[name].shape, features[name].dtype
                if len(shape) != 2 or not shape[1]:
                    raise DataError(f"{where}: found shape {shape} of {dtype}; expected [steps, features] of numbers")
                first, width = self._widths.setdefault(modality, (name, shape[1]))
                if shape[1] != width:
                    raise DataError(f"{where}: {shape[1]} features; utterance {first} has {width}")

    def _mean_std(self) -> np.ndarray:
        """Returns the mean and standard deviation of the audio features, [2, 1, D], from the fold's train split."""
        path = self._root / MEAN_STD
        with open_h5(path) as file:
            parts = []
            for key in ("mean", "std"):
                where = f"{path}, fold {self.options.cv}, {key}"
                if f"{self.options.cv}/{key}" not in file:
                    raise DataError(f"{where}: the key is missing; found folds {listed(file)}")
                check_dataset(file, f"{self.options.cv}/{key}", path, f"fold {self.options.cv}, {key}")
                values = file[f"{self.options.cv}/{key}"][()]
                if values.shape != self._widths["audio"][1:]:
                    raise DataError(f"{where}: shape {values.shape}; the audio has {self._widths['audio'][1]} features")
                if not finite(values).all():
                    raise DataError(f"{where}: found {values[~finite(values)][0]}; expected finite numbers")
                parts.append(values[None].astype(np.float32))
        return np.stack(parts)


class _Unmasked:
    """A split without its masks."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.names = split.names
        self.groups = split.groups

    def __len__(self) -> int:
        return len(self._split)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields the batches of the split, without their masks."""
        for batch in self._split.batches(plan, epoch):
            yield dataclasses.replace(batch, masks=None, present=None)


def _existing(files: list[Path]) -> list[Path]:
    """Returns the files after checking that they exist.

    Raises:
        DataError: a file does not exist.
    """
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: does not exist; expected it in the layout of IEMOCAP")
    return files


def _normalised(value: np.ndarray, mean_std: np.ndarray | None) -> np.ndarray:
    """Returns the audio [T, D] minus its mean, divided by its standard deviation.

    Statistics that are not given are those of the utterance.
    """
    if mean_std is None:
        if not len(value):
            return value
        spread = value.std(0, ddof=1) if len(value) > 1 else np.zeros(value.shape[1], np.float32)
        mean_std = np.stack([value.mean(0), spread])
    mean, std = mean_std
    # A feature that never changes stays at zero.
    return (value - mean) / np.where(std == 0, 1, std)


def _fold_names(path: Path) -> list[str]:
    """Returns the folders of target/, with numbers in their order.

    Raises:
        DataError: there is none.
    """
    names = [part.name for part in (path / "target").glob("*") if part.is_dir()]
    if not names:
        raise DataError(f"{path / 'target'}: found no fold; expected a folder for each, such as target/1")
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _classes(labels: np.ndarray, path: Path) -> np.ndarray:
    """Returns class numbers from one-hot rows."""
    if labels.ndim != 2 or labels.shape[1] != CLASSES or labels.dtype.kind not in "fiub":
        raise DataError(f"{path}: shape {labels.shape} of {labels.dtype}; expected one-hot rows [N, {CLASSES}]")
    bad = np.flatnonzero(((labels != 0).sum(1) != 1) | (labels.sum(1) != 1))
    if len(bad):
        raise DataError(
            f"{path}, row {bad[0]}: {short_repr(labels[bad[0]].tolist())}; expected a single 1, at one of the {CLASSES} classes"
        )
    return labels.argmax(1)


def _names(values: np.ndarray, path: Path) -> list[str]:
    """Returns the utterances as texts, from [N] or [N, 1] of byte strings or texts."""
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise DataError(f"{path}: shape {values.shape}; expected [N, 1] or [N]")
    names = []
    for row, value in enumerate(plain_array(values, str(path)).ravel().tolist()):
        name = decoded(value)
        # A zero would end the name in an h5 file, and a slash lead to another place in it.
        if not is_text(name) or not name or "\0" in name or "/" in name:
            raise DataError(f"{path}, row {row}: found {short_repr(value)}; expected the name of an utterance")
        names.append(name)
    return names
