"""A small generated set in the layout of IEMOCAP, with the true widths and a planted imbalance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.optional import require
from cggm_ray.core.seeding import derive_seed
from cggm_ray.storage.files import whole_folder

WIDTHS = {"text": 1024, "audio": 130, "vision": 342}
STEPS = {"text": (6, 23), "audio": (60, 200), "vision": (10, 51)}
SPLITS = {"trn": 64, "val": 24, "tst": 24}
FOLDS = ("1", "2")


def write_demonstration(folder: Path, seed: int) -> Path:
    """Writes the set unless it is there; the same content for the same seed.

    The class is 2 a + b for two bits. Text carries both bits at every step, under noise; audio carries b in a burst of a few
    frames; vision shows a as the sign of the product of two directions that are random each by themselves.

    Args:
        folder: of the set.
        seed: of the generator.

    Returns:
        The folder.
    """
    if folder.exists():
        return folder
    h5py = require("h5py", extra="iemocap", purpose="iemocap")

    rng = np.random.default_rng(derive_seed(seed, "demonstration"))
    count = sum(SPLITS.values())
    classes = np.arange(count) % 4
    names = [f"Ses{1 + row % 5:02d}F_impro{row:03d}_F000" for row in range(count)]
    features = _features(rng, classes)
    with whole_folder(folder) as partial:
        for place, file in (("text", "L/bert_large.h5"), ("audio", "A/comparE.h5"), ("vision", "V/denseface.h5")):
            (partial / file).parent.mkdir(parents=True)
            with h5py.File(partial / file, "w") as h5:
                for name, value in zip(names, features[place], strict=True):
                    h5.create_dataset(name, data=value)
        with h5py.File(partial / "A/comparE_mean_std.h5", "w") as h5:
            for number, fold in enumerate(FOLDS):
                # Every fold turns the utterances by the size of the test split.
                order = np.roll(np.arange(count), number * SPLITS["tst"])
                _write_targets(partial / "target" / fold, order, classes, names)
                frames = np.concatenate([features["audio"][row] for row in order[: SPLITS["trn"]]])
                h5.create_dataset(f"{fold}/mean", data=frames.mean(0))
                h5.create_dataset(f"{fold}/std", data=frames.std(0))
    return folder


def _features(rng: np.random.Generator, classes: np.ndarray) -> dict[str, list[np.ndarray]]:
    a, b = np.divmod(classes, 2) - np.array([[0.5], [0.5]])
    direction = {name: rng.normal(size=(2, width)) for name, width in WIDTHS.items()}

    def noise(name: str) -> np.ndarray:
        return rng.normal(size=(rng.integers(*STEPS[name]), WIDTHS[name]))

    found: dict[str, list[np.ndarray]] = {name: [] for name in WIDTHS}
    for first, second in zip(a, b, strict=True):
        text = noise("text") + 0.25 * (np.array([first, second]) + 0.4 * rng.normal(size=2)) @ direction["text"]
        audio = noise("audio")
        start = rng.integers(len(audio) - 20)
        audio[start : start + 20] += 2 * second * direction["audio"][0]
        vision, carrier = noise("vision"), rng.choice([-1.0, 1.0])
        vision += 0.5 * carrier * (direction["vision"][0] + 2 * first * direction["vision"][1])
        for name, value in (("text", text), ("audio", 3 * audio + 5), ("vision", vision)):
            found[name].append(value.astype(np.float32))
    return found


def _write_targets(folder: Path, order: np.ndarray, classes: np.ndarray, names: list[str]) -> None:
    folder.mkdir(parents=True)
    start = 0
    for split, size in SPLITS.items():
        rows = order[start : start + size]
        start += size
        arrays: dict[str, Any] = {
            "label": np.eye(4, dtype=np.float32)[classes[rows]],
            "int2name": np.array([[names[row].encode()] for row in rows]),
        }
        for what, values in arrays.items():
            np.save(folder / f"{split}_{what}.npy", values, allow_pickle=False)
