"""The cluster on hosts that `host_faults.py` disturbs, and commands on it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from host_work import Kind, write_data
from hosts import (
    DASHBOARD,
    HEAD,
    NETWORK,
    PATIENCE,
    RAY,
    ROOT,
    STORE,
    STORE_PORT,
    Host,
    Network,
    sh,
    wait_until,
)

LIMIT = 600.0
"""Seconds after which a command that has not ended counts as one that hangs."""
CPUS_OF_HEAD = 1
STORE_SCRIPT, COPY_SCRIPT = "benchmarks/faults/host_store.py", "benchmarks/faults/host_copy.py"
PART = re.compile(r"\.part(/|$)|\.tmp$")
LEASE = re.compile(r"\.lock\.\d+$")


class Cluster:
    """The hosts, with Ray and the store.

    Args:
        net: the hosts; its folder has files that all of them see.
    """

    def __init__(self, net: Network) -> None:
        self.net = net
        self.made = ""
        self._faults, self._downs, self._next = net.folder / "store.json", itertools.count(1), itertools.count(3)
        store, log = net.add(STORE), net.folder / "store.out"
        where = (store.address, str(STORE_PORT), str(self._faults))
        # What the store has may be larger than the disk of a host.
        net.start(store, "python", STORE_SCRIPT, *where, log=log, TMPDIR=str(net.folder))
        wait_until(lambda: log.exists() and "s3://" in log.read_text(), "the store does not start", log=log)
        self.bucket = log.read_text().strip()
        write_data(net.folder)
        self._copy("up", str(net.folder / "raw"), f"{self.bucket}/raw")
        net.start(store, "redis-server", "--protected-mode", "no", "--save", "", log=net.folder / "redis.log")
        self.start_nodes()

    def _copy(self, *command: str) -> None:
        done = self.net.run(self.net.hosts[STORE], "python", COPY_SCRIPT, *command)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])

    def words(self, kind: Kind, name: str) -> list[str]:
        """Returns the command of a work, whose results get a name."""
        folder, raw = self.net.folder, f"{self.bucket}/raw"
        out = folder / f"{name}.parquet"
        return kind.words(raw=raw, at=f"{self.bucket}/{name}", folder=str(folder), made=self.made, out=str(out))

    def fetch(self, name: str) -> Path:
        """Returns a new folder with all that a work has made, by the name of its results."""
        folder = self.net.folder / f"down-{next(self._downs)}"
        folder.mkdir()
        self._copy("down", f"{self.bucket}/{name}", str(folder))
        out = self.net.folder / f"{name}.parquet"
        if out.exists():
            shutil.copy(out, folder / "out.parquet")
        return folder

    def fail(self, fault: str | None, share: float = 1.0) -> None:
        """Makes the store answer a share of the requests with a fault, or none."""
        part = self._faults.with_suffix(".part")
        part.write_text(json.dumps({"fault": fault, "share": share if fault else 0.0}))
        part.replace(self._faults)

    def start_nodes(self, head: Mapping[str, str] = MappingProxyType({}), **worker: Any) -> None:
        """Starts a new cluster on new hosts.

        Args:
            head: variables of the head.
            worker: of `Network.start_worker`, for the second host that works; a prefix, or variables.
        """
        for host in list(self.net.hosts.values()):
            if host.name != STORE:
                self.net.remove(host)
        self.fail(None)
        self.net.run(self.net.hosts[STORE], "redis-cli", "flushall")
        self.net.start_head(CPUS_OF_HEAD, **head)
        self.net.start_worker("host1", 1)
        self.net.start_worker("host2", 1, **worker)
        self.net.wait_for_nodes()

    def recover(self) -> None:
        """Returns when all hosts are nodes again; starts new ones where that does not happen."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.net.tend()
            hosts = self.net.hosts.values()
            if any(host.variables.get("OTHER") for host in hosts):
                break
            if {host.address for host in hosts if host.name != STORE} <= self.net.alive():
                return
            time.sleep(1)
        self.start_nodes()

    def replace(self) -> None:
        """Gives the cluster a new host for one that does not come back."""
        self.net.start_worker(f"host{next(self._next)}", 1)

    def workers(self) -> list[Host]:
        """Returns the hosts that work, those with processes of a work first."""
        hosts = [host for host in self.net.hosts.values() if host.name not in (HEAD, STORE)]
        return sorted(hosts, key=lambda host: (not host.working(), host.name))

    def whole(self) -> bool:
        """Returns whether the cluster is as a new one."""
        hosts = self.net.hosts
        names = {HEAD, STORE, "host1", "host2"}
        usual = hosts.keys() == names and not any(host.prefix or host.variables for host in hosts.values())
        return usual and len(self.net.alive()) == len(names) - 1 and not any(self.left("").values())

    def left(self, name: str) -> dict[str, int]:
        """Returns what is left of work, among the results of a name and on the hosts, by kind."""
        groups = [group for group in self.net.ask("placement_groups") if group["state"] != "REMOVED"]
        found = {
            "placement groups": len(groups),
            "processes": sum(len(host.working()) for host in self.net.hosts.values()),
        }
        if not name:
            return found
        made = self.fetch(name)
        files = [path for path in made.rglob("*") if path.is_file()]
        found["leases"] = sum(bool(LEASE.search(path.name)) and path.read_bytes() != b"{}" for path in files)
        found["parts in the store"] = sum(bool(PART.search(str(path.relative_to(made)))) for path in files)
        shutil.rmtree(made)
        return found


class Command:
    """A command on a host, with the times of its lines.

    Args:
        cluster: where it runs.
        host: of the driver.
        command: after `python`.
        job: the id as which it is submitted to Ray's job server; None where it is started as it is.
    """

    def __init__(self, cluster: Cluster, host: Host, command: Sequence[str], job: str | None = None) -> None:
        self.lines: list[str] = []
        self._times = [time.monotonic()]
        self._log = (cluster.net.folder / "commands.log").open("a")
        self.began = self._times[0]
        words = [sys.executable, *command]
        if job is not None:
            address = f"http://{NETWORK}.1:{DASHBOARD}"
            words = [str(RAY), "job", "submit", "--address", address, "--submission-id", job, "--", "sh", "-c"]
            words.append(shlex.join(["cd", str(ROOT)]) + " && exec " + shlex.join([sys.executable, *command]))
        self.process = cluster.net.start(host, *words, log=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._times.append(time.monotonic())
            self.lines.append(line.decode(errors="replace").rstrip())
            print(f"{time.monotonic() - self.began:.1f} {self.lines[-1]}", file=self._log, flush=True)

    def said(self, pattern: str) -> bool:
        """Returns whether a line has a pattern."""
        return any(re.search(pattern, line) for line in self.lines)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the program itself."""
        for pid in sh("ps", "-o", "pid=", "--ppid", str(self.process.pid), check=False).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

    def end(self, tend: Callable[[], None], limit: float = LIMIT) -> int | None:
        """Waits for the end; returns the exit code, or None after the limit, when the command is killed."""
        while self.process.poll() is None:
            if time.monotonic() - self.began > limit:
                self.signal(signal.SIGKILL)
                self.process.kill()
                self.process.wait()
                return None
            tend()
            time.sleep(0.3)
        # A process that outlived its parent may hold the pipe.
        self._reader.join(5)
        return self.process.returncode

    def silence(self) -> float:
        """Returns the longest time between two lines so far."""
        times = [*self._times, time.monotonic()] if self.process.poll() is None else self._times
        return max((b - a for a, b in pairwise(times)), default=0.0)
