"""Compares `--preset quick` with simple models on many splits of a set, because one split of a small set has few test samples.

    python benchmarks/science/feature_sets.py --out sets
    python benchmarks/science/resplits.py breast_cancer --sets sets --out resplits --splits 20

All samples of a set are split anew, with the shares that training, validation and test have in it. For every split a run of
`quick`, the linear model and the perceptron of simple_models.py are trained with one seed. Test metric, mean over the splits;
the last two columns are the mean difference of the splits with its standard error, positive where `quick` is better. No
setting may be chosen by these figures, since the test samples of the set are among them. Sets are npz files. What is finished
in --out is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from feature_sets import INDEX, FeatureSet, drawn_split, read_index
from presets import LAYOUTS
from quick_trials import differences, flag, tested

from cggm_ray.core.tables import text_table

HERE = Path(__file__).parent


def split_all(entry: FeatureSet, seed: int, out: Path) -> FeatureSet:
    """Writes a set with another split of all its samples, and returns its entry."""
    content = dict(np.load(entry.path, allow_pickle=True))
    of, target = flag(entry, "--split"), flag(entry, "--target")
    shares = (float((content[of] == "valid").mean()), float((content[of] == "test").mean()))
    content[of] = drawn_split(content[target], shares, entry.metric == "accuracy", seed)
    np.savez(out, **content)
    return replace(entry, path=str(out))


def simple_metrics(names: Sequence[str], out: Path) -> dict[str, list[float]]:
    """Returns the test metric of both simple models on the sets, which are trained unless they are there."""
    command = [sys.executable, str(HERE / "simple_models.py"), *names, "--sets", str(out), "--seeds", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((out / "simple" / "simple.json").read_text())

    def of(name: str, model: str) -> float:
        return next(fmean(found[name][key]) for layout in LAYOUTS if (key := f"{model}, {layout}") in found[name])

    return {model: [of(name, model) for name in names] for model in ("linear", "mlp")}


def main() -> None:
    """Splits, trains what is not there, and prints a row for each set as soon as it is known, and then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="of sets")
    parser.add_argument("--sets", type=Path, required=True, help="folder of feature_sets.py or held_out_sets.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the splits and runs")
    parser.add_argument("--splits", type=int, default=20)
    arguments = parser.parse_args()
    index, out = read_index(arguments.sets), arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    entries = {
        f"{name}-{split}": split_all(index[name], split, out / f"{name}-{split}.npz")
        for name in arguments.names
        for split in range(arguments.splits)
    }
    (out / INDEX).write_text(json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=1))
    rows = []
    for name in arguments.names:
        splits = [f"{name}-{split}" for split in range(arguments.splits)]
        simple = simple_metrics(splits, out)
        quick = [tested(entries[split], split, ["--seed", "0"], out / "quick") for split in splits]
        ahead = [differences(values, quick, index[name].better) for values in simple.values()]
        rows.append([name, *(f"{fmean(values):.3f}" for values in (quick, *simple.values())), *ahead])
        print(*rows[-1], flush=True)
    print(text_table(rows, ["set", "quick", *simple, "against linear", "against mlp"], markdown=True))


if __name__ == "__main__":
    main()
