"""Seconds from the command to the first step, local and on Ray, and what they are made of.

    python benchmarks/speed/startup.py [--repeats 5] [flags of pipelines/mosi.py]

Starts `pipelines/mosi.py` on shards that are there already, until its log shows the first step, then ends it. `import` is
`import cggm_ray` in a process of its own, `ray.init` the start of a local cluster. Medians; on Linux also the CPU time of the
process that was started. With --preprocess, also the time of a first start, which converts the data, by this process and by
Ray Data.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "pipelines" / "mosi.py"
FIRST = "step 1/"


def cpu_seconds(process: int) -> float | None:
    """Returns the CPU time of a process so far, without that of its children; None where /proc does not say it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_step(flags: list[str], cpu: list[float] | None = None) -> float:
    """Returns the seconds until a run has logged its first step; adds the CPU seconds of its process to a list."""
    start = time.perf_counter()
    command = [sys.executable, "-u", str(SCRIPT), *flags, "--log_interval", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    seconds = None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if FIRST in line:
            seconds = time.perf_counter() - start
            used = cpu_seconds(process.pid)
            if cpu is not None and used is not None:
                cpu.append(used)
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    if seconds is None:
        raise SystemExit("".join(lines[-5:]))
    return seconds


def run_python(code: str) -> float:
    """Returns the seconds of a process with this code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def conversion(flags: list[str], folder: Path) -> float:
    """Returns the seconds of a run's first start up to its first step, shards included."""
    return first_step([*flags, "--shard_path", str(folder)])


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--preprocess", action="store_true")
    arguments, flags = parser.parse_known_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags, "--storage_path", folder]
        first_step([*flags, "--local", "--name", "shards"])
        for number in range(arguments.repeats):
            found.setdefault("import", []).append(run_python("import cggm_ray"))
            start_ray = "import ray; ray.init(log_to_driver=False)"
            found.setdefault("ray.init, its import included", []).append(run_python(start_ray))
            for name, extra in (("local", ["--local"]), ("ray", [])):
                cpu = found.setdefault(f"CPU time of its process, {name}", [])
                seconds = first_step([*flags, *extra, "--name", f"{name}-{number}"], cpu)
                found.setdefault(f"first step, {name}", []).append(seconds)
        if arguments.preprocess:
            for number in range(arguments.repeats):
                for name, extra in (("local", ["--local"]), ("ray", [])):
                    new = Path(folder) / f"new-{name}-{number}"
                    seconds = conversion([*flags, *extra, "--name", new.name], new)
                    found.setdefault(f"first step, {name}, shards to be made", []).append(seconds)
    for name, values in found.items():
        print(json.dumps({"what": name, "seconds": values}))
    for name, values in found.items():
        if not values:
            continue
        print(f"{name:<44}{statistics.median(values):>7.2f} s   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
