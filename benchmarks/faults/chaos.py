"""Training runs under random faults: each must end with the metrics of the undisturbed run.

    python benchmarks/faults/chaos.py [--runs 22] [--seed 0] [--only KIND,KIND] [--json FILE]

One fault is injected into each run after a random step, and the same command is given again until it ends with code 0.
One worker is compared bit for bit: metrics of all epochs, summary, and weights of the best checkpoint. Two workers,
and groups whose size changes, are compared with one worker, without dropout, to rounding. Ray runs on a cluster of two raylets
of this machine.
Prints a table; the exit code is 1 if any run differs.

Needs the test tools (`make test` installs them), and root for the faults of storage, which is a small tmpfs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from injection import PATIENCE, inject_fault, small_disk, youngest
from raylets import Raylets, raylets

from cggm_ray.engine.tracking import LOG, read_metrics

BATCH, SAMPLES = 16, 960
STEPS = SAMPLES // BATCH
SMALL = [
    *("--nlevels", "3", "--cls_layers", "1", "--num_heads", "2", "--proj_dim", "8"),
    *("--cpus_per_worker", "1", "--log_interval", "1"),
]
DROPOUTS = [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]
EXACT = [*SMALL, "--batch_size", str(BATCH), "--num_epochs", "4"]
# Training amplifies rounding: over three epochs it stays below what is told apart here.
SMOOTH = [*SMALL, *DROPOUTS, "--batch_size", str(BATCH), "--num_epochs", "3"]
ROUNDING = 1e-4
TIMES = {"seconds", "samples_per_second", "peak_memory"}
ATTEMPTS = 6


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        where: 'local', 'torchrun' or 'ray'.
        workers: flag of the run.
        earliest: the first step after which it may come.
        latest: the last one; None is shortly before the end.
    """

    where: str
    workers: str = "1"
    earliest: int = 1
    latest: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the run has one worker throughout."""
        return self.workers == "1" and self.where != "torchrun"


KINDS = {
    "driver killed (local)": Kind("local"),
    "SIGTERM (local)": Kind("local"),
    "disk full": Kind("local"),
    "checkpoint truncated": Kind("local", earliest=STEPS + 1),
    "processes killed (torchrun)": Kind("torchrun", "2"),
    "SIGTERM (torchrun)": Kind("torchrun", "2"),
    "worker killed (Ray)": Kind("ray"),
    "one of two workers killed (Ray)": Kind("ray", "2"),
    "driver killed (Ray)": Kind("ray"),
    "SIGTERM to the driver (Ray)": Kind("ray"),
    "raylet killed (Ray, 1:2)": Kind("ray", "1:2"),
    "node drained, then killed (Ray, 1:2)": Kind("ray", "1:2", latest=15),
    "disk full (Ray)": Kind("ray"),
    "storage read-only": Kind("local"),
    "storage gone": Kind("local"),
}
PLAN = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0, 1, 3, 6, 8, 10, 11)
"""Kinds of the first runs, by number; more runs start over."""
SMALL_DISK = ("disk", "storage")
"""Kinds whose storage is a small file system of its own, by the beginning of their names."""


@dataclass
class Row:
    """What came of a run."""

    number: int
    fault: str
    workers: str
    at_step: int
    at: str = ""
    recovery_seconds: float | None = None
    lost_steps: int | None = None
    exit_codes: list[int] = field(default_factory=list)
    difference: float = math.inf
    equal: bool = False

    def line(self) -> str:
        """Returns the line of the table."""
        seconds = "-" if self.recovery_seconds is None else f"{self.recovery_seconds:.1f}"
        lost = "-" if self.lost_steps is None else str(self.lost_steps)
        codes = " ".join(map(str, self.exit_codes))
        same = "bits" if self.equal and self.difference == 0 else f"{self.difference:.1e}"
        verdict = same if self.equal else f"DIFFERS {same}"
        return f"| {self.number} | {self.fault} | {self.at} | {seconds} | {lost} | {codes} | {verdict} |"


HEAD = "| run | fault | after | recovery (s) | lost steps | exit codes | metrics equal |\n|---|---|---|---|---|---|---|"


class Run:
    """A run into which a fault is injected.

    Args:
        folder: of all runs, with the data that they share.
        storage: where this one is kept.
        name: of the run.
        kind: where and with how many workers it trains.
        cluster: for Ray.
    """

    def __init__(self, folder: Path, storage: Path, name: str, kind: Kind, cluster: Raylets | None) -> None:
        self.folder, self.log = storage / name, storage / name / LOG
        flags = [*(EXACT if kind.exact else SMOOTH), "--storage_path", str(storage), "--name", name]
        script = ["pipelines/mosi.py", *flags, "--shard_path", str(folder / "shards")]
        start = [sys.executable]
        if kind.where == "torchrun":
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        self.command = [
            *start,
            *script,
            *({"local": ["--local"], "ray": ["--workers", kind.workers]}.get(kind.where, [])),
        ]
        self.environment = cluster.environment if cluster is not None else {**os.environ, "OMP_NUM_THREADS": "1"}
        self.output = folder / f"{name}.out"

    def start(self) -> subprocess.Popen[bytes]:
        """Gives the command, in a process group of its own."""
        with self.output.open("a") as file:
            return subprocess.Popen(
                self.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self.environment,
                start_new_session=True,
            )

    def text(self) -> str:
        """Returns the lines of progress so far."""
        with suppress(OSError):
            return self.log.read_text()
        return ""


def done(text: str) -> int:
    """Steps of the whole run after which the last line of progress was written."""
    found = re.findall(r"^epoch (\d+)  step (\d+)/", text, re.MULTILINE)
    return (int(found[-1][0]) - 1) * STEPS + int(found[-1][1]) if found else 0


def resumed(text: str) -> int:
    """Steps that a start went on from, by the line that it wrote; 0 for the beginning."""
    found = re.findall(r"^continues after epoch (\d+)(?: and (\d+) steps)? from", text, re.MULTILINE)
    return int(found[-1][0]) * STEPS + int(found[-1][1] or 0) if found else 0


def wait_until(holds: Callable[[], bool], run: subprocess.Popen[bytes]) -> bool:
    """Waits for a condition; returns whether it held before the process ended."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if run.poll() is not None:
            return holds()
        if time.monotonic() > end:
            raise SystemExit("a run does not go on")
        time.sleep(0.01)
    return True


def disturb(row: Row, run: Run, cluster: Raylets | None, rng: random.Random) -> None:
    """Runs one command from its first start to its end, with one fault."""
    process = start_whole(run, row.workers)
    node = youngest(cluster) if cluster is not None and "drained" in row.fault else ""
    if not wait_until(lambda: done(run.text()) >= row.at_step, process):
        raise SystemExit(f"run {row.number} ended before the fault: {run.output.read_text()[-2000:]}")
    time.sleep(rng.uniform(0, 0.05))
    before = run.text()
    reached, began = done(before), time.monotonic()
    row.at = f"epoch {(reached - 1) // STEPS + 1}, step {(reached - 1) % STEPS + 1}"
    inject_fault(row.fault, run.folder, process, cluster, node, rng)
    starts = before.count("continues after")
    for _ in range(ATTEMPTS):
        # The group under Ray goes on by itself; everything else ends, and is started again.
        back = wait_until(lambda: _goes_on(run, len(before), starts), process)
        if back and row.recovery_seconds is None:
            row.recovery_seconds = time.monotonic() - began
            text = run.text()
            at = text.rfind("continues after")
            row.lost_steps = max(0, done(text[:at] if at >= len(before) - 1 else before) - resumed(text))
        row.exit_codes.append(process.wait(PATIENCE))
        if row.exit_codes[-1] == 0:
            return
        process = run.start()
    raise SystemExit(f"run {row.number} does not end: {run.output.read_text()[-2000:]}")


def start_whole(run: Run, workers: str) -> subprocess.Popen[bytes]:
    """Waits for the first start. A group like 1:2 must have both workers, else the fault could miss it."""
    if ":" not in workers:
        return run.start()
    for _ in range(ATTEMPTS):
        # Ray looks every 20 seconds for what is free.
        time.sleep(25)
        process = run.start()
        wait_until(lambda: " workers of " in run.text(), process)
        if run.text().startswith("2 workers of "):
            return process
        process.kill()
        process.wait()
        shutil.rmtree(run.folder)
    raise SystemExit("the group does not get both workers")


def _goes_on(run: Run, known: int, starts: int) -> bool:
    """Returns whether a line of progress follows the line of a new start."""
    text = run.text()
    added = text[known:]
    # A run that had no checkpoint begins again without saying so.
    at = text.rfind("continues after") if text.count("continues after") > starts else text.rfind("epoch 1  step 1/")
    return at >= known - 1 and " step " in added and done(text[at:]) > 0


def difference(run: Path, reference: Path, exact: bool) -> float:
    """Returns 0 if all is the same bit for bit, otherwise the largest relative difference of any metric of any epoch."""
    ours, theirs = read_metrics(run), read_metrics(reference)
    if [line["epoch"] for line in ours] != [line["epoch"] for line in theirs]:
        return math.inf
    pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in b if name not in TIMES]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, reference)]
    pairs += [
        (summaries[0][part][name], value) for part in ("valid", "test") for name, value in summaries[1][part].items()
    ]
    weights = [(folder / "best" / "model.safetensors").read_bytes() for folder in (run, reference)]
    if exact:
        same = all(a == b for a, b in pairs) and weights[0] == weights[1] and summaries[0] == summaries[1]
        return 0.0 if same else math.inf
    # Counts of classes move by a whole sample where a prediction lies on the edge.
    return max(abs((a or 0) - (b or 0)) / max(abs(b or 0), 1.0) for a, b in pairs)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=len(PLAN))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds, by a part of their names")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = list(KINDS)
    plan = [names[number] for number in itertools.islice(itertools.cycle(PLAN), arguments.runs)]
    if arguments.only:
        plan = [name for name in plan if any(part in name for part in arguments.only.split(","))]
    rng, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory(prefix="chaos") as root:
        folder = Path(root)
        references = {}
        for exact, kind in ((True, Kind("local")), (False, Kind("local", "smooth"))):
            run = Run(folder, folder, f"undisturbed-{'exact' if exact else 'smooth'}", kind, None)
            if run.start().wait(PATIENCE):
                raise SystemExit(run.output.read_text()[-2000:])
            references[exact] = run.folder
        print(HEAD, flush=True)
        # All without a cluster first: one idles at the cost of the others.
        order = sorted(range(len(plan)), key=lambda number: KINDS[plan[number]].where == "ray")
        cluster: Raylets | None = None
        with _cluster() as start:
            for place, number in enumerate(order, start=1):
                kind = KINDS[plan[number]]
                if kind.where == "ray" and cluster is None:
                    cluster = start()
                if kind.where == "ray" and cluster is not None and cluster.nodes[-1].poll() is not None:
                    cluster.nodes.pop()
                    cluster.add_node(cpus=1)
                    cluster.wait_for_nodes(2)
                last = (4 if kind.exact else 3) * STEPS - 20
                row = Row(place, plan[number], kind.workers, rng.randint(kind.earliest, kind.latest or last))
                with (
                    small_disk(folder / f"disk{place}")
                    if plan[number].startswith(SMALL_DISK)
                    else nullcontext(folder) as storage
                ):
                    run = Run(folder, storage, f"run-{place:02d}", kind, cluster if kind.where == "ray" else None)
                    disturb(row, run, cluster, rng)
                    row.difference = difference(run.folder, references[kind.exact], kind.exact)
                row.equal = row.difference == 0 if kind.exact else row.difference < ROUNDING
                rows.append(row)
                print(row.line(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    equal = sum(row.equal for row in rows)
    print(f"\n{equal} of {len(rows)} runs ended with the metrics of the undisturbed run")
    sys.exit(0 if equal == len(rows) else 1)


@contextmanager
def _cluster() -> Iterator[Callable[[], Raylets]]:
    """Yields a function that starts the cluster when it is first needed; the cluster ends with the block."""
    opened = []

    def start() -> Raylets:
        context = raylets(cpus=1, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="8")
        cluster = context.__enter__()
        opened.append(context)
        cluster.add_node(cpus=1)
        cluster.wait_for_nodes(2)
        return cluster

    try:
        yield start
    finally:
        for context in opened:
            context.__exit__(None, None, None)


if __name__ == "__main__":
    main()
