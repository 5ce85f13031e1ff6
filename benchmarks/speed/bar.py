"""What the bar on a terminal costs a run.

    python benchmarks/speed/bar.py [--pairs 7] [--epochs 12] [--batch_size 16]

Each pair trains the demonstration set of MOSI with the same command twice: on a pseudo-terminal, where the bar moves, and on a
pipe, where there is none. The order within a pair changes from pair to pair. Seconds are those of the epochs in `metrics.jsonl`
without the first one; CPU seconds are those of the whole process, which other work on the machine changes less. The last lines
have the median of the ratios of the pairs, and the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path


def seconds(storage: Path, name: str, arguments: argparse.Namespace, *, terminal: bool) -> tuple[float, float]:
    """Trains once and returns the seconds of all epochs but the first, and the CPU seconds of the process."""
    command = [sys.executable, "-m", "cggm_ray", "train", "mosi", "--local", "--report", "false", "--name", name]
    command += ["--storage_path", str(storage), "--num_epochs", str(arguments.epochs)]
    command += ["--batch_size", str(arguments.batch_size), "--cpus_per_worker", "1"]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    shown: list[bytes] = []

    def drain() -> None:
        # A pseudo-terminal ends with an error, and a pipe with nothing.
        with suppress(OSError):
            while text := os.read(ours, 65536):
                shown.append(text)

    reader = threading.Thread(target=drain)
    reader.start()
    before = used()
    done = subprocess.run(command, stdout=theirs, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"})
    cpu = used() - before
    os.close(theirs)
    reader.join()
    os.close(ours)
    output = b"".join(shown)
    if done.returncode or terminal != (b"\x1b[" in output):
        raise SystemExit(f"code {done.returncode}, bar {terminal}: {output[-2000:].decode(errors='replace')}")
    lines = (storage / name / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["seconds"] for line in lines[1:]), cpu


def used() -> float:
    """Returns the CPU seconds of the processes that have ended."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {"seconds": [], "CPU seconds": []}
    print("| pair | with the bar (s) | without (s) | CPU with (s) | CPU without (s) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for pair in range(arguments.pairs):
            order = (True, False) if pair % 2 else (False, True)
            took = {bar: seconds(Path(name), f"{pair}-{bar}", arguments, terminal=bar) for bar in order}
            for values, shown, hidden in zip(ratios.values(), took[True], took[False], strict=True):
                values.append(shown / hidden)
            cells = [took[bar][part] for part in (0, 1) for bar in (True, False)]
            print(f"| {pair + 1} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)
    print()
    for what, values in ratios.items():
        print(f"{what}: median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}")


if __name__ == "__main__":
    main()
