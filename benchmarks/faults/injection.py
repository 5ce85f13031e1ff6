"""The faults that `chaos.py` injects."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from raylets import Raylets, descendants, kill

from cggm_ray.engine.checkpoints import Checkpoints

PATIENCE = 300.0
"""Seconds that anything may take."""
DISK_MB = 16


def inject_fault(
    what: str,
    run: Path,
    process: subprocess.Popen[bytes],
    cluster: Raylets | None,
    node: str,
    rng: random.Random,
) -> None:
    """Injects a fault, and repairs what a person would repair before the next start.

    Args:
        what: a name of `chaos.KINDS`.
        run: folder of the run.
        process: the command; the leader of its process group.
        cluster: for Ray.
        node: id of the node to drain.
        rng: chooses the victim.
    """
    if what in ("driver killed (local)", "processes killed (torchrun)"):
        os.killpg(process.pid, signal.SIGKILL)
    elif what.startswith("SIGTERM"):
        process.send_signal(signal.SIGTERM)
    elif what == "driver killed (Ray)":
        process.kill()
    elif what == "checkpoint truncated":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        newest = Checkpoints(run).newest()
        assert newest is not None
        victim = rng.choice(sorted(newest.iterdir()))
        os.truncate(victim, rng.randrange(victim.stat().st_size))
    elif what.startswith("disk full"):
        filler = run.parent / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        process.wait(PATIENCE)
        filler.unlink()
    elif what == "storage read-only":
        # A second mount over the first: the system refuses to change one through which files are open for writing.
        disk = str(run.parent)
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        process.wait(PATIENCE)
        subprocess.run(["umount", disk], check=True)
    elif what == "storage gone":
        elsewhere = run.parent.with_name(f"{run.parent.name}-elsewhere")
        elsewhere.mkdir()
        subprocess.run(["mount", "--move", str(run.parent), str(elsewhere)], check=True)
        process.wait(PATIENCE)
        subprocess.run(["mount", "--move", str(elsewhere), str(run.parent)], check=True)
    elif cluster is not None and "worker" in what:
        kill(rng.choice(workers(cluster)), signal.SIGKILL)
    elif cluster is not None:
        if "drained" in what:
            drain(cluster, node)
            # Time for one save: the run must not end before the node does.
            time.sleep(4)
        cluster.remove_node(cluster.nodes[-1])


def workers(cluster: Raylets) -> list[int]:
    """Processes of the training workers."""
    pids = [process for node in cluster.nodes if node.poll() is None for process in descendants(node.pid)]
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=False
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::RayTrainWorker" in line]


def youngest(cluster: Raylets) -> str:
    """Returns the id of the node that started last."""
    listed = cluster.run("ray", "list", "nodes", "--address", cluster.jobs, "--format", "json")
    nodes = [node for node in json.loads(listed.stdout) if node["state"] == "ALIVE" and not node["is_head_node"]]
    return str(nodes[-1]["node_id"])


def drain(cluster: Raylets, node: str) -> None:
    """Tells the cluster that a node is about to be taken away."""
    told = cluster.run(
        *("ray", "drain-node", "--address", cluster.address, "--node-id", node),
        *(
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "chaos",
            "--deadline-remaining-seconds",
            "60",
        ),
    )
    if told.returncode:
        raise SystemExit(told.stderr)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mounts a tmpfs while the block runs."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
