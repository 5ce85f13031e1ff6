"""All strategies on real sets: the same seeds, the same epochs, the same recipe.

    python benchmarks/science/strategies.py mosi=mosi_data_noalign.pkl avdigits=avdigits.npz

Trains one run a modality first, which are the teachers of `umt`, then every strategy that serves the task with every seed,
through the pipeline's own --compare. Every strategy has its default numbers (`mslr` its variant `dynamic`, which needs
none). The tables are in STORAGE_PATH/SET/strategies; what is over already is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from real_sets import SETS, add_sets, call, given_sets

from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.studies.comparison import MARKDOWN
from cggm_ray.tasks.base import Task

FIRST = ("none", "cggm")


def serving(task: Task) -> list[str]:
    """Returns the names of the strategies for a task, joint training and CGGM first."""
    names = [name for name in STRATEGIES.names() if STRATEGIES.get(name).serves(task)]
    return [*FIRST, *(name for name in names if name not in FIRST)]


def compare(name: str, flags: Sequence[str], storage: Path, seeds: str) -> Path:
    """Runs what is left to run on a set; returns its page."""
    teachers = {modality: f"teacher-{modality}" for modality in SETS[name].modalities}
    for modality, run in teachers.items():
        call(name, storage, [*flags, "--modalities", modality, "--modulation", "none", "--local", "--name", run])
    own = ("--umt_teachers", ",".join(teachers.values()), "--mslr_strategy", "dynamic")
    names = ",".join(serving(SETS[name].task))
    call(name, storage, [*flags, *own, "--compare", names, "--seeds", seeds, "--name", "strategies"])
    return storage / "strategies" / MARKDOWN


def main() -> None:
    """Compares on every set that is given, then names the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sets(parser)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    arguments = parser.parse_args()
    pages = [
        compare(name, flags, arguments.storage_path / name, arguments.seeds)
        for name, flags in given_sets(arguments, parser).items()
    ]
    for page in pages:
        print(page)


if __name__ == "__main__":
    main()
