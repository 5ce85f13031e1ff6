"""Test metric of a preset on the sets of feature_sets.py, beside the better of the linear model and the perceptron.

    python benchmarks/science/feature_sets.py --out sets
    python benchmarks/science/simple_models.py --sets sets
    python benchmarks/science/presets.py --sets sets --seeds 5

Every run is selected on validation and tested once, without Ray. The bar of a set is the better of `linear` and `mlp` of
simple_models.py, both on flattened sequences where they were computed. The tolerance of a set is .005 of accuracy, .01 of the
mean absolute error, and for diabetes .01 of the target's standard deviation. A finished run in the storage is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from feature_sets import FeatureSet, read_index
from real_sets import PIPELINES

from cggm_ray.core.tables import text_table
from cggm_ray.runs.result import SUMMARY, read_summary

LAYOUTS = ("flattened", "mean and max")
"""Layouts of sequences, the yardstick's own first."""


def metric_of(name: str, entry: FeatureSet, preset: str, seed: int, storage: Path, flags: Sequence[str]) -> float:
    """Returns the test metric of a run, which is trained unless it is there.

    Args:
        name: of the set.
        entry: the set.
        preset: of the run.
        seed: of the run.
        storage: folder of the runs.
        flags: further ones.
    """
    name = f"{name}-{preset}-{seed}"
    if not (storage / name / SUMMARY).exists():
        kept = ["--local", "--storage_path", str(storage), "--name", name, "--report", "false", "--seed", str(seed)]
        command = [sys.executable, str(PIPELINES / entry.pipeline), *entry.command, "--preset", preset, *kept, *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_summary(storage / name).test[entry.metric]


def bar(entry: FeatureSet, simple: Mapping[str, Sequence[float]]) -> float:
    """Returns the mean of the better simple model of a set."""
    found = []
    for model in ("linear", "mlp"):
        rows = [simple[f"{model}, {layout}"] for layout in LAYOUTS if f"{model}, {layout}" in simple]
        if rows:
            found.append(float(np.mean(rows[0])))
    return max(found) if entry.better == "max" else min(found)


def row(name: str, entry: FeatureSet, values: Sequence[float], simple: Mapping[str, Sequence[float]]) -> list[object]:
    """Returns the row of a set: mean and deviation over the seeds, the bar, and whether it is reached."""
    mean, wanted = float(np.mean(values)), bar(entry, simple)
    short = (wanted - mean) * (1 if entry.better == "max" else -1)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    reached = "yes" if short <= entry.tolerance else f"short by {short:.3f}"
    return [name, f"{mean:.3f} ± {deviation:.3f}", f"{wanted:.3f}", reached]


def main() -> None:
    """Trains what is not there, and prints a row for each set as soon as it is known, and then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of sets; default all of the index")
    parser.add_argument("--sets", type=Path, required=True, help="folder that feature_sets.py filled")
    parser.add_argument("--storage_path", type=Path, help="for the runs [SETS/presets]")
    parser.add_argument("--preset", default="quick", choices=("quick", "released"))
    parser.add_argument("--seeds", type=int, default=5)
    arguments, flags = parser.parse_known_args()
    index = read_index(arguments.sets)
    simple = json.loads((arguments.sets / "simple" / "simple.json").read_text())
    storage = (arguments.storage_path or arguments.sets / "presets").absolute()
    rows = []
    for name in arguments.names or index:
        seeds = range(arguments.seeds)
        values = [metric_of(name, index[name], arguments.preset, seed, storage, flags) for seed in seeds]
        rows.append(row(name, index[name], values, simple[name]))
        print(*rows[-1], flush=True)
    print(text_table(rows, ["set", f"{arguments.preset}, test", "better simple model", "reached"], markdown=True))


if __name__ == "__main__":
    main()
