"""Variants of CGGM on real sets, by validation: which part helps, and with which numbers.

    python benchmarks/science/variants.py mosi=mosi_data_noalign.pkl avdigits=avdigits.npz titles=fashion_title_image \
        --bert minilm

Every variant and every seed is a run with --local, some of them at once; what is over already is not run again. The tables
compare the best validation value of each run with that of joint training with the same seed. No test value is looked at, so
what is chosen here can be tested afterwards.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from real_sets import SETS, add_sets, call, given_sets

from cggm_ray.runs.result import SUMMARY, read_summary
from cggm_ray.studies.comparison import Results, comparison_table

UPDATE = "--modulation cggm --gate update --direction off"
VARIANTS = {
    "none": "--modulation none",
    "cggm": "--modulation cggm",
    "magnitude": "--modulation cggm-magnitude",
    "direction": "--modulation cggm-direction",
    "direction, lam 1": "--modulation cggm-direction --lam 1",
    "update": UPDATE,
    "update, floor 0.001": f"{UPDATE} --floor 0.001",
    "update, smoothing 0.99": f"{UPDATE} --floor 0.001 --smoothing 0.99",
    "update, other utility": f"{UPDATE} --floor 0.001 --smoothing 0.99 --utility {{other}}",
    "update, mean 1": f"{UPDATE} --floor 0.001 --rho {{even}}",
    "update, direction": "--modulation cggm --gate update --floor 0.001",
}
"""Flags by variant. `even` is the rho with which the mean coefficient is 1, `other` the utility that is not the default."""
OTHER_UTILITY = {"mosi": "sign", "avdigits": "likelihood", "titles": "likelihood"}


def flags_of(variant: str, name: str) -> list[str]:
    """Returns the flags of a variant on a set."""
    modalities = len(SETS[name].modalities)
    return VARIANTS[variant].format(even=modalities / (modalities - 1), other=OTHER_UTILITY[name]).split()


def run_name(variant: str, seed: int) -> str:
    """Returns the folder of a run."""
    return f"{variant.replace(', ', '-').replace(' ', '_')}-{seed}"


def train(name: str, flags: Sequence[str], storage: Path, variant: str, seed: int) -> None:
    """Trains a run, unless it is finished."""
    folder = storage / run_name(variant, seed)
    if not (folder / SUMMARY).exists():
        own = ("--local", "--seed", str(seed), "--name", folder.name)
        call(name, storage, [*flags, *flags_of(variant, name), *own])


def table(name: str, storage: Path, variants: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Returns the best validation values of a set."""
    values = {
        variant: {str(seed): read_summary(storage / run_name(variant, seed)).valid for seed in seeds}
        for variant in variants
    }
    metric, better = SETS[name].task.selection
    return comparison_table(Results(values=values, metric=metric, better=better))


def main() -> None:
    """Trains what is left to train, then prints a table of each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sets(parser)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--at_once", type=int, default=max(1, (os.cpu_count() or 1)), help="runs, one thread each")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    sets = given_sets(arguments, parser)
    # The first run of a set converts it, and the others read what it wrote.
    for name, flags in sets.items():
        train(name, flags, arguments.storage_path / name, "none", seeds[0])
    with ThreadPoolExecutor(arguments.at_once) as pool:
        runs = [
            pool.submit(train, name, sets[name], arguments.storage_path / name, variant, seed)
            for seed, variant, name in product(seeds, VARIANTS, sets)
        ]
        for run in runs:
            run.result()
    for name in sets:
        lines = table(name, arguments.storage_path / name, list(VARIANTS), seeds)
        print("", f"{name}, validation", "", *lines, sep="\n")


if __name__ == "__main__":
    main()
