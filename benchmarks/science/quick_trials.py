"""Compares settings of `--preset quick` without the test samples of the sets.

    python benchmarks/science/feature_sets.py --out sets
    python benchmarks/science/quick_trials.py --sets sets --out trials --splits 3
        --try "--modulation multiloss" --try "--batch_size 64"

The samples of every set that are not its test samples are split anew, 60 % for training and 20 % each for validation and
test. A run of `quick` is trained for every split with its own settings, and with each --try in their place. Test metric, mean
over the splits; "better by" is the mean difference of the splits with its standard error, positive where the try is better.
Sets that are no npz are left out. What is finished in --out is not repeated.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from feature_sets import FeatureSet, drawn_split, read_index
from real_sets import PIPELINES

from cggm_ray.core.tables import text_table
from cggm_ray.runs.result import SUMMARY, read_summary


def flag(entry: FeatureSet, name: str) -> str:
    """Returns the value of a flag of a set."""
    return entry.flags[entry.flags.index(name) + 1]


def split_anew(entry: FeatureSet, seed: int, out: Path) -> FeatureSet:
    """Writes the samples of a set that are not its test samples with a split of their own, and returns its entry."""
    content = dict(np.load(entry.path, allow_pickle=True))
    of, target = flag(entry, "--split"), flag(entry, "--target")
    kept = content[of] != "test"
    content = {name: values[kept] if len(values) == len(kept) else values for name, values in content.items()}
    content[of] = drawn_split(content[target], (0.2, 0.2), entry.metric == "accuracy", seed)
    np.savez(out, **content)
    return FeatureSet(path=str(out), flags=entry.flags, metric=entry.metric, better=entry.better)


def tested(entry: FeatureSet, name: str, settings: Sequence[str], out: Path) -> float:
    """Returns the test metric of a run of `quick`, which is trained unless it is there."""
    if not (out / name / SUMMARY).exists():
        place = ["--local", "--preset", "quick", "--report", "false", "--storage_path", str(out), "--name", name]
        command = [sys.executable, str(PIPELINES / entry.pipeline), *entry.command, *place, *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_summary(out / name).test[entry.metric]


def differences(values: Sequence[float], others: Sequence[float], better: str) -> str:
    """Returns the mean by which `others` are better than `values`, with its standard error."""
    found = [(new - old) * (1 if better == "max" else -1) for old, new in zip(values, others, strict=True)]
    error = f" ± {stdev(found) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{fmean(found):+.3f}{error}"


def main() -> None:
    """Trains the runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of sets; default all of the index that are npz")
    parser.add_argument("--sets", type=Path, required=True, help="folder of feature_sets.py or held_out_sets.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--try", action="append", default=[], dest="tries", help="flags in place of those of quick")
    parser.add_argument("--all", default="", help="flags of every run")
    arguments = parser.parse_args()
    index, out = read_index(arguments.sets), arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    variants = ["", *arguments.tries]
    rows = []
    for name in arguments.names:
        if not index[name].path.endswith(".npz"):
            parser.error(f"{name} is {index[name].path}; expected sets that are npz")
    for name in arguments.names or [name for name, entry in index.items() if entry.path.endswith(".npz")]:
        found: list[list[float]] = [[] for _ in variants]
        for split in range(arguments.splits):
            entry = split_anew(index[name], split, out / f"{name}-{split}.npz")
            for values, variant in zip(found, variants, strict=True):
                settings = shlex.split(f"{arguments.all} {variant}")
                label = "".join(letter if letter.isalnum() else "_" for letter in "".join(settings))
                values.append(tested(entry, f"{name}-{split}{label}", [*settings, "--seed", str(split)], out))
        better = [differences(found[0], values, index[name].better) for values in found[1:]]
        rows.append([name, f"{fmean(found[0]):.3f}", *better])
        print(*rows[-1], flush=True)
    print(text_table(rows, ["set", "quick", *arguments.tries], markdown=True))


if __name__ == "__main__":
    main()
