"""Test metric of a preset on the sets of feature_sets.py, beside the better of the linear model and the perceptron.

    python benchmarks/science/feature_sets.py --out sets
    python benchmarks/science/simple_models.py --sets sets
    python benchmarks/science/presets.py --sets sets --seeds 5
    python benchmarks/science/presets.py --sets sets --seeds 5 --preset good --minutes 3
    python benchmarks/science/presets.py --sets sets --preset best --minutes 3

`quick` and `released` are a run a seed, without Ray. `good` is one search for a set, whose configuration is then run
with every seed, and `best` one ensemble for a set, which has seeds of its own; both run on Ray. Every run is selected
on validation and tested once. The bar of a set is the better of `linear` and `mlp` of simple_models.py, both on
flattened sequences where they were computed. The tolerance of a set is .005 of accuracy, .01 of the mean absolute
error, and for diabetes .01 of the target's standard deviation. What is finished in the storage is not repeated. Other
flags are those of the pipelines.
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
from cggm_ray.engine.presets import BEST, GOOD
from cggm_ray.engine.settings import PRESET_NAMES
from cggm_ray.runs.result import SUMMARY, read_summary
from cggm_ray.studies.store import TRIALS

LAYOUTS = ("flattened", "mean and max")
"""Layouts of sequences, the yardstick's own first."""


def metrics_of(
    name: str, entry: FeatureSet, preset: str, seeds: int, storage: Path, flags: Sequence[str]
) -> list[float]:
    """Returns the test metric of every run of a set, which are trained unless they are there.

    Args:
        name: of the set.
        entry: the set.
        preset: of the runs.
        seeds: number of runs; an ensemble is one.
        storage: folder of the runs.
        flags: further ones.
    """
    given = ["--preset", preset, "--report", "false", *flags]
    several = ["--seeds", ",".join(map(str, range(seeds)))]
    # The name of each command's folder, its own flags, and the runs that it leaves there.
    commands: dict[str, tuple[list[str], list[str]]] = {
        GOOD: {f"{name}-{preset}": (several, [f"{TRIALS}/*-seed-{seed}" for seed in range(seeds)])},
        BEST: {f"{name}-{preset}": ([], ["."])},
    }.get(preset) or {f"{name}-{preset}-{seed}": (["--local", "--seed", str(seed)], ["."]) for seed in range(seeds)}
    values = []
    for folder, (own, runs) in commands.items():
        if not all(any(storage.glob(f"{folder}/{run}/{SUMMARY}")) for run in runs):
            place = ["--storage_path", str(storage), "--name", folder]
            command = [sys.executable, str(PIPELINES / entry.pipeline), *entry.command, *place, *given, *own]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summaries = [path for run in runs for path in storage.glob(f"{folder}/{run}/{SUMMARY}")]
        values += [read_summary(path.parent).test[entry.metric] for path in summaries]
    return values


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
    parser.add_argument("--preset", default="quick", choices=PRESET_NAMES)
    parser.add_argument("--seeds", type=int, default=5)
    arguments, flags = parser.parse_known_args()
    index = read_index(arguments.sets)
    simple = json.loads((arguments.sets / "simple" / "simple.json").read_text())
    storage = (arguments.storage_path or arguments.sets / "presets").absolute()
    rows = []
    for name in arguments.names or index:
        values = metrics_of(name, index[name], arguments.preset, arguments.seeds, storage, flags)
        rows.append(row(name, index[name], values, simple[name]))
        print(*rows[-1], flush=True)
    print(text_table(rows, ["set", f"{arguments.preset}, test", "better simple model", "reached"], markdown=True))


if __name__ == "__main__":
    main()
