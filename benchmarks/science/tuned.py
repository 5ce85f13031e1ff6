"""A strategy against joint training, both tuned with the same number of trials.

    python benchmarks/science/tuned.py mosi=mosi_data_noalign.pkl avdigits=avdigits.npz titles=fashion_title_image --bert minilm

On every set: a random search for joint training over learning rate, weight decay and dropout, and one for the strategy over
these and its own numbers, with as many trials each; no trial is stopped early. The best configuration of each by validation
is then trained with seeds that the search did not see, and their test metrics are compared seed by seed. Further flags go to
the strategy's runs alone; --label gives them a name. What is over already in --storage_path is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.csv
import yaml
from real_sets import SETS, add_sets, call, given_sets

from cggm_ray.studies.comparison import BASELINE, RUNS, Results, comparison_table

BOTH: dict[str, Any] = {
    "lr": {"loguniform": [1.0e-3, 1.0e-2]},
    "weight_decay": {"loguniform": [1.0e-6, 1.0e-3]},
    "out_dropout": {"uniform": [0.0, 0.4]},
}
OWN: dict[str, Any] = {
    "rho": {"uniform": [0.8, 2.0]},
    "lam": {"loguniform": [0.01, 1.0]},
    "cls_lr": {"loguniform": [3.0e-4, 3.0e-3]},
    "smoothing": {"choice": [0.5, 0.9, 0.99]},
}


def tuned(name: str, flags: Sequence[str], label: str, space: dict[str, Any], plan: argparse.Namespace) -> Path:
    """Searches, trains the best with all seeds, and returns their test metrics."""
    storage: Path = plan.storage_path / name
    storage.mkdir(parents=True, exist_ok=True)
    file = storage / f"{label}.yaml"
    search = {"trials": plan.trials, "seed": 0, "scheduler": {"name": "none"}, "space": space}
    file.write_text(yaml.safe_dump(search, sort_keys=False))
    call(name, storage, [*flags, "--seed", "1", "--tune", str(file), "--name", f"search-{label}"])
    best = storage / f"search-{label}" / "best.yaml"
    call(name, storage, ["--config", str(best), "--seeds", plan.seeds, "--name", f"tuned-{label}"])
    return storage / f"tuned-{label}" / RUNS


def table(name: str, files: dict[str, Path]) -> list[str]:
    """Returns the comparison of the runs in several files, by label."""
    rows = {label: pyarrow.csv.read_csv(file).to_pylist() for label, file in files.items()}
    values = {
        label: {row["run"]: {k: v for k, v in row.items() if k not in ("strategy", "run")} for row in found}
        for label, found in rows.items()
    }
    metric, better = SETS[name].task.selection
    return comparison_table(Results(values=values, metric=metric, better=better))


def main() -> None:
    """Tunes on every set that is given, then prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sets(parser)
    parser.add_argument("--strategy", default="cggm", help="cggm or one of its kin")
    parser.add_argument("--label", help="name of the strategy's row; default the strategy's")
    parser.add_argument("--trials", type=int, default=8, help="of each search")
    parser.add_argument("--seeds", default=",".join(map(str, range(101, 111))), help="that the search does not use")
    arguments, own = parser.parse_known_args()
    label = arguments.label or arguments.strategy
    tables = {}
    for name, flags in given_sets(arguments, parser).items():
        strategy = [*flags, "--modulation", arguments.strategy, *own]
        files = {
            BASELINE: tuned(name, [*flags, "--modulation", BASELINE], BASELINE, BOTH, arguments),
            label: tuned(name, strategy, label, BOTH | OWN, arguments),
        }
        tables[name] = table(name, files)
    for name, lines in tables.items():
        print("", f"{name}, {arguments.trials} trials each", "", *lines, sep="\n")


if __name__ == "__main__":
    main()
