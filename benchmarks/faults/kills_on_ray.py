"""Driver and worker of a run on Ray are killed with -9; what goes on has nothing but the bucket.

    python benchmarks/faults/kills_on_ray.py               # ten kills of the driver, ten of the worker
    python benchmarks/faults/kills_on_ray.py --kills 2     # two of each

Raw data, shards and results are in a bucket of an S3 server on this machine. The worker's node sees a disk of its own. Each run
is killed once, each in another part of it. With the kill the disk of the worker's node is emptied, and after a kill of the
driver the driver's disk too. Metrics of all epochs, summary, predictions and weights of the best epoch are compared bit
for bit with those of a run in a folder that nothing disturbed. Prints a row for each run; the exit code is 1 if any differs.

Needs the test tools (`make test` installs them), and root for the disk of the node.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chaos import EXACT, ROOT, STEPS, Kind, Row, Run, difference, done, resumed, wait_until
from injection import PATIENCE, workers
from raylets import Raylets, kill, raylets
from s3_server import KEY, make_bucket, s3_server

from cggm_ray.engine.tracking import LOG
from cggm_ray.storage.base import open_storage
from cggm_ray.storage.cache import FOLDER
from cggm_ray.storage.work import WORK, work_folder

OWN_DISK = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""A command whose processes see an empty folder where the others see another one: `"$0"` is the folder."""
HEAD = "| run | killed | after | continues after step | exit codes | equal |\n|---|---|---|---|---|---|"
LAST = 4 * STEPS - 10


@dataclass(frozen=True)
class Place:
    """Where runs happen.

    Attributes:
        cluster: a node for the driver, and one for the worker.
        disk: the folder that the two nodes see differently.
        bucket: URL.
        folder: for the output of the drivers.
    """

    cluster: Raylets
    disk: Path
    bucket: str
    folder: Path

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Gives the command of a run."""
        places = ["--storage_path", f"{self.bucket}/runs", "--name", name]
        command = [sys.executable, "pipelines/mosi.py", *EXACT, *places, "--save_every", "7"]
        with (self.folder / f"{name}.out").open("a") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=self.cluster.environment
            )

    def output(self, name: str) -> str:
        """Returns what the drivers of a run wrote."""
        return (self.folder / f"{name}.out").read_text()

    def on_node(self, *command: str) -> str:
        """Returns the output of a command that sees the disk of the worker's node."""
        inside = ("nsenter", f"--target={self.cluster.nodes[1].pid}", "--mount", *command)
        return subprocess.run(inside, capture_output=True, text=True, check=False).stdout

    def log(self, name: str) -> str:
        """Returns the lines of progress, from the disk of the worker's node."""
        return self.on_node("cat", str(work_folder(f"{self.bucket}/runs/{name}") / LOG))

    def empty(self, driver: bool) -> None:
        """Empties the disk of the worker's node, or both."""
        for run in (self.on_node, *([_here] if driver else [])):
            run("find", str(self.disk), "-mindepth", "1", "-delete")
            left = run("find", str(self.disk), "-type", "f")
            if left:
                raise SystemExit(f"the disk is not empty: {left}")


def _here(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def disturb(row: Row, place: Place) -> None:
    """Runs one command from its first start to its end, with one kill."""
    name = f"run-{row.number:02d}"
    process = place.start(name)
    if not wait_until(lambda: done(place.log(name)) >= row.at_step, process):
        raise SystemExit(f"{name} ended before the kill: {place.output(name)[-2000:]}")
    reached = done(place.log(name))
    row.at = f"epoch {(reached - 1) // STEPS + 1}, step {(reached - 1) % STEPS + 1}"
    if row.fault == "driver":
        process.kill()
        row.exit_codes.append(process.wait())
        end = time.monotonic() + PATIENCE
        while place.cluster.working():
            if time.monotonic() > end:
                raise SystemExit("workers of a driver that is gone do not end")
            time.sleep(0.1)
        place.empty(driver=True)
        process = place.start(name)
    else:
        for victim in workers(place.cluster):
            kill(victim, signal.SIGKILL)
        place.empty(driver=False)
    row.exit_codes.append(process.wait(PATIENCE))
    if row.exit_codes[-1]:
        raise SystemExit(f"{name} does not end: {place.output(name)[-2000:]}")


def fetch(url: str, folder: Path) -> None:
    """Copies a run from its bucket."""
    storage = open_storage(url)
    for key in storage.list():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        storage.download(key, folder / key)


def row_line(row: Row, log: str) -> str:
    """Returns the line of the table."""
    codes = " ".join(map(str, row.exit_codes))
    return (
        f"| {row.number} | {row.fault} | {row.at} | {resumed(log)} | {codes} | {'bits' if row.equal else 'DIFFERS'} |"
    )


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of the driver, and as many of the worker")
    parser.add_argument("--only", choices=("driver", "worker"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, equal, rows = random.Random(arguments.seed), 0, 0
    # Sockets of Ray want a short path, and the name of the disk must be the same for driver and worker.
    with tempfile.TemporaryDirectory(prefix="kills") as root, s3_server() as endpoint:
        folder, disk = Path(root), Path(root) / "disk"
        disk.mkdir()
        os.environ |= {**KEY, "AWS_ENDPOINT_URL": endpoint, WORK: str(disk / "work"), FOLDER: str(disk / "cache")}
        bucket = make_bucket(endpoint)
        reference = Run(folder, folder, "undisturbed", Kind("local"), None)
        if reference.start().wait(PATIENCE):
            raise SystemExit(reference.output.read_text()[-2000:])
        print(HEAD, flush=True)
        with raylets(cpus=0) as cluster:
            cluster.add_node(1, inside=(*OWN_DISK, str(disk)))
            cluster.wait_for_nodes(2)
            place = Place(cluster, disk, bucket, folder)
            for victim in [arguments.only] if arguments.only else ["driver", "worker"]:
                for number in range(arguments.kills):
                    part = LAST / arguments.kills
                    rows += 1
                    row = Row(rows, victim, "1", max(1, int(part * (number + rng.random()))))
                    disturb(row, place)
                    name = f"run-{row.number:02d}"
                    fetch(f"{bucket}/runs/{name}", folder / name)
                    row.equal = difference(folder / name, reference.folder, exact=True) == 0 and same_predictions(
                        folder / name, reference.folder
                    )
                    equal += row.equal
                    print(row_line(row, (folder / name / LOG).read_text()), flush=True)
                    shutil.rmtree(folder / name)
    print(f"\n{equal} of {rows} runs ended with the bits of the undisturbed run")
    sys.exit(0 if equal == rows else 1)


def same_predictions(run: Path, reference: Path) -> bool:
    """Returns whether the predictions of the test split are the same file."""
    with suppress(FileNotFoundError):
        return (run / "predictions.parquet").read_bytes() == (reference / "predictions.parquet").read_bytes()
    return False


if __name__ == "__main__":
    main()
