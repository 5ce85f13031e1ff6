"""Writes utterances in the layout of IEMOCAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

PLACES = {"text": "L/bert_large.h5", "audio": "A/comparE.h5", "vision": "V/denseface.h5"}
FILES = {"train": "trn", "valid": "val", "test": "tst"}


def write_layout(
    folder: Path,
    features: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, int],
    folds: Mapping[str, Mapping[str, Sequence[str]]],
) -> Path:
    """Features by modality and utterance, classes by utterance, and the utterances of every fold's splits."""
    for modality, file in PLACES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / file, "w") as h5:
            for name, value in features[modality].items():
                h5.create_dataset(name, data=value)
    with h5py.File(folder / "A" / "comparE_mean_std.h5", "w") as h5:
        for fold, splits in folds.items():
            frames = np.concatenate([features["audio"][name] for name in splits["train"]])
            h5.create_dataset(f"{fold}/mean", data=frames.mean(0))
            h5.create_dataset(f"{fold}/std", data=frames.std(0))
            for split, names in splits.items():
                target = folder / "target" / fold
                target.mkdir(parents=True, exist_ok=True)
                np.save(target / f"{FILES[split]}_label.npy", np.eye(4)[[labels[name] for name in names]])
                np.save(target / f"{FILES[split]}_int2name.npy", np.array([[name.encode()] for name in names]))
    return folder


def small_layout(folder: Path, folds: Sequence[str] = ("1",)) -> Path:
    """Twelve utterances of several lengths, of 5, 3 and 4 features."""
    rng = np.random.default_rng(0)
    names = [f"Ses01F_impro{number:02d}_F000" for number in range(12)]
    widths = {"text": 5, "audio": 3, "vision": 4}
    features = {
        modality: {
            name: rng.normal(3, 2, size=(2 + row % 5, width)).astype(np.float32) for row, name in enumerate(names)
        }
        for modality, width in widths.items()
    }
    labels = {name: row % 4 for row, name in enumerate(names)}
    splits = {"train": names[:6], "valid": names[6:9], "test": names[9:]}
    return write_layout(folder, features, labels, dict.fromkeys(folds, splits))
