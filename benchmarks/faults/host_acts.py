"""The faults that `host_faults.py` causes, and how each is ended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from host_cluster import CPUS_OF_HEAD, Cluster, Command
from hosts import DASHBOARD, HEAD, MEMORY, NETWORK, NUMBERS, ROOT, STORE, Host, wait_until

FILL = """
import time
from pathlib import Path

Path("/proc/self/oom_score_adj").write_text("-1000")
group = Path("/sys/fs/cgroup/memory")

def value(file, name):
    return next(int(line.split()[1]) for line in (group / file).read_text().splitlines() if line.startswith(name + " "))

def used():
    return int((group / "memory.usage_in_bytes").read_text()) - value("memory.stat", "total_inactive_file")

killed, held = value("memory.oom_control", "oom_kill"), []
while used() < {goal} and value("memory.oom_control", "oom_kill") == killed:
    held.append(b"x" * 2**22)
if value("memory.oom_control", "oom_kill") == killed:
    time.sleep(20)
"""
"""Fills the memory of a host until Ray's monitor counts so many bytes, for 20 seconds, or until the kernel kills a process.

What the kernel can take back, such as pages of files that were read, is no part of it: so much more has to be filled.
"""
REDIS = f"{NETWORK}.{NUMBERS[STORE]}:6379"


class Act:
    """One row while it happens.

    Args:
        cluster: where.
        rng: chooses what the row leaves open.
        words: the command.
        job: beginning of the ids of its jobs.
    """

    def __init__(self, cluster: Cluster, rng: random.Random, words: Sequence[str], job: str) -> None:
        self.cluster, self.rng, self.words, self.job = cluster, rng, words, job
        self.command: Command | None = None
        self.job_now = ""
        self.second = ""
        self._healing: threading.Thread | None = None

    def victim(self) -> Host:
        """Returns a host that works for the row, or any that works where none does just now."""
        hosts = self.cluster.workers()
        busy = [host for host in hosts if host.working()]
        return self.rng.choice(busy or hosts)

    def heal_later(self, heal: Callable[[], None] | None, seconds: float) -> None:
        """Ends the fault after so many seconds."""
        if heal is not None:
            self._healing = threading.Timer(seconds, heal)
            self._healing.start()

    def wait_healed(self) -> None:
        """Returns when the fault is over."""
        if self._healing is not None:
            self._healing.join()


Heal = Callable[[], None] | None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault.

    Attributes:
        inject: causes it, and returns what ends it; None where it is there from the beginning.
        lasts: seconds until it is ended.
        prepare: makes a cluster for it; None takes the usual one.
        driver_works: the driver is on the first host that works, not on the head.
        as_job: the command is a job of Ray's job server.
    """

    inject: Callable[[Act], Heal] | None = None
    lasts: float = 0.0
    prepare: Callable[[Cluster], None] | None = None
    driver_works: bool = False
    as_job: bool = False


def _cut(act: Act) -> Heal:
    host = act.victim()
    act.cluster.net.cut_off(host)
    return lambda: act.cluster.net.join(host)


def _for_good(act: Act) -> Heal:
    host = act.victim()
    host.tended = False
    act.cluster.net.cut_off(host)

    def replace() -> None:
        act.cluster.net.remove(host)
        act.cluster.replace()

    return replace


def _switched_off(act: Act) -> Heal:
    act.cluster.net.remove(act.victim())
    return act.cluster.replace


def _head_lost(act: Act) -> Heal:
    net = act.cluster.net
    variables = net.hosts[HEAD].variables
    net.remove(net.hosts[HEAD])
    return lambda: net.start_head(CPUS_OF_HEAD, **variables) and None


def _raylet_killed(act: Act) -> Heal:
    for pid, title in act.victim().processes().items():
        if "raylet/raylet" in title:
            os.kill(pid, signal.SIGKILL)
    return None


def _memory(share: float) -> Callable[[Act], Heal]:
    def inject(act: Act) -> Heal:
        # The second host is the one on which Ray's monitor may be off.
        host = act.cluster.net.hosts["host2"]
        wait_until(lambda: bool(host.working()), "nothing works on the host whose memory is to be filled")
        before = set(host.working())
        act.cluster.net.start(host, "python", "-c", FILL.format(goal=int(MEMORY * share)), log=subprocess.DEVNULL)
        wait_until(lambda: not before <= set(host.working()), "the memory was full and no process was killed")
        if act.command is None or act.command.process.poll() is not None:
            raise RuntimeError("the work was over before a process was killed")
        return None

    return inject


def _disk_full(act: Act) -> Heal:
    net, host = act.cluster.net, act.victim()
    file = f"{net.disk}/filler"
    net.run(host, "sh", "-c", f"cat /dev/zero > {file}")
    return lambda: net.run(host, "rm", "-f", file) and None


def _packets_lost(act: Act) -> Heal:
    host = act.victim()
    act.cluster.net.lose_packets(host, 10)
    return lambda: act.cluster.net.lose_packets(host, 0)


def _slow_network(act: Act) -> Heal:
    host = act.victim()
    act.cluster.net.slow_down(host, "2mbit")
    return lambda: act.cluster.net.slow_down(host, None)


def _store(fault: str, share: float) -> Callable[[Act], Heal]:
    def inject(act: Act) -> Heal:
        act.cluster.fail(fault, share)
        return lambda: act.cluster.fail(None)

    return inject


def _job_stopped(act: Act) -> Heal:
    address = f"http://{NETWORK}.1:{DASHBOARD}"
    act.cluster.net.run(
        act.cluster.net.hosts[HEAD], "ray", "job", "stop", "--no-wait", "--address", address, act.job_now
    )
    return None


def _two_drivers(act: Act) -> Heal:
    second = Command(act.cluster, act.cluster.workers()[0], act.words)
    code = second.end(act.cluster.net.tend)
    act.second = {0: "both end", 2: "refused"}.get(-1 if code is None else code, f"the second ended with {code}")
    return None


def _redis(cluster: Cluster) -> None:
    cluster.start_nodes({"RAY_REDIS_ADDRESS": REDIS})


def _kernel_only(cluster: Cluster) -> None:
    cluster.start_nodes(RAY_memory_monitor_refresh_ms="0")


def _wrong_clock(cluster: Cluster) -> None:
    cluster.start_nodes(prefix=("faketime", "-f", "+1h"))


def _other_code(cluster: Cluster) -> None:
    cluster.start_nodes()
    other = cluster.net.folder / "other"
    if not other.exists():
        shutil.copytree(ROOT / "cggm_ray", other)
        with (other / "engine" / "loop.py").open("a") as file:
            file.write("# This is what somebody changed on one host.\n")
    host = cluster.net.hosts["host2"]
    host.variables["OTHER"] = "code"
    cluster.net.run(host, "mount", "--bind", str(other), str(ROOT / "cggm_ray"))


FAULTS = {
    "host cut off for 5 s": Fault(inject=_cut, lasts=5),
    "host cut off for 30 s": Fault(inject=_cut, lasts=30),
    "host cut off for 120 s": Fault(inject=_cut, lasts=120),
    "host cut off for good, a new one after 20 s": Fault(inject=_for_good, lasts=20),
    "host switched off, a new one after 20 s": Fault(inject=_switched_off, lasts=20),
    "head lost, back after 5 s, Redis": Fault(inject=_head_lost, lasts=5, prepare=_redis, driver_works=True),
    "head lost, back after 5 s, no Redis": Fault(inject=_head_lost, lasts=5, driver_works=True),
    "raylet killed": Fault(inject=_raylet_killed),
    "memory: Ray's monitor": Fault(inject=_memory(0.97)),
    "memory: the kernel": Fault(inject=_memory(1.02), prepare=_kernel_only),
    "disk of a host full for 20 s": Fault(inject=_disk_full, lasts=20),
    "clock of a host 1 h ahead": Fault(prepare=_wrong_clock),
    "a tenth of the packets lost for 60 s": Fault(inject=_packets_lost, lasts=60),
    "2 Mbit/s for 60 s": Fault(inject=_slow_network, lasts=60),
    "store slow for 60 s": Fault(inject=_store("slow", 1.0), lasts=60),
    "store answers 503 for 20 s": Fault(inject=_store("503", 1.0), lasts=20),
    "store answers 500, a third for 60 s": Fault(inject=_store("500", 0.33), lasts=60),
    "store lists 5 s late for 60 s": Fault(inject=_store("late", 1.0), lasts=60),
    "store cuts a third for 60 s": Fault(inject=_store("cut", 0.33), lasts=60),
    "credentials expired for 20 s": Fault(inject=_store("expired", 1.0), lasts=20),
    "job stopped": Fault(inject=_job_stopped, as_job=True),
    "two drivers": Fault(inject=_two_drivers),
    "other code on one host": Fault(prepare=_other_code),
}
