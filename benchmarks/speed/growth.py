"""How the time of a CGGM step grows with modalities, time steps, batch, width and depth.

    python benchmarks/speed/growth.py [--threads 2] [--rounds 5]

Each row changes one thing of the MOSI step; all take turns in one process. Medians, in units of the unchanged step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics

import torch
from problems import PROBLEMS, STRATEGIES, Problem, product_step
from step import take_turns

BASE = PROBLEMS["mosi"]


def with_steps(steps: int) -> Problem:
    """Returns the problem with as many time steps in every modality."""
    shapes = {name: (steps, width) for name, (_, width) in BASE.shapes.items()}
    return dataclasses.replace(BASE, shapes=shapes)


def with_modalities(count: int) -> Problem:
    """Returns the problem with so many modalities of the shape of the second one."""
    shape = BASE.shapes["audio"]
    return dataclasses.replace(BASE, shapes={f"m{number}": shape for number in range(count)})


def with_settings(**settings: int) -> Problem:
    """Returns the problem with another model."""
    return dataclasses.replace(BASE, settings=settings)


VARIANTS = {
    "as it is": BASE,
    "2 modalities": with_modalities(2),
    "6 modalities": with_modalities(6),
    "25 time steps": with_steps(25),
    "100 time steps": with_steps(100),
    "batch 32": dataclasses.replace(BASE, batch=32),
    "batch 128": dataclasses.replace(BASE, batch=128),
    "width 80": with_settings(proj_dim=80),
    "10 layers": with_settings(nlevels=10),
    "guides of 1 layer": with_settings(cls_layers=1),
    "guides of 4 layers": with_settings(cls_layers=4),
}


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = {name: product_step(problem, STRATEGIES["cggm"]) for name, problem in VARIANTS.items()}
    medians = {name: statistics.median(values) for name, values in take_turns(steps, arguments.rounds).items()}
    for name, seconds in medians.items():
        print(json.dumps({"variant": name, "seconds": seconds, "of_base": seconds / medians["as it is"]}))
    for name, seconds in medians.items():
        print(f"{name:<22}{1e3 * seconds:>9.0f} ms{seconds / medians['as it is']:>8.2f}")


if __name__ == "__main__":
    main()
