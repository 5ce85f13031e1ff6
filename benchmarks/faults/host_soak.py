"""A search and a run beside it on several hosts for half an hour: what every host holds must stay flat, or the exit code is 1.

    python benchmarks/faults/host_soak.py [--minutes 30] [--json FILE]

The hosts are those of host_faults.py, with two more for the search: a head, two hosts for a run with two workers, two for
trials with one worker, and an S3 server. Every few seconds each host's resident memory, open files, threads and used disk are
read, and the living actors of the cluster are counted; printed are means by quarters of the time. Flat means: from the second
quarter to the last a mean grows by less than `GROWTH` of itself, or by less than what `LITTLE` says.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import mean

import yaml
from host_cluster import Cluster, Command
from host_work import SMALL
from hosts import HEAD, STORE, Host, missing, network, sh

PERIOD = 5.0
GROWTH = 0.03
LITTLE = {"memory (MiB)": 20.0, "open files": 10.0, "threads": 10.0, "disk (MiB)": 5.0, "actors": 1.0}
SEARCH = {
    "metric": "mae",
    "trials": 1_000,
    "seed": 0,
    "space": {"lr": {"loguniform": [1e-3, 1e-2]}},
    "scheduler": {"name": "none", "max_epochs": 2},
}


def measure(host: Host, disk: Path) -> dict[str, float]:
    """Returns what a host holds now."""
    files = threads = 0
    for pid in host.processes():
        with suppress(OSError):
            files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            threads += len(list(Path(f"/proc/{pid}/task").iterdir()))
    lines = (host.group / "memory.stat").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("total_rss "))
    used = sh(*host.inside("stat", "--file-system", "--format", "%b %f %S", str(disk))).split()
    blocks, free, size = map(int, used)
    values = (resident / 2**20, files, threads, (blocks - free) * size / 2**20)
    return dict(zip(LITTLE, map(float, values), strict=False))


def quarters(values: list[float]) -> list[float]:
    """Returns the means of the quarters."""
    size = len(values) // 4
    return [mean(values[part * size : (part + 1) * size]) for part in range(4)]


def flat(name: str, parts: list[float]) -> bool:
    """Returns whether a quantity stays where it is in the second half."""
    return parts[3] - parts[1] < max(GROWTH * parts[1], LITTLE[name])


def watch(cluster: Cluster, commands: list[Command], minutes: float) -> dict[str, dict[str, list[float]]]:
    """Returns all values by host and quantity."""
    seen: dict[str, dict[str, list[float]]] = {}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for command in commands:
            if command.process.poll() is not None:
                raise SystemExit("\n".join(command.lines[-20:]))
        for host in cluster.net.hosts.values():
            if host.name != STORE:
                for name, value in measure(host, cluster.net.disk).items():
                    seen.setdefault(host.name, {}).setdefault(name, []).append(value)
        alive = sum(actor["state"] == "ALIVE" for actor in cluster.net.ask("actors"))
        seen.setdefault("cluster", {}).setdefault("actors", []).append(float(alive))
        time.sleep(PERIOD)
    return seen


def main() -> None:
    """Starts both, watches them, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if lacks := missing():
        parser.error(f"this machine lacks {lacks}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with network() as net:
        cluster = Cluster(net)
        for name in ("host3", "host4"):
            net.start_worker(name, 1)
        net.wait_for_nodes()
        (net.folder / "soak.yaml").write_text(yaml.safe_dump(SEARCH))
        places = ("--data_path", f"{cluster.bucket}/raw/mosi.pkl", "--shard_path", f"{cluster.bucket}/shards")
        mosi = ["pipelines/mosi.py", *SMALL, *places, "--storage_path", f"{cluster.bucket}/soak"]
        run = Command(cluster, net.hosts[HEAD], [*mosi, "--name", "run", "--workers", "2", "--num_epochs", "100000"])
        while not run.said(r"epoch +2/"):
            if run.process.poll() is not None:
                raise SystemExit("\n".join(run.lines[-20:]))
            time.sleep(1)
        search = Command(cluster, net.hosts[HEAD], [*mosi, "--name", "search", "--tune", str(net.folder / "soak.yaml")])
        while not search.said(r"^\[3/"):
            if search.process.poll() is not None:
                raise SystemExit("\n".join(search.lines[-20:]))
            time.sleep(1)
        seen = watch(cluster, [run, search], arguments.minutes)
        epochs = [line for line in run.lines if " valid " in line]
        trials = [line for line in search.lines if "finished after" in line]
        print(f"{len(epochs)} epochs of the run and {len(trials)} trials in {arguments.minutes:g} minutes\n")
        for command in (search, run):
            command.signal(signal.SIGKILL)
    print("| host | quantity | mean by quarter | flat |\n|---|---|---|---|")
    rows = [(host, name, quarters(values)) for host, found in seen.items() for name, values in found.items()]
    for host, name, parts in rows:
        text = " ".join(f"{part:.1f}" for part in parts)
        print(f"| {host} | {name} | {text} | {'yes' if flat(name, parts) else 'NO'} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if all(flat(name, parts) for _, name, parts in rows) else 1)


if __name__ == "__main__":
    main()
