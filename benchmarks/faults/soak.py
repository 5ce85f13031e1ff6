"""Memory and open files of a long run with two workers on Ray: flat, or the exit code is 1.

    python benchmarks/faults/soak.py [--epochs 200] [--json FILE]

Looks every second at the resident memory and the open files of the driver, of Ray Train's controller and of both
workers, and prints them by quarters of the run. Flat means: from the second quarter to the last, the mean grows by less than
3 % and by fewer than 3 files. Needs the test tools (`make test` installs them).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from raylets import Raylets, descendants, raylets

from cggm_ray.engine.tracking import read_metrics

SMALL = [
    *("--nlevels", "3", "--cls_layers", "1", "--num_heads", "2", "--proj_dim", "8"),
    *("--cpus_per_worker", "1", "--batch_size", "240"),
]
PERIOD = 1.0
GROWTH, FILES = 0.03, 3
PAGE = os.sysconf("SC_PAGE_SIZE")


def titles(cluster: Raylets, driver: int) -> dict[int, str]:
    """Process to what it is, for those that are watched."""
    found = {driver: "driver"}
    pids = [pid for node in cluster.nodes for pid in descendants(node.pid)]
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=False
    ).stdout
    for line in listed.splitlines():
        pid, title = line.split(maxsplit=1)
        for text, name in (("ray::TrainController", "controller"), ("ray::RayTrainWorker", "worker")):
            if title.startswith(text):
                found[int(pid)] = f"{name} {pid}" if name == "worker" else name
    return found


def measure(pid: int) -> tuple[float, int]:
    """Returns the resident memory in MiB, and open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * PAGE / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def quarters(values: list[float]) -> list[float]:
    """Returns the means of the quarters."""
    size = len(values) // 4
    return [mean(values[part * size : (part + 1) * size]) for part in range(4)]


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seen: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory(prefix="soak") as folder, raylets(cpus=2) as cluster:
        flags = [
            *SMALL,
            "--storage_path",
            folder,
            "--name",
            "run",
            "--num_epochs",
            str(arguments.epochs),
            "--workers",
            "2",
        ]
        run, began = cluster.start("python", "pipelines/mosi.py", *flags, log=Path(folder) / "out"), time.monotonic()
        while run.poll() is None:
            # The first epoch fills caches.
            if len(read_metrics(Path(folder) / "run")) >= 2:
                for pid, title in titles(cluster, run.pid).items():
                    with suppress(OSError):
                        seen.setdefault(title, []).append(measure(pid))
            time.sleep(PERIOD)
        if run.returncode:
            raise SystemExit((Path(folder) / "out").read_text()[-2000:])
        epochs = len(read_metrics(Path(folder) / "run"))
    print(f"{epochs} epochs in {time.monotonic() - began:.0f} s\n")
    print("| process | samples | memory by quarter (MiB) | open files by quarter |\n|---|---|---|---|")
    flat, rows = True, {}
    for number, (title, values) in enumerate(seen.items()):
        # A process that came and went, such as a worker that made the shards.
        if len(values) < 20:
            continue
        memory, files = quarters([m for m, _ in values]), quarters([float(f) for _, f in values])
        flat &= memory[3] < memory[1] * (1 + GROWTH) and files[3] < files[1] + FILES
        rows[title] = {"memory": memory, "files": files}
        name = title.split()[0] + f" {number - 1}" * title.startswith("worker")
        print(
            f"| {name} | {len(values)} | {' '.join(f'{m:.1f}' for m in memory)} | {' '.join(f'{f:.1f}' for f in files)} |"
        )
    print("\nflat" if flat else "\nNOT flat")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if flat and epochs == arguments.epochs else 1)


if __name__ == "__main__":
    main()
