"""Samples per second of a conversion from raw files to shards, in this process and by Ray Data.

    python benchmarks/speed/preprocess.py pipelines/mosi.py [flags of the pipeline]
    python benchmarks/speed/preprocess.py pipelines/food101.py --vit ./vit --bert ./bert --data_path UPMC_Food101

Both ways write the same set into a fresh folder, in turns; the start of Ray is not counted. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cggm_ray.commands.cli import parse
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.distributed.cluster import connect
from cggm_ray.distributed.data.ingest import write_shards_with_ray
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config


def seconds(config: Config, writer: Callable[..., Any]) -> tuple[float, int]:
    """Returns the seconds and samples of a conversion into a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = dataclasses.replace(config, data=dataclasses.replace(config.data, shard_path=folder))
        start = time.perf_counter()
        made = prepare_data(fresh, writer)
        taken = time.perf_counter() - start
        manifest = open_set(made)
        assert manifest is not None
        return taken, sum(manifest.rows(split) for split in manifest.splits)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    config = parse(runpy.run_path(str(arguments.pipeline))["RECIPE"], flags).config
    seconds(config, write_shards_here)
    connect()
    found: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        for name, writer in (("here", write_shards_here), ("Ray Data", write_shards_with_ray)):
            taken, samples = seconds(config, writer)
            if number:
                found.setdefault(name, []).append(samples / taken)
    for name, values in found.items():
        print(json.dumps({"writer": name, "samples": samples, "samples_per_second": values}))
    for name, values in found.items():
        print(f"{name:<12}{statistics.median(values):>12.1f} samples/s of {samples}")


if __name__ == "__main__":
    main()
