"""CMU-MOSI (Zadeh et al. 2016) in the pickle format of the released code.

{'train' | 'valid' | 'test': {'text': [N, T, D], 'audio': ..., 'vision': ..., 'labels': [N, 1, 1][, 'id': [N]]}}
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError, listed
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.formats.safe_pickle import load_pickle
from cggm_ray.data.formats.untrusted import finite, plain_array
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    SHARD_BYTES,
    TARGET,
    Manifest,
    RawShard,
    column_values,
    tensor_column,
)
from cggm_ray.tasks import Regression, Task

MODALITIES = ("text", "audio", "vision")
LABELS = "labels"


@DATASETS.register("mosi")
class Mosi(Dataset):
    """CMU-MOSI: a sentiment in [-3, 3] from text, audio and vision."""

    name = "mosi"
    converter = 1
    network = "sequence"

    def locate(self, path: Path) -> list[Path]:
        """The pickle itself, or the one that a folder holds."""
        if not path.is_dir():
            return [path]
        found = sorted(path.glob("mosi_data_noalign.pkl")) or sorted(path.glob("*.pkl"))
        if len(found) != 1:
            raise DataError(f"{path}: found {len(found)} .pkl files; expected mosi_data_noalign.pkl, or exactly one")
        return found

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Slices of every split, checked as a whole first."""
        (path,) = sources
        splits = _checked(load_pickle(path), path)
        for split, arrays in splits.items():
            samples = len(arrays[LABELS])
            sample_bytes = sum(arrays[name][0].size * 4 for name in MODALITIES)
            step = max(1, SHARD_BYTES // max(1, sample_bytes))
            for number, start in enumerate(range(0, samples, step)):
                rows = slice(start, min(start + step, samples))
                columns = {name: tensor_column(arrays[name][rows]) for name in MODALITIES}
                columns[TARGET] = tensor_column(arrays[LABELS][rows])
                columns[INDEX] = pa.array(np.arange(rows.start, rows.stop))
                if "id" in arrays:
                    columns[IDENTITY] = pa.array(arrays["id"][rows].tolist())
                yield RawShard(split=split, number=number, table=pa.table(columns))

    def transform(self, table: pa.Table) -> pa.Table:
        """float32, and the infinities of the audio features as 0, like the released code."""
        for name in (*MODALITIES, TARGET):
            values = column_values(table.column(name)).astype(np.float32)
            if name == "audio":
                values[np.isinf(values)] = 0
            table = table.set_column(table.schema.get_field_index(name), name, tensor_column(values))
        return table

    def demonstration(self, folder: Path, seed: int) -> Path:
        """`mosi-<seed>.pkl`: text learns fast, audio and vision carry what text does not."""
        path = folder / f"mosi-{seed}.pkl"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.part")
            partial.write_bytes(pickle.dumps(planted_imbalance(seed)))
            partial.replace(path)
        return path

    def task(self, manifest: Manifest) -> Task:
        """L1 regression with the sentiment metrics."""
        return Regression(sentiment=True)


def _checked(content: Any, path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The splits as arrays: modalities [N, T, D], labels [N, 1], id [N] as texts.

    Raises:
        DataError: names the file, the split, the field, what was found and what was expected.
    """
    if not isinstance(content, Mapping):
        raise DataError(
            f"{path}: found a {type(content).__name__}; expected a dict with the splits {', '.join(SPLITS)}"
        )
    checked: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        if split not in content:
            raise DataError(f"{path}: split {split} is missing; found {listed(content)}; expected {', '.join(SPLITS)}")
        fields = content[split]
        where = f"{path}: split {split}"
        if not isinstance(fields, Mapping):
            raise DataError(
                f"{where}: found a {type(fields).__name__}; expected a dict of {', '.join(MODALITIES)}, {LABELS}"
            )
        for name in (*MODALITIES, LABELS):
            if name not in fields:
                every = ", ".join((*MODALITIES, LABELS))
                raise DataError(f"{where}: field {name} is missing; found {listed(fields)}; expected {every}")
        arrays = {name: _numbers(fields[name], f"{where}, field {name}") for name in (*MODALITIES, LABELS)}
        arrays[LABELS] = _labels(arrays[LABELS], f"{where}, field {LABELS}")
        samples = len(arrays[LABELS])
        if not samples:
            raise DataError(f"{where}: the split is empty; expected at least one sample")
        for name in MODALITIES:
            _check_modality(arrays[name], name, samples, where)
            if checked and arrays[name].shape[1:] != checked["train"][name].shape[1:]:
                expected = checked["train"][name].shape[1:]
                raise DataError(
                    f"{where}, field {name}: samples of shape {arrays[name].shape[1:]}; in train {expected}"
                )
        if "id" in fields:
            arrays["id"] = _identities(fields["id"], samples, where)
        checked[split] = arrays
    return checked


def _numbers(values: Any, where: str) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        found = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise DataError(f"{where}: found {found}; expected an array of numbers")
    return values


def _labels(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.ndim not in (1, 2, 3) or any(size != 1 for size in labels.shape[1:]):
        raise DataError(f"{where}: shape {labels.shape}; expected [N, 1, 1], [N, 1] or [N]")
    bad = np.flatnonzero(~finite(labels).all(axis=tuple(range(1, labels.ndim))))
    if len(bad):
        raise DataError(f"{where}, sample {bad[0]}: {labels.reshape(-1)[bad[0]]}; expected a finite number")
    return labels.reshape(-1, 1)


def _check_modality(values: np.ndarray, name: str, samples: int, where: str) -> None:
    where = f"{where}, field {name}"
    if values.ndim != 3:
        raise DataError(f"{where}: {values.ndim} axes, shape {values.shape}; expected [N, T, D]")
    if len(values) != samples:
        raise DataError(f"{where}: {len(values)} samples; field {LABELS} has {samples}")
    if 0 in values.shape:
        raise DataError(f"{where}: shape {values.shape}; expected at least one time step and one feature")
    # The released features hold -inf where the audio is silent; nothing else may be other than a number.
    bad = ~finite(values) & ~np.isinf(values) if name == "audio" else ~finite(values)
    if bad.any():
        sample, step, feature = np.argwhere(bad)[0]
        found = values[sample, step, feature]
        raise DataError(
            f"{where}, sample {sample}: {found} at step {step}, feature {feature}; expected a finite number"
        )


def _identities(values: Any, samples: int, where: str) -> np.ndarray:
    names = np.atleast_1d(plain_array(values, f"{where}, field id"))
    if len(names) != samples:
        raise DataError(f"{where}, field id: {len(names)} names; field {LABELS} has {samples} samples")
    return np.asarray([" ".join(map(_text, np.atleast_1d(name).ravel())) for name in names], dtype=object)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def planted_imbalance(seed: int, *, samples: Mapping[str, int] | None = None, steps: int = 12) -> dict[str, Any]:
    """A generated set in the released pickle format with a planted imbalance.

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
