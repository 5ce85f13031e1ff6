"""Training while other processes need the cores, by how the threads of OpenMP wait for each other.

    python benchmarks/speed/busy.py                     # steps of CGGM on CMU-MOSI's shapes, two threads
    python benchmarks/speed/busy.py --problem iemocap --rounds 5

Each measurement is a process of its own, because OpenMP reads the environment once; the ways to wait take turns. First the
machine is left alone, then a process for each core computes without end. Printed are medians of steps per second as shares of
those of OpenMP's own default on the idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cggm_ray.core.openmp import GIVEN, ROUNDS, SPINS

# libgomp's own default stands here in words of its own, because the package would replace it.
WAYS = {
    "default of OpenMP": {SPINS: "300000"},
    f"{ROUNDS} rounds (the package's)": {SPINS: str(ROUNDS)},
    "no round": {"OMP_WAIT_POLICY": "PASSIVE"},
}
ENDLESS = "while True: pass"


def measure(problem: str, seconds: float, threads: int) -> float:
    """Returns steps per second in this process."""
    import torch
    from problems import PROBLEMS, STRATEGIES, product_step

    torch.set_num_threads(threads)
    step = product_step(PROBLEMS[problem], STRATEGIES["cggm"])
    step()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        done += 1
    return done / (time.perf_counter() - start)


def measured(arguments: argparse.Namespace, way: dict[str, str]) -> float:
    """Returns steps per second in a process with these variables."""
    others = {name: value for name, value in os.environ.items() if name not in (*GIVEN, "OMP_NUM_THREADS")}
    flags = ["--problem", arguments.problem, "--seconds", str(arguments.seconds), "--threads", str(arguments.threads)]
    command = [sys.executable, __file__, *flags, "--here"]
    return float(subprocess.run(command, env=others | way, capture_output=True, text=True, check=True).stdout)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps that many cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", ENDLESS]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="mosi")
    parser.add_argument("--seconds", type=float, default=6, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(measure(arguments.problem, arguments.seconds, arguments.threads))
        return
    found: dict[tuple[str, int], list[float]] = {}
    for others in (0, os.cpu_count() or 1):
        with busy(others):
            for _ in range(arguments.rounds):
                for name, way in WAYS.items():
                    found.setdefault((name, others), []).append(measured(arguments, way))
    medians = {key: statistics.median(values) for key, values in found.items()}
    whole = next(iter(medians.values()))
    for (name, others), value in medians.items():
        print(f"{name:<28}{others:>3} busy cores  {value / whole:>7.3f}  ({value:.2f} steps/s)")


if __name__ == "__main__":
    main()
