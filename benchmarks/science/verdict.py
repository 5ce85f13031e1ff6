"""Makes the sets and the file of the verdict that docs/verdict-registration.md registers.

    python benchmarks/science/verdict.py --out verdict
    cggm bench verdict/verdict.yaml --local --storage_path verdict/runs --hours 8

Writes into the folder what the sets need beside the data in --data, and `verdict.yaml`. Sets whose source is missing are left
out. Splits of pie, mosi_utt and avdigits_speaker have a column for each seed, `split_SEED`. The arm `cggm-edge` was removed
with its code, as the registration says; commit 1a5a146 is the last one that has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from feature_sets import DATA, Arrays, drawn_split, masked_titles

SEARCH_SEED, SEEDS = 0, range(201, 221)
TRIALS = 12
PIXELS = 4
"""Rows and columns of the digits' images, of 28."""
SPACE: dict[str, Any] = {
    "lr": {"loguniform": [5.0e-4, 8.0e-3]},
    "weight_decay": {"loguniform": [5.0e-3, 5.0e-1]},
    "dropout": {"choice": [0.1, 0.3, 0.5]},
    "max_steps": {"choice": [500, 1500, 3000]},
}
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "cggm": {"space": {"rho": {"uniform": [0.8, 2.0]}, "lam": {"loguniform": [0.01, 1.0]}}},
    "multiloss": {"space": {"multiloss_weight": {"choice": [0.3, 1.0, 3.0]}}},
    "mmpareto": {"space": {"mmpareto_gamma": {"uniform": [0.5, 2.0]}}},
}
QUESTIONS = ("multiloss - none", "cggm - none", "cggm - multiloss", "mmpareto - none")
QUICK: dict[str, Any] = {"preset": "quick", "max_steps": 1500, "valid_interval": 50}
BY_SPLIT = {"split": "split_{seed}"}


def pooled(image: np.ndarray) -> np.ndarray:
    """Returns images [N, 28, 28] as the means of `PIXELS` x `PIXELS` parts, [N, PIXELS ** 2]."""
    size = 28 // PIXELS
    parts = image.astype(np.float32).reshape(len(image), PIXELS, size, PIXELS, size).mean((2, 4))
    return np.asarray(parts.reshape(len(image), -1) / 255)


def with_splits(label: np.ndarray, classes: bool) -> Arrays:
    """Returns a column of random splits for every seed: 60 % train, 20 % validation, 20 % test."""
    return {f"split_{seed}": drawn_split(label, (0.2, 0.2), classes, seed) for seed in (SEARCH_SEED, *SEEDS)}


def by_speaker(speaker: np.ndarray) -> Arrays:
    """Returns a column of splits for every seed: one speaker for test, one for validation, the others for training."""
    names = np.unique(speaker)
    found = {}
    for seed in (SEARCH_SEED, *SEEDS):
        test, valid = np.random.default_rng(seed).choice(names, 2, replace=False)
        found[f"split_{seed}"] = np.where(speaker == test, "test", np.where(speaker == valid, "valid", "train"))
    return found


def feature_flags(path: Path, modalities: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Returns the flags of a set of features."""
    return {**QUICK, "data_path": str(path), "modalities": ",".join(modalities), "target": "label", **more}


def make(data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Writes the sets whose sources are there, and returns their entries of the benchmark's file."""
    out.mkdir(parents=True, exist_ok=True)
    sets: dict[str, dict[str, Any]] = {}
    if (source := data / "avdigits" / "avdigits.npz").exists():
        read = np.load(source)
        parts = {"image": pooled(read["image"]), "audio": read["audio_u8"].astype(np.float32) / 255}
        path = out / "avdigits_speaker.npz"
        np.savez(path, allow_pickle=False, **parts, label=read["label"], **by_speaker(read["speaker"]))
        sets["avdigits_speaker"] = {"recipe": "features", "flags": feature_flags(path, parts), "by_seed": BY_SPLIT}
    if (data / "fashion_title_image").is_dir():
        titles = masked_titles(data, out)["titles"]
        encoders = dict(zip(("vit", "bert"), titles.flags[1::2], strict=True))
        sets["titles"] = {"recipe": "food101", "flags": {**QUICK, "data_path": titles.path, **encoders}}
    if (source := data / "mosi" / "mosi_data_noalign.pkl").exists():
        flags = {**QUICK, "data_path": str(source), "task": "regression", "target": "labels"}
        sets["mosi"] = {"recipe": "features", "flags": flags}
    for name, modalities, classes in (
        ("pie", ("v0", "v1", "v2"), True),
        ("mosi_utt", ("text_cnn", "audio", "vision"), False),
    ):
        if (source := data / "features" / f"{name}.npz").exists():
            read = np.load(source)
            parts = {part: read[part] for part in modalities}
            path = out / f"{name}.npz"
            np.savez(path, allow_pickle=False, **parts, label=read["label"], **with_splits(read["label"], classes))
            more = {} if classes else {"task": "regression"}
            sets[name] = {"recipe": "features", "flags": feature_flags(path, parts, **more), "by_seed": BY_SPLIT}
    small = {"image_size": 48, "inner_width": 16, "width": 64, "valid_interval": 50, "max_steps": 1500}
    sets["cremad_adam"] = {"recipe": "av", "flags": small}
    # Weight decay of SGD is no share of the rate, as it is of AdamW.
    decay = {"weight_decay": {"loguniform": [1.0e-5, 1.0e-2]}, "lr": {"loguniform": [1.0e-3, 5.0e-2]}}
    sets["cremad_sgd"] = {"recipe": "av_ogm_ge", "flags": small, "space": decay}
    return sets


def main() -> None:
    """Makes everything and prints what to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the source data")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets and verdict.yaml")
    given = parser.parse_args()
    content = {
        "name": "verdict",
        "baseline": "none",
        "seeds": list(SEEDS),
        "trials": TRIALS,
        "search_seed": SEARCH_SEED,
        "space": SPACE,
        "sets": make(given.data.resolve(), given.out.resolve()),
        "arms": ARMS,
        "questions": list(QUESTIONS),
    }
    file = given.out / "verdict.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    print(f"cggm bench {file}")


if __name__ == "__main__":
    main()
