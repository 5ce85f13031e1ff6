"""How far the loss curves of several workers lie from that of one, and what rounding alone does to it.

    python benchmarks/scale/worker_curves.py [--epochs 8] [--workers 2] [flags of pipelines/mosi.py, such as --data_path FILE]

Three runs without dropout, from the same seed: one worker with one thread; the same with two threads, which only adds in
another order; and several workers on Ray. Prints the relative differences of both to the first, by epoch, as JSON lines and
as a table. Training amplifies rounding: what counts is that the workers' column grows like the threads' column.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cggm_ray.engine.tracking import read_metrics

SCRIPT = Path(__file__).parents[2] / "pipelines" / "mosi.py"
CURVES = ("train/loss", "valid/loss", "coefficient/text")


def train(folder: Path, name: str, flags: list[str]) -> list[dict[str, float | None]]:
    """Returns the metrics by epoch of one run."""
    dropouts = [flag for kind in ("attn", "relu", "embed", "res", "out") for flag in (f"--{kind}_dropout", "0")]
    command = [sys.executable, str(SCRIPT), "--storage_path", str(folder), "--name", name, *dropouts, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_metrics(folder / name)


def difference(a: dict[str, float | None], b: dict[str, float | None], name: str) -> float:
    """Returns the relative difference of one value."""
    x, y = a[name], b[name]
    if x is None or y is None:
        raise SystemExit(f"{name} is not a number")
    return abs(x - y) / max(abs(x), 1e-30)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    arguments, flags = parser.parse_known_args()
    flags += ["--num_epochs", str(arguments.epochs)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = train(root, "one", [*flags, "--local", "--cpus_per_worker", "1"])
        threads = train(root, "threads", [*flags, "--local", "--cpus_per_worker", "2"])
        workers = train(root, "workers", [*flags, "--cpus_per_worker", "1", "--workers", str(arguments.workers)])
    head = f"{'epoch':>5} " + " ".join(f"{f'{name} {kind}':>26}" for name in CURVES for kind in ("threads", "workers"))
    table = [head]
    for number, lines in enumerate(zip(one, threads, workers, strict=True), start=1):
        row = {
            f"{name} {kind}": difference(lines[0], other, name)
            for name in CURVES
            for kind, other in (("threads", lines[1]), ("workers", lines[2]))
        }
        print(json.dumps({"epoch": number, **row}))
        table.append(f"{number:>5} " + " ".join(f"{value:>26.1e}" for value in row.values()))
    print("\n".join(table))


if __name__ == "__main__":
    main()
