"""Builds the sets on which the defaults are compared with simple models.

    python benchmarks/science/feature_sets.py --out sets
    python pipelines/features.py $(python benchmarks/science/feature_sets.py --out sets --flags wine)

Every set gets a fixed split. `sets/index.json` names for each set the pipeline, its flags, the metric and its direction. The
sources are the arrays in --data (default the environment variable CGGM_DATA, else ../shared/data beside the project) and the
small sets that scikit-learn brings with it; nothing is downloaded. Sets whose source is missing are left out with a line.

| set | modalities | what it tests |
|---|---|---|
| avdigits | image, audio with padding | as it is; the pipeline divides bytes by 255, so audio is in other units than decibels |
| mosi | text, audio, vision sequences | regression; audio and vision in units of their own, zeros in front |
| mosi_utt | three vectors an utterance | regression; audio in units of hundreds |
| pie | three descriptors of a face | 6 training samples a class |
| titles | photos and titles through frozen encoders | words that give the class away are masked |
| sensors300 | two sequences of 16 steps, one vector, scales 1000, 1 and .01 | 300 training samples |
| sensors30 | two sequences of 14 steps, scales 50 and .02 | 30 training samples |
| digits_halves, digits_quarters, wine, breast_cancer, diabetes, iris | groups of columns | few values, other units |
| friedman, plane | groups of columns | made regressions: five of ten columns count, not linearly; 15 of 40, linearly |
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from real_sets import save_random_vit
from sklearn import datasets
from sklearn.model_selection import train_test_split

DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data"))
INDEX = "index.json"
MASK = "[MASK]"
TELLING, FEWEST_TITLES = 0.8, 5
"""A word is masked where more than this share of at least so many training titles with it are of one class."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """A set in the index.

    Attributes:
        path: of the data.
        pipeline: file in pipelines/.
        flags: that read the data, beside --data_path.
        metric: that counts.
        better: 'max' or 'min'.
        tolerance: how much less than the best simple model counts as equal, in units of the metric.
    """

    path: str
    pipeline: str = "features.py"
    flags: list[str] = field(default_factory=list)
    metric: str = "accuracy"
    better: str = "max"
    tolerance: float = 0.005

    @property
    def command(self) -> list[str]:
        """Arguments of the pipeline that read this set."""
        return ["--data_path", self.path, *self.flags]


Makers = Iterator[tuple[str | None, Callable[[], dict[str, FeatureSet]]]]
"""Functions that write sets, each with the folder of --data that it needs."""


def read_index(folder: Path) -> dict[str, FeatureSet]:
    """Returns the sets of a folder by name."""
    return {name: FeatureSet(**entry) for name, entry in json.loads((folder / INDEX).read_text()).items()}


def grouped(path: Path, modalities: Mapping[str, np.ndarray], label: np.ndarray, split: np.ndarray) -> FeatureSet:
    """Writes modalities, labels and the split of every sample, and returns the entry of a classification."""
    np.savez(path, **modalities, label=label, split=split)
    flags = ["--modalities", ",".join(modalities), "--target", "label", "--split", "split"]
    return FeatureSet(path=str(path), flags=flags)


def drawn_split(label: np.ndarray, sizes: tuple[float, float], classes: bool = True, seed: int = 0) -> np.ndarray:
    """Returns train, valid or test for every sample; `sizes` are the shares of validation and test, of each class alike."""
    rows = np.arange(len(label))
    rest, test = train_test_split(rows, test_size=sizes[1], random_state=seed, stratify=label if classes else None)
    share = sizes[0] / (1 - sizes[1])
    _, valid = train_test_split(rest, test_size=share, random_state=seed, stratify=label[rest] if classes else None)
    split = np.full(len(label), "train")
    split[valid], split[test] = "valid", "test"
    return split


def scikit_learn_sets(out: Path) -> dict[str, FeatureSet]:
    """Writes scikit-learn's own sets with their columns in groups; 60 % train, 20 % validation, 20 % test."""
    load = {
        name: getattr(datasets, f"load_{name}")() for name in ("digits", "wine", "breast_cancer", "diabetes", "iris")
    }
    pixels = load["digits"].images
    quarters = {f"q{2 * i + j}": pixels[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] for i in (0, 1) for j in (0, 1)}
    columns = {
        "wine": {"acids": slice(0, 5), "phenols": slice(5, 9), "colour": slice(9, 13)},
        "breast_cancer": {"mean": slice(0, 10), "error": slice(10, 20), "worst": slice(20, 30)},
        "diabetes": {"person": slice(0, 4), "serum": slice(4, 10)},
        "iris": {"sepal": slice(0, 2), "petal": slice(2, 4)},
    }
    groups: dict[str, Arrays] = {
        "digits_halves": {"upper": pixels[:, :4].reshape(-1, 32), "lower": pixels[:, 4:].reshape(-1, 32)},
        "digits_quarters": {name: part.reshape(-1, 16) for name, part in quarters.items()},
        **{name: {part: load[name].data[:, of] for part, of in parts.items()} for name, parts in columns.items()},
    }
    found = {}
    for name, modalities in groups.items():
        target = load[name.split("_")[0] if name.startswith("digits") else name].target
        classes = name != "diabetes"
        split = drawn_split(target, (0.2, 0.2), classes)
        entry = grouped(out / f"{name}.npz", modalities, target, split)
        # The target has units of its own, about 77 of them a standard deviation.
        spread = 0.01 * float(target[split == "train"].std())
        found[name] = entry if classes else as_regression(entry, "label", spread)
    return found


def made_sets(out: Path) -> dict[str, FeatureSet]:
    """Writes regressions that scikit-learn makes, with their columns in groups; 60 % train, 20 % validation, 20 % test."""
    tables = {
        "friedman": (datasets.make_friedman1(1000, 10, noise=1.0, random_state=7), 2),
        "plane": (datasets.make_regression(600, 40, n_informative=15, noise=60.0, random_state=7), 3),
    }
    found = {}
    for name, ((values, target), groups) in tables.items():
        modalities = {f"group{i}": part for i, part in enumerate(np.array_split(values, groups, axis=1))}
        split = drawn_split(target, (0.2, 0.2), classes=False)
        entry = grouped(out / f"{name}.npz", modalities, target, split)
        found[name] = as_regression(entry, "label", 0.01 * float(target[split == "train"].std()))
    return found


def as_regression(entry: FeatureSet, target: str, tolerance: float = 0.01) -> FeatureSet:
    """Returns the entry of a set whose target is a number."""
    at = entry.flags.index("--target") if "--target" in entry.flags else len(entry.flags)
    flags = [*entry.flags[:at], "--task", "regression", "--target", target, *entry.flags[at + 2 :]]
    return FeatureSet(path=entry.path, flags=flags, metric="mae", better="min", tolerance=tolerance)


def shared_features(data: Path) -> dict[str, FeatureSet]:
    """Returns the entries of the sets that are used as they are."""
    by_columns = ["--target", "label", "--split", "split"]
    utterances = FeatureSet(path=str(data / "features" / "mosi_utt.npz"), flags=list(by_columns))
    return {
        "avdigits": FeatureSet(
            path=str(data / "avdigits" / "avdigits.npz"), flags=["--modalities", "image,audio_u8", *by_columns]
        ),
        "mosi": as_regression(FeatureSet(path=str(data / "mosi" / "mosi_data_noalign.pkl")), "labels"),
        "mosi_utt": as_regression(utterances, "label"),
        "pie": FeatureSet(path=str(data / "features" / "pie.npz"), flags=by_columns),
    }


def sensors(data: Path, out: Path) -> dict[str, FeatureSet]:
    """Writes small sets of sensors: the low and the high bands of spoken digits as two sequences, in unlike units."""
    source = np.load(data / "avdigits" / "avdigits.npz")
    audio, label, split = source["audio_u8"].astype(np.float32) / 255, source["label"], source["split"]
    rng = np.random.default_rng(0)

    def some(classes: int, a_class: Mapping[str, int]) -> np.ndarray:
        rows = [np.flatnonzero((label == c) & (split == part)) for part in a_class for c in range(classes)]
        counts = [a_class[part] for part in a_class for _ in range(classes)]
        return np.concatenate([rng.permutation(r)[:n] for r, n in zip(rows, counts, strict=True)])

    many = some(10, {"train": 30, "valid": 10, "test": 30})
    few = some(4, {"train": 8, "valid": 4, "test": 30})
    few = np.delete(few, [0, 8])  # 30 training samples
    every = audio[:, 2:50:3]
    large = {
        "low": every[many, :, :12] * 1000,
        "high": every[many, :, 12:],
        "loudness": audio[many].mean(2)[:, :32] * 0.01,
    }
    small = {"low": audio[few, 4:46:3, :12] * 50, "high": audio[few, 4:46:3, 12:] * 0.02}
    return {
        "sensors300": grouped(out / "sensors300.npz", large, label[many], split[many]),
        "sensors30": grouped(out / "sensors30.npz", small, label[few], split[few]),
    }


def telling_words(titles: list[dict[str, Any]]) -> set[str]:
    """Returns the words that give the class away.

    Args:
        titles: training samples with `text_tokens` and `label`.
    """
    counts: dict[str, dict[str, int]] = {}
    for sample in titles:
        for word in set(sample["text_tokens"]):
            of = counts.setdefault(word, {})
            of[sample["label"]] = of.get(sample["label"], 0) + 1
    totals = {word: sum(of.values()) for word, of in counts.items()}
    return {w for w, of in counts.items() if totals[w] >= FEWEST_TITLES and max(of.values()) > TELLING * totals[w]}


def read_titles(source: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the samples of train, dev and test, with `text_tokens`, `img_path` and `label`."""
    return {part: json.loads((source / f"{part}.json").read_text()) for part in ("train", "dev", "test")}


def masked_titles(data: Path, out: Path) -> dict[str, FeatureSet]:
    """Writes photos and titles with the telling words masked, beside a small ViT with fixed random weights."""
    source, folder = data / "fashion_title_image", out / "titles"
    folder.mkdir(exist_ok=True)
    lists = read_titles(source)
    masked = telling_words(lists["train"])
    for part, samples in lists.items():
        for sample in samples:
            sample["text_tokens"] = [MASK if word in masked else word for word in sample["text_tokens"]]
        (folder / f"{part}.json").write_text(json.dumps(samples))
    if not (folder / "images").exists():
        (folder / "images").symlink_to((source / "images").absolute(), target_is_directory=True)
    encoders = ["--vit", str(save_random_vit(out / "vit")), "--bert", str((data / "minilm").absolute())]
    return {"titles": FeatureSet(path=str(folder), pipeline="food101.py", flags=encoders)}


def makers(data: Path, out: Path) -> Makers:
    """Yields makers of sets, each with the folder of --data that it needs."""
    yield "avdigits", lambda: shared_features(data)
    yield "avdigits", lambda: sensors(data, out)
    yield "fashion_title_image", lambda: masked_titles(data, out)
    yield None, lambda: scikit_learn_sets(out) | made_sets(out)


def build(makers: Callable[[Path, Path], Makers], data: Path, out: Path) -> dict[str, FeatureSet]:
    """Builds all sets whose source is there, writes the index, and returns it."""
    data, out = data.absolute(), out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for needed, make in makers(data, out):
        if needed is None or (data / needed).is_dir():
            found |= make()
        else:
            print(f"{data / needed} is not there; the sets that are made of it are left out (--data, or CGGM_DATA)")
    found = {name: entry for name, entry in found.items() if Path(entry.path).exists()}
    (out / INDEX).write_text(json.dumps({name: asdict(entry) for name, entry in found.items()}, indent=1))
    return found


def program(makers: Callable[[Path, Path], Makers], description: str | None) -> None:
    """Builds the sets of the makers, or prints the flags of one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets, outside of the project")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of the sources [{DATA}]")
    parser.add_argument("--flags", metavar="SET", help="print the flags of a set that was built, and stop")
    arguments = parser.parse_args()
    out = arguments.out
    if out.absolute().is_relative_to(Path(__file__).absolute().parents[2]):
        parser.error(f"--out: found {out}, which is inside the project; expected a folder outside, for data")
    if arguments.flags:
        known = read_index(out) if (out / INDEX).exists() else build(makers, arguments.data, out)
        if arguments.flags not in known:
            parser.error(f"--flags: unknown {arguments.flags!r}; available: {', '.join(known)}")
        print(shlex.join(known[arguments.flags].command))
        return
    for name, entry in build(makers, arguments.data, out).items():
        print(f"{name:16} {entry.pipeline:12} {shlex.join(entry.command)}")


if __name__ == "__main__":
    program(makers, __doc__)
