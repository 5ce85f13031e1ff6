"""Every strategy on one small set, with every network for features, on 1 and 2 workers.

    python benchmarks/science/every_strategy.py [--strategies none,mla] [--networks sequence,composed-late]

The set is generated: three modalities of sequences, of which samples may lack one, and classes that each of them shows in part.
Every run has two epochs, is tested, and must end without an error. Printed are the accuracy on the test split with one worker,
and the largest difference of the training loss of an epoch to that of two workers, which see the same batches; strategies that
draw random numbers on every worker differ there. The networks are small and have no dropout.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.commands.cli import main as pipeline
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.composed.registry import FUSIONS
from cggm_ray.runs.result import read_summary
from cggm_ray.strategies.registry import STRATEGIES

NAMES = ("words", "sound", "face")
NETWORKS = ["shaped", "sequence", *(f"composed-{fusion}" for fusion in FUSIONS.names())]
RECIPE = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
STILL = [f"--{name}_dropout=0" for name in ("attn", "relu", "embed", "res", "out")]
SIZES = ["--nlevels=3", "--cls_layers=1", "--num_heads=2", "--proj_dim=8", "--batch_size=12", "--num_epochs=2"]


def write_set(folder: Path, samples: int = 72) -> None:
    """Writes the set, with gaps and, for teachers, without."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=samples)
    found: dict[str, Any] = {"label": label, "part": np.array((["train"] * 4 + ["val", "test"]) * (samples // 6))}
    for number, name in enumerate(NAMES):
        found[name] = rng.normal(size=(samples, 4, 3 + number)) + (label == number)[:, None, None]
    gaps = {f"{name}_present": np.arange(samples) % 7 != number for number, name in enumerate(NAMES)}
    np.savez(folder / "whole.npz", allow_pickle=False, **found)
    np.savez(folder / "gaps.npz", allow_pickle=False, **found, **gaps)


def flags_of(network: str) -> list[str]:
    """Returns the flags of a network."""
    name, _, fusion = network.partition("-")
    if name == "composed":
        return ["--network=composed", f"--fusion={fusion}", "--width=8", "--inner_width=8", "--heads=2", "--dropout=0"]
    return [f"--network={name}", *SIZES[:4], *STILL]


def take(folder: Path, networks: list[str], strategies: list[str], workers: int) -> None:
    """Trains in this process, beside another of two; the runs are in FOLDER."""
    whole, gaps = (["--data_path", str(folder / name)] for name in ("whole.npz", "gaps.npz"))
    for network in networks:
        common = ["--local", "--no_cuda", "--storage_path", str(folder), *SIZES[4:], *flags_of(network)]
        teachers = {name: f"{network}-{workers}-teacher-{name}" for name in NAMES if "umt" in strategies}
        runs = {run: [*whole, "--modalities", name, "--modulation=none"] for name, run in teachers.items()}
        for strategy in strategies:
            more = ["--umt_teachers", ",".join(teachers.values())] if strategy == "umt" else ["--mslr_strategy=dynamic"]
            chosen = [*gaps, "--modalities", ",".join(NAMES), "--modulation", strategy]
            runs[f"{network}-{workers}-{strategy}"] = [*chosen, *more]
        for name, more in runs.items():
            # A port for every run, because the one before may still hold its own.
            os.environ["MASTER_PORT"] = str(int(os.environ.get("MASTER_PORT", "29600")) + 1)
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = pipeline(RECIPE, [*common, *more, "--name", name])
            if code:
                print(json.dumps({"run": name, "code": code, "said": said.getvalue().splitlines()[-1:]}), flush=True)


def row(folder: Path, network: str, strategy: str) -> tuple[str, str]:
    """Returns accuracy, and the difference between 1 and 2 workers; 'failed' where there is none."""
    runs = [folder / f"{network}-{workers}-{strategy}" for workers in (1, 2)]
    try:
        accuracy = read_summary(runs[0]).test["accuracy"]
        one, two = ([line["train/loss"] for line in read_metrics(run)] for run in runs)
    except (OSError, KeyError):
        return "failed", "failed"
    return f"{accuracy:.2f}", f"{max(abs(x - y) for x, y in zip(one, two, strict=True)):.0e}"


def main() -> None:
    """Runs all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", default=",".join(STRATEGIES.names()))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    networks, strategies = arguments.networks.split(","), arguments.strategies.split(",")
    if arguments.folder is not None:
        take(arguments.folder, networks, strategies, int(os.environ.get("WORLD_SIZE", "1")))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder)
        again = [__file__, "--folder", name, "--networks", arguments.networks, "--strategies", arguments.strategies]
        for workers in (1, 2):
            env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1"}
            ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(workers)] if workers > 1 else [{}]
            processes = [subprocess.Popen([sys.executable, *again], env=env | rank) for rank in ranks]
            for process in processes:
                process.wait()
        print(f"{'':<18}" + "".join(f"{network:>22}" for network in networks))
        rows = {strategy: [row(folder, network, strategy) for network in networks] for strategy in strategies}
        for strategy, cells in rows.items():
            print(f"{strategy:<18}" + "".join(f"{accuracy:>13}{apart:>9}" for accuracy, apart in cells))
        failed = [strategy for strategy, cells in rows.items() if any("failed" in cell for cell in cells)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
