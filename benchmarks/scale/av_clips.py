"""Clips of the layout of CREMA-D from raw WAV files and frames to a tested checkpoint: curves, memory, and waiting.

    python benchmarks/scale/av_clips.py --out clips            # minutes on two cores
    python benchmarks/scale/av_clips.py --out clips --image_size 224 --audio_seconds 3

The generated set is trained with `--local` and on Ray with two workers, and the metrics of their epochs are compared. The
memory is the largest proportional set size of a process that decodes, trains or drives the run, sampled twice a second. Then a
local run measures which share of an epoch its network waits for data, with the set in memory and streamed from its shards, and
how many clips a second reading alone gives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from media_table import memory

from cggm_ray.commands.train import run
from cggm_ray.data.datasets.av.demonstration import write_demonstration
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.meter import Meter
from cggm_ray.recipes.av import RECIPE

KINDS = {"driver": "cggm_ray train av", "decoding task": "ray::MapBatches", "training worker": "ray::RayTrainWorker"}
"""What processes do, and what stands in their command line."""
SMALL = {"inner_width": 16, "width": 128}


def trained(data: Path, out: Path, name: str, flags: list[str]) -> dict[str, int]:
    """Trains in a process of its own; returns the largest memory by the kind of process."""
    command = [
        sys.executable,
        "-m",
        "cggm_ray",
        "train",
        "av",
        "--data_path",
        str(data),
        "--storage_path",
        str(out / name),
    ]
    command += ["--name", "run", "--fresh", "--report", "false", "--headroom", "false", "--contributions_seconds", "0"]
    most, start = dict[str, int](), time.monotonic()
    with (out / f"{name}.txt").open("w") as log:
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for kind, value in memory(psutil.Process(process.pid), KINDS).items():
                most[kind] = max(most.get(kind, 0), value)
            time.sleep(0.5)
    accuracy = next(
        (line for line in (out / f"{name}.txt").read_text().splitlines() if line.startswith("accuracy")), ""
    )
    print(f"{name}: exit code {process.returncode}, {time.monotonic() - start:.0f} s; {' '.join(accuracy.split())}")
    return most


def curve(folder: Path) -> list[dict[str, float]]:
    """Returns the metrics of every epoch of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def apart(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Returns the largest difference of losses and validation metrics of two curves."""
    assert len(one) == len(other)
    keys = [key for key in one[0] if key.startswith(("train/loss", "valid/"))]
    return max(abs(a[key] - b[key]) for a, b in zip(one, other, strict=True) for key in keys)


def waiting(config: Config) -> float:
    """Returns the share of the last epoch of a local run in which the network waited for data."""
    shares: list[float] = []
    before = Meter.waiting

    def watched(self: Meter, batches: Iterable[Any]) -> Iterator[Any]:
        yield from before(self, batches)
        shares.append(self._data / (time.perf_counter() - self._began))

    with mock.patch.object(Meter, "waiting", watched):
        run(config)
    return shares[-1]


def reading(config: Config) -> float:
    """Returns the clips a second that the training split gives when nothing is trained."""
    folder = prepare_data(config, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    modalities = tuple(manifest.modalities)
    split = build_dataset(config).open_split(folder, manifest, "train", modalities, torch.device("cpu"))
    plan = list(slices(torch.randperm(len(split)), config.train.batch_size, 0, 1))
    start = time.perf_counter()
    for epoch in range(3):
        for _ in split.batches(plan, epoch):
            pass
    return 3 * len(split) / (time.perf_counter() - start)


def main() -> None:
    """Trains in both ways, compares, and prints memory and shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("clips"))
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--audio_seconds", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    data = write_demonstration(given.out, "cremad", 0)
    options = {
        "image_size": given.image_size,
        "audio_seconds": given.audio_seconds,
        "num_epochs": given.epochs,
        **SMALL,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    for name, more in (("local", ["--local"]), ("ray", ["--workers", "2"])):
        for kind, value in sorted(trained(data, given.out, name, [*flags, *more]).items()):
            print(f"    {kind:<20} {value / 2**20:6.0f} MiB")
    one, other = (curve(given.out / name / "run") for name in ("local", "ray"))
    print(f"largest difference of losses and validation metrics over {len(one)} epochs: {apart(one, other):.1e}")
    config = RECIPE.replace(
        {**options, "data_path": str(data), "local": True, "no_cuda": True, "report": False, "headroom": False}
        | {"contributions_seconds": 0, "num_epochs": 2, "shard_path": str(given.out / "local" / "shards")}
    )
    for name, budget in (("in memory", 4096), ("streamed", 1)):
        changed = config.replace({"memory_budget": budget, "storage_path": str(given.out / name.replace(" ", "-"))})
        print(
            f"{name}: the network waits for {waiting(changed):.2%} of an epoch; reading alone {reading(changed):,.0f} clips/s"
        )


if __name__ == "__main__":
    main()
