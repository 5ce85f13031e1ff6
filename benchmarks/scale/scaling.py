"""Samples per second over workers, against one worker, against plain torch, and under Ray Train.

    python benchmarks/scale/scaling.py                 # MOSI shapes, 1 and 2 workers of one thread
    python benchmarks/scale/scaling.py --ray           # in addition an epoch under Ray Train against the same under torchrun

The processes of `torch.multiprocessing` take turns with all variants, some steps each: the package's CGGM step, the same with
joint training, and joint training as anybody writes it (the same network, the mean loss of the local batch, torch's own
clipping and Adam under DistributedDataParallel, nothing of the package's loop). The global batch is 64 samples with one
worker and 128 with two (--batch is per worker). Medians over the rounds. With --ray, `seconds` of the epochs after the first
as the runs themselves record them. JSON lines first, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cggm_ray.core.batch import Batch
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

from problems import PROBLEMS, STRATEGIES, Problem, product_step

PLAIN = "plain DDP, joint"
SCORES = "all-reduce of the scores"
REDUCES = 200
SCRIPT = Path(__file__).parents[2] / "pipelines" / "mosi.py"


def plain_step(problem: Problem, batch: Batch) -> Callable[[], Any]:
    """Returns a step of joint training without the package's loop, which shows the cost of DistributedDataParallel alone."""
    torch.manual_seed(0)
    config = Config.from_dict(dict(problem.settings))
    net, _ = problem.networks(config)
    module: nn.Module = DistributedDataParallel(net) if dist.is_initialized() else net
    optimizer = torch.optim.Adam(net.parameters(), lr=config.optim.lr, fused=True)
    criterion = nn.L1Loss() if problem.outputs == 1 else nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(module(batch.inputs), batch.target).backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.optim.clip)
        optimizer.step()

    return step


def worker(rank: int, workers: int, port: int, arguments: argparse.Namespace, file: str) -> None:
    """Runs all variants in turns in one process of the group."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo")
    problem = PROBLEMS[arguments.problem]
    torch.manual_seed(rank)
    whole = problem.data()
    parts = whole.split(-(-len(whole) // arguments.batch))
    steps: Mapping[str, Callable[[], Any]] = {
        PLAIN: plain_step(problem, parts[0]),
        "none": product_step(problem, STRATEGIES["none"], parts[0]),
        "cggm": product_step(problem, STRATEGIES["cggm"], parts[0]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.rounds + 1):
        for name, step in steps.items():
            if workers > 1:
                dist.barrier()
            start = time.perf_counter()
            for _ in range(arguments.steps):
                step()
            if workers > 1:
                dist.barrier()
            if number:
                seconds[name].append((time.perf_counter() - start) / arguments.steps)
    if workers > 1:
        seconds[SCORES] = [timed_reduce(strategy_sums(problem)) for _ in range(REDUCES)]
    if rank == 0:
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        Path(file).write_text(json.dumps({"batch": len(parts[0]), "seconds": medians}))
    if workers > 1:
        dist.destroy_process_group()


def strategy_sums(problem: Problem) -> Tensor:
    """Returns a vector as long as the one that CGGM adds up over workers in a step of a sequence network."""
    net, guides = problem.networks(Config.from_dict(dict(problem.settings)))
    losses = problem.task().n_sums * (1 + len(guides))
    utilities, direction = 2 * len(guides), net.head.weight.numel() * (1 + len(guides))
    return torch.zeros(losses + utilities + direction + 1, dtype=torch.float64)


def timed_reduce(vector: Tensor) -> float:
    """Returns the seconds of one all-reduce, all workers being ready for it."""
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(vector)
    return time.perf_counter() - start


def measure(workers: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the samples per second of every variant.

    With several workers it also returns the milliseconds of a bare all-reduce.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        file = f"{folder}/result.json"
        mp.spawn(worker, args=(workers, port, arguments, file), nprocs=workers)
        found = json.loads(Path(file).read_text())
    reduce = found["seconds"].pop(SCORES, None)
    speeds = {name: workers * found["batch"] / seconds for name, seconds in found["seconds"].items()}
    return speeds if reduce is None else {**speeds, SCORES: 1e3 * reduce}


def epoch_seconds(command: list[str], folder: Path, name: str, flags: list[str]) -> float:
    """Returns the median seconds of the epochs after the first of a run of the pipeline."""
    places = ["--storage_path", str(folder), "--name", name, "--cpus_per_worker", "1"]
    subprocess.run([*command, str(SCRIPT), *places, *flags], check=True, stdout=subprocess.DEVNULL)
    return statistics.median(float(line["seconds"] or 0) for line in read_metrics(folder / name)[1:])


def under_ray(arguments: argparse.Namespace, flags: list[str]) -> dict[str, float]:
    """Returns the seconds of an epoch with two workers, under torchrun and under Ray Train, in turns."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found: dict[str, list[float]] = {"torchrun": [], "ray": []}
    flags = [*flags, "--num_epochs", str(arguments.epochs)]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.repeats):
            found["torchrun"].append(epoch_seconds(torchrun, Path(folder), f"torchrun-{number}", flags))
            ray = [sys.executable]
            found["ray"].append(epoch_seconds(ray, Path(folder), f"ray-{number}", [*flags, "--workers", "2"]))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="mosi", choices=[name for name in PROBLEMS if name != "brats"])
    parser.add_argument("--batch", type=int, default=64, help="samples per worker")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of a variant in a round")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    speeds = {workers: measure(workers, arguments) for workers in (1, 2)}
    table = [f"{'':<20}{'1 worker':>12}{'2 workers':>12}{'ratio':>8}{'2 workers, of plain':>22}   samples/s"]
    for name, one in speeds[1].items():
        two = speeds[2][name]
        row = {"variant": name, "one": one, "two": two, "ratio": two / one, "of_plain": two / speeds[2][PLAIN]}
        print(json.dumps({"problem": arguments.problem, **row}))
        table.append(f"{name:<20}{one:>12.1f}{two:>12.1f}{two / one:>8.2f}{row['of_plain']:>22.2f}")
    print(json.dumps({SCORES: speeds[2][SCORES], "unit": "ms"}))
    table.append(f"{SCORES}, two workers: {speeds[2][SCORES]:.3f} ms a step")
    if arguments.ray:
        seconds = under_ray(arguments, flags)
        print(json.dumps(seconds))
        table.append("seconds of an epoch, two workers: torchrun {torchrun:.3f}, Ray Train {ray:.3f}".format(**seconds))
        table.append(f"Ray Train / torchrun: {seconds['ray'] / seconds['torchrun']:.3f}")
    print("\n".join(table))


if __name__ == "__main__":
    main()
