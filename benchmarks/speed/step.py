"""Time and memory of a training step, against the plain step of the released code and against joint training.

    python benchmarks/speed/step.py                                       # CMU-MOSI shapes, 2 threads
    python benchmarks/speed/step.py --problems mosi,iemocap,food101,brats --rounds 5
    python benchmarks/speed/step.py --breakdown                           # where the time of a CGGM step goes
    python benchmarks/speed/step.py --problems iemocap --strategies all   # every strategy that serves the task
    python benchmarks/speed/step.py --strategies cggm --together          # encoders one by one and together

The variants take turns, one step each, so that whatever else the machine does meets all of them; printed are medians over
the rounds with the quartiles, and ratios of medians. Peak memory is that of a process of its own which takes three steps,
above what it held before the first. Launches are the operations that a step starts, each of which is a kernel or more on a GPU;
views are not counted. JSON lines first, then a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from problems import NAIVE, PROBLEMS, STRATEGIES, STRATEGY_TYPES, Problem, naive_step, product
from torch.utils._python_dispatch import TorchDispatchMode

from cggm_ray.core.reduction import SINGLE_WORKER
from cggm_ray.engine.assembly import build_strategy
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import clip_by_total_norm, model_optimizer
from cggm_ray.models.sequence import SequenceNet

NEEDED: dict[str, dict[str, Any]] = {"mslr": {"mslr_strategy": "dynamic"}}
"""Settings that a strategy cannot do without."""
TOGETHER = ", together"
"""How the name of a variant ends whose encoders are called together."""


def make(problem: Problem, variant: str) -> Callable[[], Any]:
    """Returns the step of a variant."""
    if variant == NAIVE:
        return naive_step(problem)
    label = variant.removesuffix(TOGETHER)
    step = product(problem, STRATEGIES.get(label, {"modulation": label, **NEEDED.get(label, {})}))
    if label != variant:
        assert isinstance(step.state.net, SequenceNet)
        step.state.net.together = True
    return step


def variants_of(problem: Problem, chosen: str | None, together: bool) -> list[str]:
    """Returns all variants, or the chosen strategies after joint training; the naive step exists for sequences only.

    With `together` every strategy is there a second time, with encoders called together as on a GPU.
    """
    if together:
        return [name + end for name in variants_of(problem, chosen, False) if name != NAIVE for end in ("", TOGETHER)]
    if chosen is not None:
        serving = [name for name in STRATEGY_TYPES.names() if STRATEGY_TYPES.get(name).serves(problem.task())]
        names = serving if chosen == "all" else chosen.split(",")
        return ["none", *(name for name in names if name != "none")]
    return ([] if problem.backbone else [NAIVE]) + list(STRATEGIES)


def timed(step: Callable[[], Any]) -> float:
    """Returns the seconds of a step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def take_turns(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every variant in every round, after one round that does not count."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    return seconds


def peak_memory(problem: str, variant: str, threads: int) -> float:
    """Returns the MiB that three steps need above what the process held before, in a process of its own."""
    command = [sys.executable, __file__, "--memory_of", variant, "--problems", problem, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Launches(TorchDispatchMode):
    """Counts operations that make or change a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one operation and does it."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launches(problem: Problem, variant: str) -> int:
    """Returns the operations of the second step, when optimizers have their momenta."""
    step = make(problem, variant)
    step()
    with Launches() as counted:
        step()
    return counted.count


def print_memory(problem: Problem, variant: str) -> None:
    """Prints the memory in the process that `peak_memory` starts."""
    step = make(problem, variant)
    before = resident("VmRSS")
    for _ in range(3):
        step()
    print(resident("VmHWM") - before)


def resident(line: str) -> float:
    """Returns the MiB of resident memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition(f"{line}:")[2].split()[0]) / 1024


def compare(name: str, threads: int, rounds: int, chosen: str | None, together: bool) -> list[dict[str, Any]]:
    """Returns the rows of the table of one problem."""
    problem = PROBLEMS[name]
    seconds = take_turns(
        {variant: make(problem, variant) for variant in variants_of(problem, chosen, together)}, rounds
    )
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    counts = {variant: launches(problem, variant) for variant in seconds}
    rows = []
    for variant, values in seconds.items():
        quartiles = statistics.quantiles(values, n=4)
        rows.append(
            {
                "problem": name,
                "variant": variant,
                "ms": 1e3 * medians[variant],
                "quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
                "of_naive": medians[NAIVE] / medians[variant] if NAIVE in medians else None,
                "of_joint": medians[variant] / medians["none"],
                "launches": counts[variant],
                "launches_of_joint": counts[variant] / counts["none"],
                "peak_mib": peak_memory(name, variant, threads),
            }
        )
    return rows


def breakdown(name: str, rounds: int) -> dict[str, float]:
    """Returns the median milliseconds of the parts of a CGGM step, which are timed one after the other."""
    problem = PROBLEMS[name]
    torch.manual_seed(0)
    config = Config.from_dict({**problem.settings, "modulation": "cggm"})
    net, guides = problem.networks(config)
    strategy = build_strategy(config, net, guides, problem.task(), SINGLE_WORKER)
    optimizer, data = model_optimizer(config.optim, net.parameters()), problem.data()
    parts: dict[str, list[float]] = {}
    clock = time.perf_counter()

    def mark(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        parts.setdefault(part, []).append(now - clock)
        clock = time.perf_counter()

    for _ in range(rounds + 1):
        clock = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        features = net.encode(data.inputs)
        mark("encoders")
        features = strategy.modulate(features, data.target)
        mark("guides")
        head = net.fuse(features)
        mark("fusion and head")
        task_loss, extra = strategy.losses(head, data.target)
        mark("losses, scores, coefficients, direction")
        (task_loss + extra).backward()
        mark("backward")
        total, _ = clip_by_total_norm(net.parameters(), net.encoders.values(), config.optim.clip or None)
        mark("clip")
        bool(torch.isfinite(task_loss + extra + total))
        mark("finite check")
        optimizer.step()
        mark("optimizer")
        strategy.step()
        mark("guides' optimizer")
    return {part: 1e3 * statistics.median(values[1:]) for part, values in parts.items()}


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="mosi", help=f"comma-separated, of {', '.join(PROBLEMS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--strategies", help="comma-separated names of strategies, or all")
    parser.add_argument("--breakdown", action="store_true")
    parser.add_argument("--together", action="store_true", help="also with the encoders of sequences called together")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.problems.split(",")
    if arguments.memory_of:
        print_memory(PROBLEMS[names[0]], arguments.memory_of)
        return
    if arguments.breakdown:
        for name in names:
            parts = breakdown(name, arguments.rounds)
            print(json.dumps({"problem": name, "threads": arguments.threads, "ms": parts}))
            for part, ms in parts.items():
                print(f"{name:<10}{part:<42}{ms:>9.1f} ms{ms / sum(parts.values()):>7.1%}")
        return
    given = (arguments.threads, arguments.rounds, arguments.strategies, arguments.together)
    rows = [row for name in names for row in compare(name, *given)]
    for row in rows:
        print(json.dumps(row | {"threads": arguments.threads}))
    print(
        f"{'':<10}{'':<24}{'ms':>9}{'quartiles':>16}{'naive / this':>14}{'this / joint':>14}{'peak MiB':>10}{'launches':>10}"
    )
    for row in rows:
        spread = "{:.0f} to {:.0f}".format(*row["quartiles_ms"])
        faster = "" if row["of_naive"] is None else f"{row['of_naive']:.2f}"
        print(
            f"{row['problem']:<10}{row['variant']:<24}{row['ms']:>9.0f}{spread:>16}{faster:>14}{row['of_joint']:>14.2f}"
            f"{row['peak_mib']:>10.0f}{row['launches_of_joint']:>10.2f}"
        )


if __name__ == "__main__":
    main()
