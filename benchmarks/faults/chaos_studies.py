"""The driver of a search, and of a conversion, killed (SIGKILL) at random moments; then the same command completes.

    python benchmarks/faults/chaos_studies.py [--kills 10] [--seed 0] [--only sweep|conversion] [--json FILE]

A search of four trials on a cluster of this machine is killed again and again. Checked: its table is that of the search that
nobody disturbed, bit for bit; no trial that was over started again; every start of a trial goes on after all the epochs that
the one before had saved.

A conversion, half of the times by Ray Data, is killed while it writes shards. Checked after every kill: there is no set, or
a whole one whose shards have their checksums. Then the command completes, and once more, without writing a shard.

The exit code is 1 if any check fails. Needs the test tools (`make test` installs them).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from raylets import Raylets, raylets

from cggm_ray.data.datasets.mosi import planted_imbalance
from cggm_ray.data.shards.shards import open_set, verify_set
from cggm_ray.engine.checkpoints import Checkpoints, position_of

SMALL = ["--nlevels", "3", "--cls_layers", "1", "--num_heads", "2", "--proj_dim", "8", "--cpus_per_worker", "1"]
EPOCHS = 6
PATIENCE = 300.0
TIMES = {"seconds", "starts"}


class Command:
    """A command line that is given many times.

    Args:
        flags: of `pipelines/mosi.py`.
        environment: of its process.
        output: file that collects what it prints.
    """

    def __init__(self, flags: list[str], environment: dict[str, str], output: Path) -> None:
        self._flags, self._environment, self._output = flags, environment, output

    def start(self) -> subprocess.Popen[bytes]:
        """Once more."""
        with self._output.open("a") as file:
            return subprocess.Popen(
                [sys.executable, "pipelines/mosi.py", *self._flags],
                **{"stdout": file, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": self._environment},
            )

    def complete(self) -> float:
        """To its end; returns the seconds."""
        began = time.monotonic()
        if self.start().wait(PATIENCE):
            raise SystemExit(self._output.read_text()[-2000:])
        return time.monotonic() - began


def kill_when(process: subprocess.Popen[bytes], holds: Callable[[], bool], delay: float) -> bool:
    """SIGKILL so many seconds after the condition holds; False where the process ended before."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.01)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def known(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every trial that started: its record, and the epochs that it has saved."""
    found = {}
    for path in sorted(folder.glob("trials/*/trial.json")):
        newest = Checkpoints(path.parent).newest()
        position = None if newest is None else position_of(newest)
        found[path.parent.name] = json.loads(path.read_text()) | {"saved": 0 if position is None else position.epoch}
    return found


def table(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a search without times."""
    with (folder / "trials.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def sweep(root: Path, cluster: Raylets, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kills a search and checks it."""
    file = root / "search.yaml"
    space = {"lr": {"grid": [1e-3, 3e-3]}, "rho": {"grid": [1.0, 1.3]}}
    file.write_text(
        yaml.safe_dump({"metric": "mae", "space": space, "scheduler": {"name": "none", "max_epochs": EPOCHS}})
    )
    flags = [*SMALL, "--storage_path", str(root), "--shard_path", str(root / "shards"), "--tune", str(file)]
    whole = Command([*flags, "--name", "whole"], cluster.environment, root / "whole.out")
    seconds = whole.complete()
    command = Command([*flags, "--name", "killed"], cluster.environment, root / "killed.out")
    folder, problems, done, moments = root / "killed", [], 0, []
    for _ in range(kills):
        before = known(folder)
        starts = sum(len(trial["starts"]) for trial in before.values())
        # After a trial has started, or before: the driver plans and connects first.
        early = rng.random() < 0.2
        began = time.monotonic()
        process = command.start()
        if not kill_when(
            process,
            lambda early=early, starts=starts: early or sum(len(t["starts"]) for t in known(folder).values()) > starts,
            rng.uniform(1, 8) if early else rng.uniform(0, 4),
        ):
            break
        done += 1
        moments.append(round(time.monotonic() - began, 1))
        # What dies with its driver takes a moment.
        time.sleep(2)
        problems += compare(before, known(folder))
    before = known(folder)
    last = command.complete()
    after = known(folder)
    problems += compare(before, after)
    if table(folder) != table(root / "whole"):
        problems.append("the table differs from that of the undisturbed search")
    return {
        "what": "search",
        "kills": done,
        "moments": moments,
        "undisturbed_seconds": round(seconds, 1),
        "last_seconds": round(last, 1),
        "starts": {name: [start["after_epoch"] for start in trial["starts"]] for name, trial in after.items()},
        "problems": problems,
    }


def compare(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the errors of a start."""
    problems = []
    for name, old in before.items():
        new = after[name]["starts"][len(old["starts"]) :]
        if old["status"] in ("finished", "stopped") and new:
            problems.append(f"{name} was over and started again")
        problems += [
            f"{name} had saved {old['saved']} epochs and started after {start['after_epoch']:.0f}"
            for start in new[:1]
            if start["after_epoch"] < old["saved"]
        ]
    return problems


def conversion(root: Path, cluster: Raylets, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kills a conversion and checks it."""
    source = root / "large.pkl"
    source.write_bytes(pickle.dumps(planted_imbalance(1, samples={"train": 4000, "valid": 500, "test": 500}, steps=50)))
    problems, moments, seconds = [], [], []
    done = within = shards_written = 0
    for where, count in (("local", (kills + 1) // 2), ("ray", kills // 2)):
        shards = root / f"shards-{where}"
        flags = [*SMALL, "--data_path", str(source), "--storage_path", str(root), "--shard_path", str(shards)]
        flags += ["--name", f"run-{where}", "--num_epochs", "1", "--batch_size", "500"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if where == "local" else cluster.environment
        command = Command([*flags, *(["--local"] * (where == "local"))], environment, root / f"{where}.out")
        for _ in range(count):
            old = set(shards.glob(".*.part"))
            began = time.monotonic()
            process = command.start()
            found = kill_when(
                process,
                lambda shards=shards, old=old: (
                    bool(set(shards.glob(".*.part")) - old) or bool(list(shards.glob("mosi-*")))
                ),
                rng.uniform(0, 0.4 if where == "local" else 1.5),
            )
            done += found
            within += found and bool(set(shards.glob(".*.part")) - old)
            moments.append(round(time.monotonic() - began, 1))
            time.sleep(1)
            for folder in shards.glob("mosi-*"):
                manifest = open_set(folder)
                if manifest is None:
                    problems.append(f"{folder.name} is there and not whole")
                else:
                    verify_set(folder, manifest)
                    # The next kill is to meet a conversion too.
                    shutil.rmtree(folder)
        seconds.append(round(command.complete(), 1))
        files = {path: path.stat().st_mtime_ns for path in shards.glob("mosi-*/*")}
        shards_written += len(files) - 1
        command.complete()
        if files != {path: path.stat().st_mtime_ns for path in shards.glob("mosi-*/*")}:
            problems.append("a second start wrote shards again")
    return {
        "what": "conversion",
        "kills": done,
        "within_conversion": within,
        "moments": moments,
        "shards": shards_written,
        "last_seconds": seconds,
        "problems": problems,
    }


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("sweep", "conversion"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng, found = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory(prefix="chaos") as folder, raylets(cpus=2) as cluster:
        for name, work in (("sweep", sweep), ("conversion", conversion)):
            if arguments.only in (None, name):
                found.append(work(Path(folder), cluster, arguments.kills, rng))
                print(json.dumps(found[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    sys.exit(1 if any(each["problems"] or each["kills"] < arguments.kills for each in found) else 0)


if __name__ == "__main__":
    main()
