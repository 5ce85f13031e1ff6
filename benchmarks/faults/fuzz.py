"""Bad files by the thousand through the readers of raw data, configurations and searches.

    python benchmarks/faults/fuzz.py [--inputs 20000] [--seed 0] [--only recipes | pickle,json] [--patience 5] [--keep FOLDER]
                                     [--json FILE]

Whole files, generated ones and real ones from ../shared/data where that is there, are flipped, cut, spliced and given absurd
sizes; hypothesis makes up contents; pickles are written instruction by instruction. Each goes through the functions that the
pipelines call, in a process that may take 1 GiB beyond what it has when it starts, is killed after 5 seconds, and tells on code
that starts programs, changes files or reaches out. An input is well received if it is read or refused by one of our errors, in
one line that names the file. Prints a table; ends with 1 if any input was not, and keeps such inputs.

`--self_test` gives the harness readers that do each of these things as well, and ends with 1 unless it notices.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from fuzz_files import generated, whole_folder
from fuzz_inputs import inputs
from fuzz_readers import BAD, CRASH, EXECUTED, HANG, MEMORY, OUTCOMES
from fuzz_seeds import Seed

from cggm_ray.core.errors import listed

MOST_PATIENCE = 60.0
"""Seconds that may pass meanwhile, on a machine that is busy with other things."""
DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data"))
SETS = {
    "files": ("h5", "image", "json", "nifti", "npy", "npz", "parquet", "pickle", "shards", "torch", "yaml"),
    "recipes": ("arrow", "audio", "csv", "jsonl", "listing", "picture", "sentiment", "video"),
}
"""Formats that `--only` names together: files and configurations, and what tables, clips, sets of sentiment and stores are."""
CANARIES = {"execute": EXECUTED, "memory": MEMORY, "hang": HANG, "crash": CRASH, "error": CRASH}


class Reader:
    """A process that reads inputs one after the other, and is replaced when it dies.

    Args:
        whole: folder of whole files, as `fuzz_files.whole_folder` makes it.
        first: input of every role, read once before memory is limited, so that late imports do not count.
        patience: seconds of computation for one input.
    """

    def __init__(self, whole: Path, first: list[tuple[Path, str]], patience: float) -> None:
        self._patience = patience
        self._whole = whole
        self._first = first
        self._process: subprocess.Popen[str] | None = None
        self._start()

    def read(self, path: Path, role: str, patience: float | None = None) -> tuple[str, str]:
        """Outcome and detail of one input; `patience` is for this one alone."""
        if self._process is None:
            self._start()
        return self._ask(path, role, patience or self._patience)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        # A pool that reserves a gigabyte of addresses would look like one that uses it.
        environment = {
            **os.environ,
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "MALLOC_ARENA_MAX": "2",
            "OMP_NUM_THREADS": "1",
        }
        place = tempfile.mkdtemp(prefix="reader-", dir=self._whole.parent)
        command = [sys.executable, str(Path(__file__).with_name("fuzz_readers.py")), str(self._whole), place]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for number, (path, role) in enumerate(self._first):
            patience = max(MOST_PATIENCE, self._patience)
            found, detail = self._ask(path, role, patience, first=True, settle=number == len(self._first) - 1)
            if found in BAD:
                raise SystemExit(f"the whole file of {role} is not well received: {found}: {detail}")

    def _ask(
        self, path: Path, role: str, patience: float, first: bool = False, settle: bool = False
    ) -> tuple[str, str]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        begun, used = time.monotonic(), self._cpu()
        process.stdin.write(json.dumps({"path": str(path), "role": role, "first": first, "settle": settle}) + "\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], 0.5)[0]:
            if self._cpu() - used > patience or time.monotonic() - begun > max(MOST_PATIENCE, patience):
                self.close()
                return HANG, f"no answer after {time.monotonic() - begun:.0f} s"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._process = None
            return CRASH, f"the process ended with {code}"
        answer = json.loads(line)
        return answer["outcome"], answer["detail"]

    def _cpu(self) -> float:
        assert self._process is not None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_inputs(folder: Path, whole: Path) -> list[tuple[Path, str]]:
    """Returns a whole file for every role, in files of their own."""
    found: dict[str, Path] = {}
    for number, one in enumerate(generated(whole)):
        path = folder / f"first{number}{one.suffix}"
        path.write_bytes(one.content)
        found[one.role + one.suffix] = path
    return [(path, role.partition(".")[0]) for role, path in found.items()]


def self_test(reader: Reader, folder: Path) -> bool:
    """Returns whether every canary is noticed."""
    path = folder / "canary.pkl"
    path.write_bytes(b"cos\nsystem\n(Vtouch executed\ntR.")
    noticed = True
    for name, expected in CANARIES.items():
        # One of them never ends, so that any patience is enough for it.
        found, detail = reader.read(path, f"canary {name}", 1.0 if expected == HANG else None)
        print(f"canary {name}: {found} ({detail[:80]!r}); expected {expected}")
        noticed &= found == expected
    return noticed


def fuzz(reader: Reader, arguments: argparse.Namespace, whole: Path, folder: Path) -> dict[str, Any]:
    """Reads everything; returns counts by format, the messages, and what was not well received."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    bad: list[dict[str, str]] = []
    only = wanted(arguments.only)
    for number, (kind, one) in enumerate(inputs(whole, arguments.data, arguments.inputs, arguments.seed, only)):
        if one.group not in counts:
            print(f"{time.strftime('%H:%M:%S')} {one.group}", file=sys.stderr, flush=True)
        path = folder / f"input{one.suffix}"
        path.write_bytes(one.content)
        begun = time.monotonic()
        found, detail = reader.read(path, one.role)
        slowest[one.group] = max(slowest[one.group], time.monotonic() - begun)
        counts[one.group][found] += 1
        if found in BAD:
            bad.append({"format": one.group, "role": one.role, "kind": kind, "outcome": found, "detail": detail})
            keep(arguments.keep, number, one, found)
            print(f"{one.group}/{one.role} {kind} {number}: {found}: {detail}", file=sys.stderr, flush=True)
    return {"seed": arguments.seed, "counts": counts, "slowest_s": slowest, "bad": bad}


def wanted(only: str | None) -> list[str] | None:
    """Returns the formats that `--only` names, one by one or as one of `SETS`; None for all."""
    return None if only is None else [name for text in only.split(",") for name in SETS.get(text, (text,))]


def keep(folder: Path, number: int, one: Seed, found: str) -> None:
    """Writes an input where it can be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{one.group}-{one.role}-{found}-{number}{one.suffix or '.bin'}").write_bytes(one.content)


def table(result: dict[str, Any]) -> str:
    """Outcomes by format, in Markdown."""
    lines = [f"| format | inputs | {' | '.join(OUTCOMES)} | slowest, s |", "|---" * (len(OUTCOMES) + 3) + "|"]
    rows = {**result["counts"], "all": sum(result["counts"].values(), Counter())}
    for name, counts in rows.items():
        cells = [f"{sum(counts.values()):,}", *(f"{counts[kind]:,}" for kind in OUTCOMES)]
        longest = result["slowest_s"].get(name, max(result["slowest_s"].values(), default=0))
        lines.append(f"| {name} | {' | '.join(cells)} | {longest:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help=f"comma-separated formats, or {' or '.join(SETS)}")
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that are not well received"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of real files")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds of computation for one input")
    parser.add_argument("--self_test", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cggm-fuzz-") as text:
        folder = Path(text)
        whole = whole_folder(folder / "whole")
        reader = Reader(whole, first_inputs(folder, whole), arguments.patience)
        try:
            result = fuzz(reader, arguments, whole, folder)
            noticed = not arguments.self_test or self_test(reader, folder)
        finally:
            reader.close()
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if result["bad"]:
        print(f"not well received: {listed(sorted({b['format'] for b in result['bad']}))}; kept in {arguments.keep}")
    return 0 if noticed and not result["bad"] else 1


if __name__ == "__main__":
    sys.exit(main())
