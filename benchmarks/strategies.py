"""All strategies on real sets: the same seeds, the same epochs, the same recipe.

    python benchmarks/strategies.py mosi=mosi_data_noalign.pkl avdigits=avdigits.npz

Trains one run a modality first, which are the teachers of `umt`, then every strategy that serves the task with every seed,
through the pipeline's own --compare. Every strategy has its default numbers (`mslr` its variant `dynamic`, which needs
none). The tables are in STORAGE_PATH/SET/strategies; what is over already is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from real_sets import SETS, add_sets, call, given_sets

from cggm_ray.modulation.base import STRATEGIES
from cggm_ray.studies.compare import MARKDOWN
from cggm_ray.tasks.base import Task

FIRST = ("none", "cggm")


def serving(task: type[Task]) -> list[str]:
    """Names of the strategies for a kind of task, joint training and CGGM first."""
    names = [name for name in STRATEGIES.names() if _serves(name, task)]
    return sorted(names, key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else 0, name))


def compare(name: str, flags: Sequence[str], storage: Path, seeds: str) -> Path:
    """Runs what is left to run on a set; returns its page."""
    flags = [*flags, "--storage_path", str(storage), "--report", "false", "--trackers", "jsonl"]
    teachers = []
    for modality in SETS[name].modalities:
        teachers.append(f"teacher-{modality}")
        alone = ("--modalities", modality, "--modulation", "none", "--local", "--name", teachers[-1])
        call(name, [*flags, *alone])
    together = ["--umt_teachers", ",".join(teachers), "--mslr_strategy", "dynamic", "--seeds", seeds]
    call(name, [*flags, "--compare", ",".join(serving(SETS[name].task)), *together, "--name", "strategies"])
    return storage / "strategies" / MARKDOWN


def _serves(name: str, task: type[Task]) -> bool:
    tasks = STRATEGIES.get(name).tasks
    return not tasks or issubclass(task, tasks)


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
