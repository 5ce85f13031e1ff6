"""Whether two commits train alike, to the bit: four datasets, three strategies, compared by checksum.

    python benchmarks/science/trajectories.py OLD NEW

Each commit is checked out into a folder of its own and runs the demonstration sets without Ray on one thread. A trajectory is
the metrics of all epochs (without times) and the weights of the best one. Exit code 1 where any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--nlevels 3 --cls_layers 1 --num_heads 2 --proj_dim 8"
DATASETS = {
    "mosi": f"{SMALL} --batch_size 64",
    "iemocap": f"{SMALL} --batch_size 64",
    "food101": f"{SMALL} --batch_size 8 --text_length 16",
    "brats": "--backbone resnet18 --crop 32 --batch_size 4 --warmup_epochs 1 --overlays 0",
}
STRATEGIES = ("none", "cggm", "cggm-released")
TIMES = {"seconds", "samples_per_second", "peak_memory"}


def trajectory(checkout: Path, runs: Path, dataset: str, strategy: str) -> tuple[str, str]:
    """Trains two epochs; returns the checksums of metrics and weights."""
    name = f"{dataset}-{strategy}"
    flags = f"{DATASETS[dataset]} --modulation {strategy} --num_epochs 2 --local --cpus_per_worker 1 --report false"
    command = [sys.executable, f"pipelines/{dataset}.py", *flags.split(), "--name", name, "--storage_path", str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {name} failed: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    metrics = json.dumps(
        [{key: value for key, value in line.items() if key not in TIMES} for line in lines], sort_keys=True
    )
    weights = (runs / name / "best" / "model.safetensors").read_bytes()
    return hashlib.sha256(metrics.encode()).hexdigest()[:16], hashlib.sha256(weights).hexdigest()[:16]


def main() -> int:
    """Runs both commits and prints a line for each dataset and strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="commit")
    parser.add_argument("new", help="commit")
    arguments = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        places = []
        for side in ("old", "new"):
            place = Path(folder) / side
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
            subprocess.run(["git", "checkout", "--quiet", getattr(arguments, side)], cwd=place, check=True)
            places.append(place)
        for dataset in DATASETS:
            for strategy in STRATEGIES:
                old, new = (
                    trajectory(place, Path(folder) / f"{place.name}-runs", dataset, strategy) for place in places
                )
                differing += old != new
                print(
                    f"{dataset:<8} {strategy:<14} metrics {old[0]} {new[0]}  weights {old[1]} {new[1]}  "
                    f"{'equal' if old == new else 'DIFFERENT'}",
                    flush=True,
                )
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
