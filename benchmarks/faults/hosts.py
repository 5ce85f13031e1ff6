"""Hosts on this machine: network namespaces with an address, a disk, a memory limit and a process table of their own.

A switch, which is a bridge in a namespace of its own, joins them. To cut a host off is to take its port of the switch down.
Needs root, iproute2 and util-linux, and nftables for lost packets.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from raylets import RAY
from s3_server import KEY

NETWORK = "10.77.0"
HEAD, STORE = "head", "store"
NUMBERS = {HEAD: 1, STORE: 9}
"""Last number of the address; hosts that work are `host1` to `host9`, with the numbers from 11 on."""
STORE_PORT, GCS_PORT, DASHBOARD = 9000, 6379, 8265
MEMORY = 3 * 2**30
"""Bytes that the processes of a host may have together."""
DISK = "512m"
CGROUPS = Path("/sys/fs/cgroup/memory")
PATIENCE = 120.0
"""Seconds that a host, or Ray on it, may take to come up."""
SETTLE = 5.0
"""Seconds after which whatever looks after a host starts Ray on it again."""
START = """
set -e
hostname {name}
mount -t tmpfs -o size={disk} none {folder}
mkdir {folder}/tmp {folder}/home
mount --bind {names} /etc/hosts
mkdir -p /sys/fs/cgroup/memory 2>/dev/null || mount -t tmpfs none /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/memory
mount -t cgroup -o memory none /sys/fs/cgroup/memory
mount --bind /sys/fs/cgroup/memory/{group} /sys/fs/cgroup/memory
ip link set lo up
touch {folder}/.ready
exec sleep infinity
"""
OWN = ("--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
"""What a host has of its own, beside its network."""
WORKING = ("ray::RayTrainWorker", "ray::TrainController", "ray::ImplicitFunc", "ray::Map", "ray::_MapWorker")
"""Titles of processes that do something of a work, by their beginnings."""
OF_RAY = re.compile(r"/ray/|/ray start|/bin/ray ")
"""In the titles of the processes that Ray itself consists of."""
ASK = """
import json, os, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]})
sys.stdout.write(urllib.request.urlopen(request, timeout=20).read().decode())
"""


def missing() -> str | None:
    """Returns what this machine lacks for hosts, or None."""
    if os.geteuid() != 0:
        return "root"
    for program, package in {"ip": "iproute2", "nsenter": "util-linux", "nft": "nftables", "tc": "iproute2"}.items():
        if shutil.which(program) is None:
            return f"the program {program} (Debian: apt-get install {package})"
    if not (CGROUPS / "memory.limit_in_bytes").exists():
        return f"memory cgroups of version 1 at {CGROUPS}"
    return None


def sh(*command: str, check: bool = True) -> str:
    """Returns what a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Host:
    """A host.

    Attributes:
        name: of the host, which all others know.
        address: of it.
        namespace: of its network.
        group: of its memory.
        keeper: the process that ends with the host.
        first: number of the host's first process on this machine.
        ray: `ray start`, if the host is a node.
        flags: of it.
        prefix: words before every command on this host.
        variables: of the environment of every command on this host.
        tended: whether Ray is started again where it has ended.
    """

    name: str
    address: str
    namespace: str
    group: Path
    keeper: subprocess.Popen[bytes]
    first: int
    ray: subprocess.Popen[bytes] | None = None
    flags: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    tended: bool = True

    def inside(self, *command: str) -> list[str]:
        """Returns the command that runs another one on this host."""
        spaces = ("--net", "--mount", "--uts", "--pid")
        limited = ("sh", "-c", f'echo $$ > {self.group}/cgroup.procs; exec "$0" "$@"')
        return [*limited, "nsenter", f"--target={self.first}", *spaces, f"--wd={ROOT}", *command]

    def processes(self) -> dict[int, str]:
        """Returns the titles of all processes of this host, by their numbers on this machine."""
        pids = sh("ip", "netns", "pids", self.namespace, check=False).split()
        found = {}
        for pid in map(int, pids):
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return found

    def working(self) -> dict[int, str]:
        """Returns the processes of Ray that work for somebody."""
        return {pid: title for pid, title in self.processes().items() if title.startswith(WORKING)}


class Network:
    """The hosts, and Ray on them.

    Args:
        folder: short; it holds the disks, seen differently by every host, and the output of what runs there.
        variables: of the environment of all processes.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder, self.disk = folder, folder / "disk"
        self._mark = secrets.token_hex(2)
        self._switch = f"cg{self._mark}-switch"
        self._count = itertools.count(1)
        self.hosts: dict[str, Host] = {}
        disk = str(self.disk)
        unwanted = ("RAY_", "AWS_", "CGGM_")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(unwanted)},
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"},
            **{"RAY_ADDRESS": f"{NETWORK}.1:{GCS_PORT}", "RAY_TMPDIR": disk, "TMPDIR": f"{disk}/tmp"},
            **{"HOME": f"{disk}/home", "GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT)},
            **{**KEY, "AWS_ENDPOINT_URL": f"http://{NETWORK}.{NUMBERS[STORE]}:{STORE_PORT}"},
            # Ray makes its workers nicer than all else on a host, but these share this machine.
            "RAY_worker_niceness": "0",
            **{"CGGM_WORK": f"{disk}/work", "CGGM_CACHE": f"{disk}/cache"},
            **variables,
        }

    def __enter__(self) -> Network:
        self.disk.mkdir()
        names = "".join(f"{address(name)} {name}\n" for name in (*NUMBERS, *(f"host{n}" for n in range(1, 10))))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        sh("ip", "netns", "add", self._switch)
        sh("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", self._switch, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self.hosts.values()):
            self.remove(host)
        sh("ip", "netns", "del", self._switch, check=False)

    def add(self, name: str) -> Host:
        """A new host, with an empty disk."""
        number = next(self._count)
        namespace, group = f"cg{self._mark}-{number}", CGROUPS / f"cg{self._mark}-{number}"
        port = f"p{name}"
        sh("ip", "netns", "add", namespace)
        sh("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        sh("ip", "-n", self._switch, "link", "set", port, "master", "bridge", "up")
        sh("ip", "-n", namespace, "addr", "add", f"{address(name)}/24", "dev", "eth0")
        sh("ip", "-n", namespace, "link", "set", "eth0", "up")
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY))
        start = START.format(
            name=name, disk=DISK, folder=self.disk, names=self.folder / "hosts", group=group.relative_to(CGROUPS)
        )
        keeper = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "unshare", *OWN, "sh", "-c", start],
            start_new_session=True,
        )
        host = Host(name, address(name), namespace, group, keeper, first=0)

        def up() -> bool:
            children = sh("ps", "-o", "pid=", "--ppid", str(keeper.pid), check=False).split()
            host.first = int(children[0]) if children else 0
            ready = (str(self.disk / ".ready"),)
            return bool(children) and not subprocess.run(host.inside("test", "-e", *ready), check=False).returncode

        wait_until(up, f"{name} does not come up", keeper)
        self.hosts[name] = host
        return host

    def remove(self, host: Host) -> None:
        """Switches a host off for ever: all of its processes end at once, and its disk is lost."""
        with suppress(ProcessLookupError):
            os.kill(host.first, signal.SIGKILL)
        host.keeper.kill()
        host.keeper.wait()
        if host.ray is not None:
            host.ray.kill()
            host.ray.wait()
        sh("ip", "-n", self._switch, "link", "del", f"p{host.name}", check=False)
        sh("ip", "netns", "del", host.namespace, check=False)
        for _ in range(50):
            with suppress(OSError):
                host.group.rmdir()
                break
            time.sleep(0.1)
        self.hosts.pop(host.name, None)

    def cut_off(self, host: Host) -> None:
        """Takes the host's port of the switch down: nothing comes in or goes out any more."""
        sh("ip", "-n", self._switch, "link", "set", f"p{host.name}", "down")

    def join(self, host: Host) -> None:
        """The opposite of `cut_off`."""
        sh("ip", "-n", self._switch, "link", "set", f"p{host.name}", "up")

    def lose_packets(self, host: Host, percent: int) -> None:
        """Drops packets that come in at random; 0 drops none."""
        net = ("ip", "netns", "exec", host.namespace, "nft")
        sh(*net, "delete", "table", "inet", "loss", check=False)
        if percent:
            chain = "add table inet loss; add chain inet loss in { type filter hook input priority 0; }"
            sh(*net, f"{chain}; add rule inet loss in numgen random mod 100 < {percent} drop")

    def slow_down(self, host: Host, rate: str | None) -> None:
        """Limits what goes out to a rate such as 2mbit; None has no limit."""
        net = ("ip", "netns", "exec", host.namespace, "tc", "qdisc")
        sh(*net, "del", "dev", "eth0", "root", check=False)
        if rate is not None:
            sh(*net, "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")

    def start(
        self, host: Host, *command: str, log: Path | IO[bytes] | int, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Starts a command on a host."""
        file = log.open("ab") if isinstance(log, Path) else log
        own = {"ray": str(RAY), "python": sys.executable}.get(command[0], command[0])
        return subprocess.Popen(
            host.inside(*host.prefix, own, *command[1:]),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**self.environment, **host.variables, **variables},
            start_new_session=True,
        )

    def run(self, host: Host, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host to its end."""
        own = {"ray": str(RAY), "python": sys.executable}.get(command[0], command[0])
        return subprocess.run(
            host.inside(own, *command[1:]), capture_output=True, text=True, check=False, env=self.environment
        )

    def start_ray(self, host: Host, *flags: str) -> None:
        """Makes a host a node of the cluster."""
        host.flags = flags
        log = self.folder / f"{host.name}.log"
        host.ray = self.start(
            host,
            *("ray", "start", "--block", f"--node-ip-address={host.address}", "--object-store-memory=100000000"),
            *("--disable-usage-stats", *flags),
            log=log,
        )

    def start_head(self, cpus: int, **variables: str) -> Host:
        """The host of the cluster's head, with Ray on it."""
        head = self.add(HEAD)
        head.variables = variables
        where = (f"--port={GCS_PORT}", f"--dashboard-host={head.address}", f"--dashboard-port={DASHBOARD}")
        self.start_ray(head, "--head", *where, f"--temp-dir={self.disk}/ray", f"--num-cpus={cpus}")
        wait_until(lambda: bool(self.ask("nodes")), "the head does not answer", head.ray, self.folder / "head.log")
        return head

    def start_worker(self, name: str, cpus: int, prefix: tuple[str, ...] = (), **variables: str) -> Host:
        """A further host that is a node."""
        host = self.add(name)
        host.prefix, host.variables = prefix, variables
        self.start_ray(host, f"--address={self.environment['RAY_ADDRESS']}", f"--num-cpus={cpus}")
        return host

    def tend(self) -> None:
        """Starts Ray again where it has ended on a host that is there, as whatever looks after a host would do."""
        for host in list(self.hosts.values()):
            if host.ray is not None and host.ray.poll() is not None and host.tended:
                for pid, title in host.processes().items():
                    if title.startswith("ray::") or OF_RAY.search(title):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                time.sleep(SETTLE)
                sh(*host.inside("sh", "-c", f"rm -rf {self.disk}/ray"), check=False)
                self.start_ray(host, *host.flags)

    def ask(self, what: str) -> list[dict[str, Any]]:
        """Returns what the cluster says of its `nodes` or `placement_groups`; an empty list where it does not answer."""
        if HEAD not in self.hosts:
            return []
        url = f"http://{NETWORK}.1:{DASHBOARD}/api/v0/{what}?limit=1000"
        done = self.run(self.hosts[HEAD], "python", "-c", ASK, url)
        try:
            return list(json.loads(done.stdout)["data"]["result"]["result"])
        except (ValueError, KeyError, TypeError):
            return []

    def alive(self) -> set[str]:
        """Returns the addresses of the living nodes."""
        return {str(node["node_ip"]) for node in self.ask("nodes") if node["state"] == "ALIVE"}

    def wait_for_nodes(self) -> None:
        """Returns when all hosts that have Ray are living nodes."""
        wanted = {host.address for host in self.hosts.values() if host.ray is not None}
        wait_until(lambda: wanted <= self.alive(), "a node does not come up")


def address(name: str) -> str:
    """Returns the address of a host."""
    return f"{NETWORK}.{NUMBERS.get(name) or 10 + int(name.removeprefix('host'))}"


def wait_until(
    holds: Callable[[], bool], what: str, by: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Waits for a condition; raises a RuntimeError after `PATIENCE` seconds, or when a process that brings it about ends."""
    end = time.monotonic() + PATIENCE
    while not holds():
        over = by is not None and by.poll() is not None
        if over or time.monotonic() > end:
            said = log.read_text()[-2000:] if log is not None and log.exists() else ""
            raise RuntimeError(f"{what}{': its process ended' if over else ''} {said}")
        time.sleep(0.2)


@contextmanager
def network(**variables: str) -> Iterator[Network]:
    """Hosts that end with the block."""
    folder = tempfile.TemporaryDirectory(prefix="h", dir="/tmp", ignore_cleanup_errors=True)
    with folder as name, Network(Path(name), variables) as found:
        yield found
