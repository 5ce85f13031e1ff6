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
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from host_acts import FAULTS, Act
from host_cluster import LIMIT, Cluster, Command
from host_work import KINDS, SMALL, Kind
from hosts import HEAD, missing, network

ATTEMPTS = 4
MOMENTS = 5
"""Moments that are tried for a fault, when the work was over before it."""
QUIET = 45.0
"""Seconds of silence from which on a row does not hold: a line is due after 30 seconds of waiting."""
CLEAN = 30.0
"""Seconds in which processes and placement groups of a work that is over may end."""
HEADINGS = ("row", "work", "fault", "after (s)", "time (s)", "silence (s)", "exit codes", "result", "left")
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
    act = Act(cluster, rng, words, name)
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
                for again in range(MOMENTS):
                    # Another moment, if the work was over before this one.
                    row = Row(row.number, row.work, row.fault, row.seed + 1000 * again)
                    with suppress(TooLate):
                        disturbed(cluster, row, wanted[row.work])
                        break
                else:
                    raise RuntimeError(f"the work was over before the fault, {MOMENTS} times")
            except RuntimeError as error:
                row.result = f"the hosts: {str(error)[:200]}"
                cluster.start_nodes()
            (out / f"row-{row.number:03d}.json").write_text(json.dumps(asdict(row), indent=1) + "\n")
            print(row.line(), *(f"    {said}" for said in row.said), sep="\n", flush=True)


if __name__ == "__main__":
    main()
