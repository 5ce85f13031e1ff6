"""Trials per hour of a search, and the part of the time in which trials train.

    python benchmarks/speed/trials.py [--trials 8] [--epochs 4] [flags of pipelines/mosi.py]

A random search without early stopping over two learning rates. Counted is the whole command, with Ray's start, the test of
the best trial and the pictures; `training` is the sum of the epochs' seconds over the trials that ran at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from cggm_ray.engine.tracking import read_metrics

SCRIPT = Path(__file__).parents[2] / "pipelines" / "mosi.py"


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--at_once", type=int, default=2)
    arguments, flags = parser.parse_known_args()
    search = {
        "trials": arguments.trials,
        "concurrent": arguments.at_once,
        "scheduler": {"name": "none", "max_epochs": arguments.epochs},
        "space": {"lr": {"loguniform": [1e-4, 1e-2]}, "cls_lr": {"loguniform": [1e-4, 1e-2]}},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.yaml"
        file.write_text(yaml.safe_dump(search))
        places = ["--storage_path", folder, "--name", "search", "--tune", str(file), "--cpus_per_worker", "1"]
        start = time.perf_counter()
        subprocess.run([sys.executable, str(SCRIPT), *places, *flags], check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        trials = sorted(Path(folder).glob("search/trials/*"))
        training = sum(float(line["seconds"] or 0) for trial in trials for line in read_metrics(trial))
    found = {
        "trials": len(trials),
        "seconds": whole,
        "trials_per_hour": 3600 * len(trials) / whole,
        "training": training / arguments.at_once / whole,
    }
    print(json.dumps(found))
    print(
        "{trials} trials in {seconds:.0f} s: {trials_per_hour:.0f} an hour, {training:.0%} of the time training".format(
            **found
        )
    )


if __name__ == "__main__":
    main()
