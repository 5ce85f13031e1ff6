"""Clusters on this machine, by Ray's own command line: a raylet is a node. Tokens, ports and folders are each cluster's own."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import wait_for

NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
POLITE = 10
"""Seconds that a node of a cluster that is over has to clean up. Nothing is expected of it then."""
WORKING = ("ray::RayTrainWorker", "ray::TrainController", "ray::ImplicitFunc")


@dataclass
class Raylets:
    """A cluster.

    Attributes:
        address: of its first node, for drivers and further nodes.
        jobs: of its job server.
        environment: of processes that are to have its token.
        folder: Ray's files.
        nodes: the processes of all nodes.
    """

    address: str
    jobs: str
    environment: dict[str, str]
    folder: Path
    nodes: list[subprocess.Popen[bytes]]

    def add_node(self, cpus: int, *flags: str, inside: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts a node; `inside` is the command in which it runs."""
        log = (self.folder / f"node{len(self.nodes)}.log").open("w")
        (agent,) = free_ports(1)
        command = [
            *(*inside, str(RAY), "start", "--block", f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent}"),
            *("--min-worker-port=0", "--max-worker-port=0", *(flags or (f"--address={self.address}",))),
        ]
        node = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
        )
        self.nodes.append(node)
        return node

    def wait_for_nodes(self, count: int) -> None:
        """Returns when so many nodes are alive."""

        def there() -> bool:
            return self.run("ray", "status", "--address", self.address).stdout.count(" node_") >= count

        wait_for(there, "a node does not come up", by=self.nodes[-1])

    def remove_node(self, node: subprocess.Popen[bytes]) -> None:
        """The death of a node, and of its workers."""
        for child in [node.pid, *descendants(node.pid)]:
            kill(child, signal.SIGKILL)
        node.wait()

    def working(self) -> list[str]:
        """Titles of the processes that train, or steer a training or a trial, on all living nodes; sorted."""
        pids = [process for node in self.nodes if node.poll() is None for process in descendants(node.pid)]
        listed = subprocess.run(
            ["ps", "-o", "args=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=False
        ).stdout
        titles = [line.split(".")[0].strip() for line in listed.splitlines()]
        return sorted(title for title in titles if title in WORKING)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command that knows the token; `ray` and `python` are those of these tests."""
        return subprocess.run(
            self._own(command),
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            cwd=ROOT,
        )

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """See `run`; the output goes to a file."""
        return subprocess.Popen(
            self._own(command), stdout=log.open("w"), stderr=subprocess.STDOUT, env=self.environment, cwd=ROOT
        )

    def _own(self, command: Sequence[str]) -> list[str]:
        return [{"ray": str(RAY), "python": sys.executable}.get(command[0], command[0]), *command[1:]]


@contextmanager
def raylets(cpus: int, grows_by: int = 0, **variables: str) -> Iterator[Raylets]:
    """A cluster.

    Args:
        cpus: of its first node.
        grows_by: nodes of one CPU that its autoscaler may add. It is Ray's own, with the provider that Ray is tested with.
        variables: of the environment of its processes.
    """
    port, dashboard = free_ports(2)
    environment = {
        **os.environ,
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"},
        **{"RAY_ADDRESS": f"127.0.0.1:{port}"},
        **variables,
    }
    # A folder of its own keeps other Ray programs on this machine from joining this cluster; sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Raylets(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment, Path(folder), [])
        try:
            flags = ["--head", f"--port={port}", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
            if grows_by:
                file = Path(folder) / "autoscaler.yaml"
                file.write_text(json.dumps(autoscaler(cluster.address, cpus, grows_by)))
                flags.append(f"--autoscaling-config={file}")
                environment |= {
                    "RAY_FAKE_CLUSTER": "1",
                    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                    NODE_ID: "f" * 51 + "00000",
                }
            cluster.add_node(cpus, *flags, f"--dashboard-port={dashboard}")
            environment.pop(NODE_ID, None)
            asks = ("ray", "job", "list", "--address", cluster.jobs)
            try:
                wait_for(
                    lambda: cluster.run(*asks).returncode == 0, "the first node does not answer", by=cluster.nodes[0]
                )
            except AssertionError as error:
                error.add_note((Path(folder) / "node0.log").read_text()[-2000:])
                raise
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                everything = [node.pid, *descendants(node.pid)]
                kill(node.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    node.wait(timeout=POLITE)
                for process in everything:
                    kill(process, signal.SIGKILL)
                node.wait()


def autoscaler(address: str, cpus: int, most: int) -> dict[str, Any]:
    """Configuration of an autoscaler whose nodes are raylets on this machine."""
    kinds = {
        "head": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
        "train": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most},
    }
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "test",
        "max_workers": most,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {"ray.head.default": kinds["head"], "train": kinds["train"]},
        "head_node_type": "ray.head.default",
        **{"upscaling_speed": 1.0, "idle_timeout_minutes": 5, "auth": {}, "docker": {}, "file_mounts": {}},
        **{"cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": []},
        **{f"{name}_commands": [] for name in lists},
    }


def free_ports(count: int) -> list[int]:
    """Ports for processes that start later: none of those that the system gives away to whoever asks in the meantime."""
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, given), given - 10_000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            break
    return ports


def descendants(pid: int) -> list[int]:
    """Processes under a process, which must be alive."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def own_lines(log: Path) -> list[str]:
    """What a driver wrote itself: lines that Ray relays from other processes come whenever they like."""
    return [line for line in log.read_text().splitlines() if not line.startswith("\x1b[")]
