"""How long a save stops training, where it is written beside training and where training waits for it.

    python benchmarks/speed/saves.py [--width 320] [--saves 5] [--steps 40] [--folder FOLDER]

Trains a network on random data of MOSI's kind with Adam; --width sets the size of its state (320: about 200 MB). After every so
many steps the state is saved in FOLDER, a temporary one by default. The table has the milliseconds that `save` keeps the loop
from its next step, and the seconds of all steps and saves together, the last write included.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from problems import Problem, Product, product

from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.state import Content, Position

KIND = Problem(shapes={"text": (10, 300), "audio": (10, 5), "vision": (10, 20)}, outputs=1, batch=4)


class Waiting(LocalRuntime):
    """A runtime whose saves are over when they return."""

    def save(self, position: Position, content: Callable[[], Content]) -> None:
        """Saves a checkpoint and waits for it."""
        super().save(position, content)
        self.settle()


def timed(run: Product, saves: int, steps: int, *, save: bool) -> tuple[list[float], float]:
    """Returns the seconds of each call of `save`, and those of everything."""
    stops = []
    if save:
        run.runtime.reserve(run.state.content)
    begin = time.perf_counter()
    for number in range(saves):
        for _ in range(steps):
            run()
            run.runtime.notice()
        start = time.perf_counter()
        if save:
            run.runtime.save(Position(number + 1), run.state.content)
        stops.append(time.perf_counter() - start)
    run.runtime.settle()
    return stops, time.perf_counter() - begin


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    settings = {"proj_dim": arguments.width, "modulation": "cggm", "optim": {"optim": "Adam"}}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        run = product(KIND, settings)
        run()
        size = sum(tensor.nbytes for tensor in run.state.content().all())
        print(f"{size / 1e6:.0f} MB of state, a save after every {arguments.steps} steps\n")
        print("| saves | first stop (ms) | median of the others | longest of them | all steps and saves (s) |")
        print("|---|---|---|---|---|")
        kinds = {"none": LocalRuntime, "training waits": Waiting, "beside training": LocalRuntime}
        for what, kind in kinds.items():
            mine = dataclasses.replace(run, runtime=kind(folder / what, run.config.run))
            stops, seconds = timed(mine, arguments.saves, arguments.steps, save=what != "none")
            first, *others = (1000 * stop for stop in stops)
            row = (f"{first:.0f}", f"{statistics.median(others):.0f}", f"{max(others):.0f}", f"{seconds:.1f}")
            print(f"| {what} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
