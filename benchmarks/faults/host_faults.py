"""Work on several hosts, one fault in each row: it must end with the numbers of undisturbed work, and leave nothing behind.

    python benchmarks/faults/host_faults.py --out faults                  # every row of the plan that is not there yet
    python benchmarks/faults/host_faults.py --out faults --only run,search
    python benchmarks/faults/host_faults.py --out faults --rows 3,17 --again
    python benchmarks/faults/host_faults.py --out faults --table          # the table of the rows that are there

The hosts are network namespaces of this machine (hosts.py): a head and two hosts with one CPU each, every
one with its own address, disk, memory and processes, and an S3 server on a fourth. Raw data, shards and results are in its
bucket. A row starts one kind of work, waits a moment that its seed decides, and causes one fault. A command that fails is
given again, up to `ATTEMPTS` times in all; Ray is started again on hosts where it has ended. Compared is then what the work
made, bit for bit. Counted is what is left: placement groups, processes that work, leases that somebody holds, and files of
writes that did not end.

The script goes on with the rows that FOLDER does not have. Exit code 0: all rows hold; 1: some do not; 2: this machine
lacks something, which is named. Two may run beside each other with different works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
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
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from host_work import KINDS, SMALL, Kind, write_data
from hosts import (
    DASHBOARD,
    HEAD,
    MEMORY,
    NETWORK,
    NUMBERS,
    PATIENCE,
    RAY,
    ROOT,
    STORE,
    STORE_PORT,
    Host,
    Network,
    missing,
    network,
    sh,
    wait_until,
)

ATTEMPTS = 4
LIMIT = 600.0
"""Seconds after which a command that has not ended counts as one that hangs."""
QUIET = 45.0
"""Seconds of silence from which on a row does not hold: a line is due after 30 seconds of waiting."""
CLEAN = 30.0
"""Seconds in which processes and placement groups of a work that is over may end."""
CPUS_OF_HEAD = 1
REDIS = f"{NETWORK}.{NUMBERS[STORE]}:6379"
STORE_SCRIPT, COPY_SCRIPT = "benchmarks/faults/host_store.py", "benchmarks/faults/host_copy.py"
PART = re.compile(r"\.part(/|$)|\.tmp$")
LEASE = re.compile(r"\.lock\.\d+$")
HEADINGS = ("row", "work", "fault", "after (s)", "time (s)", "silence (s)", "exit codes", "result", "left")


@dataclass
class Row:
    """What came of a row.

    Attributes:
        number: of the row.
        work: a key of `KINDS`.
        fault: a key of `FAULTS`.
        seed: of the moment and the victim.
        after: seconds from the start of the command to the fault.
        seconds: of all attempts.
        silence: longest time between two lines.
        exit_codes: of the attempts; -1 for one that did not end.
        said: the last line of each attempt that failed.
        result: 'bits', or what is wrong.
        left: counts of what is left, by kind.
    """

    number: int
    work: str
    fault: str
    seed: int
    after: float = 0.0
    seconds: float = 0.0
    silence: float = 0.0
    exit_codes: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    result: str = ""
    left: dict[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the row ended as it must."""
        return self.result.endswith("bits") and not any(self.left.values()) and self.silence <= QUIET

    def line(self) -> str:
        """Returns the line of the table."""
        left = ", ".join(f"{count} {name}" for name, count in self.left.items() if count) or "nothing"
        codes = " ".join(map(str, self.exit_codes))
        values = (self.number, self.work, self.fault, f"{self.after:.0f}", f"{self.seconds:.0f}")
        return f"| {' | '.join(map(str, values))} | {self.silence:.0f} | {codes} | {self.result} | {left} |"


class TooLate(Exception):
    """The work was over before the moment of the fault."""


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


def disturbed(cluster: Cluster, row: Row, wanted: dict[str, Any]) -> None:
    """Does one row."""
    kind, fault = KINDS[row.work], FAULTS[row.fault]
    rng = random.Random(row.seed)
    if fault.prepare is not None:
        fault.prepare(cluster)
    elif not cluster.whole():
        cluster.start_nodes()
    name = f"row-{row.number:03d}-{row.seed}"
    words = cluster.words(kind, name)
    act = Act(cluster, rng, words, f"row-{row.number}")
    began = time.monotonic()
    done: dict[str, int] = {}
    for attempt in range(ATTEMPTS):
        act.job_now = f"{act.job}-{attempt}"
        driver = cluster.net.hosts["host1" if fault.driver_works and "host1" in cluster.net.hosts else HEAD]
        act.command = Command(cluster, driver, words, act.job_now if fault.as_job else None)
        if attempt == 0:
            at_once = fault.prepare is not None and fault.inject is None
            ran = at_once or _wait_for_moment(act.command, kind, wanted["seconds"], rng, cluster.net.tend)
            row.after = time.monotonic() - act.command.began
            if not ran:
                raise TooLate
            if fault.inject is not None and ran:
                heal = fault.inject(act)
                act.heal_later(heal, fault.lasts)
        code = act.command.end(cluster.net.tend)
        if attempt == 0 and fault.inject is not None:
            with suppress(Exception):
                done = kind.done(cluster.fetch(name))
        row.silence = max(row.silence, act.command.silence())
        row.exit_codes.append(-1 if code is None else code)
        # The command that submits a job ends with 0 when somebody stops that job.
        if code == 0 and (not fault.as_job or act.command.said("succeeded")):
            break
        own = [line for line in act.command.lines if line.strip()]
        row.said.append(own[-1][-600:] if own else "")
        if code is None:
            row.result = f"did not end in {LIMIT:.0f} s"
            break
        # What a person would do before the next start: wait until the hosts are there again.
        act.wait_healed()
        cluster.recover()
    act.wait_healed()
    row.seconds = time.monotonic() - began
    if row.result:
        pass
    elif row.exit_codes[-1] != 0:
        row.result = f"failed {len(row.exit_codes)} times"
    else:
        made = cluster.fetch(name)
        found = kind.results(made)
        again = [name for name, starts in kind.done(made).items() if done.get(name, starts) != starts]
        row.result = f"done twice: {', '.join(again)}" if again else compared(found, wanted["results"])
        shutil.rmtree(made)
    if act.second:
        row.result = f"{act.second}, {row.result}"
    end = time.monotonic() + CLEAN
    row.left = cluster.left(name)
    while any(row.left.values()) and time.monotonic() < end:
        time.sleep(1)
        row.left = cluster.left(name)


def _wait_for_moment(
    command: Command, kind: Kind, seconds: float, rng: random.Random, tend: Callable[[], None]
) -> bool:
    """Waits until the work has begun, and for a random part of what it then takes; returns whether it still runs."""
    end = time.monotonic() + LIMIT
    while command.process.poll() is None and not command.said(kind.begun):
        if time.monotonic() > end:
            return False
        tend()
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 0.5 * seconds))
    return command.process.poll() is None


def compared(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Returns 'bits', or what differs."""
    if found == wanted:
        return "bits"
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return f"differs: {', '.join(sorted(names))[:80]}"


def undisturbed(cluster: Cluster, work: str) -> dict[str, Any]:
    """Does a work without a fault; returns its results, and the seconds between its beginning and its end."""
    kind = KINDS[work]
    name = f"undisturbed-{work}"
    command = Command(cluster, cluster.net.hosts[HEAD], cluster.words(kind, name))
    begun: list[float] = []

    def look() -> None:
        if not begun and command.said(kind.begun):
            begun.append(time.monotonic())

    if command.end(look) != 0 or not begun:
        raise SystemExit(f"{work}, undisturbed: {command.process.returncode}: " + "\n".join(command.lines[-20:]))
    return {"seconds": round(time.monotonic() - begun[0], 1), "results": kind.results(cluster.fetch(name))}


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
        host = act.victim()
        used = int((host.group / "memory.usage_in_bytes").read_text())
        taken = int(MEMORY * share) - used
        text = f"open('/proc/self/oom_score_adj', 'w').write('-1000'); x = b'x' * {taken}; import time; time.sleep(20)"
        act.cluster.net.start(host, "python", "-c", text, log=subprocess.DEVNULL)
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
EVERYWHERE = (
    *("raylet killed", "host cut off for 5 s", "store answers 503 for 20 s", "host switched off, a new one after 20 s"),
    *("job stopped", "two drivers", "host cut off for 30 s", "head lost, back after 5 s, no Redis"),
)
ONLY = {
    "run": tuple(name for name in FAULTS if name not in EVERYWHERE),
    "search": ("host cut off for 120 s", "head lost, back after 5 s, Redis", "memory: Ray's monitor"),
    "comparison": ("memory: the kernel", "other code on one host"),
    "conversion": ("disk of a host full for 20 s", "store cuts a third for 60 s", "store lists 5 s late for 60 s"),
    "extraction": ("host cut off for 120 s", "memory: the kernel", "2 Mbit/s for 60 s", "other code on one host"),
    "prediction": ("clock of a host 1 h ahead", "credentials expired for 20 s"),
}


def plan() -> list[Row]:
    """Returns all rows, not yet done: what every kind of work meets first, then what only some do."""
    pairs = [(work, fault) for fault in EVERYWHERE for work in KINDS]
    pairs += [(work, fault) for work in KINDS for fault in ONLY[work]]
    return [Row(number, work, fault, seed=number) for number, (work, fault) in enumerate(pairs, start=1)]


def stored(folder: Path) -> list[Row]:
    """Returns the rows that are done."""
    return [Row(**json.loads(path.read_text())) for path in sorted(folder.glob("row-*.json"))]


def table(rows: Sequence[Row]) -> str:
    """Returns the table, and how many rows hold."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|", *(row.line() for row in rows)]
    held = sum(row.holds for row in rows)
    return "\n".join([*lines, "", f"{held} of {len(rows)} rows hold"])


def prepare(cluster: Cluster, out: Path, works: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Makes what the works need, and returns what each is undisturbed."""
    found = {}
    if "prediction" in works:
        cluster.made = f"{cluster.bucket}/made/run"
        places = (
            "--storage_path",
            f"{cluster.bucket}/made",
            "--name",
            "run",
            "--shard_path",
            f"{cluster.bucket}/made/shards",
        )
        words = ["pipelines/mosi.py", *SMALL, "--data_path", f"{cluster.bucket}/raw/mosi.pkl", *places]
        command = Command(cluster, cluster.net.hosts[HEAD], [*words, "--local", "--num_epochs", "1"])
        if command.end(lambda: None):
            raise SystemExit("\n".join(command.lines[-20:]))
    for work in works:
        file = out / f"undisturbed-{work}.json"
        if not file.exists():
            content = undisturbed(cluster, work)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(content, indent=1))
            part.replace(file)
            print(f"{work}, undisturbed: {content['seconds']} s", flush=True)
        found[work] = json.loads(file.read_text())
    return found


def main() -> None:
    """Does the rows that are missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of work")
    parser.add_argument("--rows", help="numbers of rows")
    parser.add_argument("--fault", action="append", help="a part of the name of a fault; may be repeated")
    parser.add_argument("--again", action="store_true", help="also rows that are done")
    parser.add_argument("--table", action="store_true", help="print the table of what is done")
    arguments = parser.parse_args()
    works = arguments.only.split(",")
    if unknown := [work for work in works if work not in KINDS]:
        parser.error(f"--only: found {unknown[0]}; expected some of {', '.join(KINDS)}")
    if not arguments.table:
        if lacks := missing():
            parser.error(f"this machine lacks {lacks}")
        arguments.out.mkdir(parents=True, exist_ok=True)
        there = set() if arguments.again else {row.number for row in stored(arguments.out)}
        wanted = {int(number) for number in arguments.rows.split(",")} if arguments.rows else None
        rows = [row for row in plan() if row.work in works and row.number not in there]
        rows = [row for row in rows if wanted is None or row.number in wanted]
        faults = arguments.fault or [""]
        rows = [row for row in rows if any(part in row.fault for part in faults)]
        if rows:
            do_rows(arguments.out, rows)
    rows = stored(arguments.out)
    print(table(rows))
    sys.exit(0 if all(row.holds for row in rows) else 1)


def do_rows(out: Path, rows: Sequence[Row]) -> None:
    """Does rows, one after the other, and stores each."""
    # The hosts are removed by a signal too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with network() as net:
        cluster = Cluster(net)
        wanted = prepare(cluster, out, sorted({row.work for row in rows}))
        for row in rows:
            try:
                while True:
                    with suppress(TooLate):
                        disturbed(cluster, row, wanted[row.work])
                        break
                    # Another moment.
                    row = Row(row.number, row.work, row.fault, row.seed + 1000)
            except RuntimeError as error:
                row.result = f"the hosts: {str(error)[:200]}"
                cluster.start_nodes()
            (out / f"row-{row.number:03d}.json").write_text(json.dumps(asdict(row), indent=1) + "\n")
            print(row.line(), *(f"    {said}" for said in row.said), sep="\n", flush=True)


if __name__ == "__main__":
    main()
