"""Small samples in the order of windows: bytes of a cold epoch, speed from a warm cache, the same batches everywhere.

    python benchmarks/scale/stream_small.py                      # 200,000 samples of 6 KB in a bucket and in a folder
    python benchmarks/scale/stream_small.py --samples 20000      # some minutes

First the first batch of an epoch of 10^8 samples, of which only the row counts exist, and the opening of a set of 10^5 shards,
of which only the first is more than an empty file of its size. The bucket is on an S3 server on this
machine; a server in front of it counts the bytes of its answers. For a folder the system counts what the process reads. Then
batches of 1, 2 and 3 workers, and of a run that goes on at a random step, are compared with those of one worker in memory. At
last training takes turns: samples in memory, from the folder, and from the bucket's copies in the cache of this node, `--steps`
steps of CGGM each, medians over the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks" / "speed")]

from faulty_store import faulty_store
from problems import Problem
from s3_server import KEY, make_bucket, s3_server

from cggm_ray.core.batch import Batch
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.loading.sampler import InOrder, Plan
from cggm_ray.data.loading.split import Split, load_split
from cggm_ray.data.loading.windows import WindowSplit
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import (
    INDEX,
    MANIFEST,
    TARGET,
    Manifest,
    RawShard,
    open_set,
    tensor_column,
    write_shard,
)
from cggm_ray.data.shards.specs import described, table_specs
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.budget import Budget
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.storage import cache, urls
from cggm_ray.storage.urls import UrlPath

SHAPES = {"text": (10, 60), "audio": (10, 50), "vision": (10, 40)}
SAMPLE_BYTES = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
DEVICE = torch.device("cpu")
WINDOW, BATCH, MIB = 4, 64, 2**20


def write(folder: Path, samples: int) -> Manifest:
    """Writes a set with a split train of random features."""
    folder.mkdir()
    rng, shards, table = np.random.default_rng(0), [], pa.table({})
    for number, part in chunks(samples, SAMPLE_BYTES):
        rows = np.arange(part.start, part.stop)
        columns = {INDEX: pa.array(rows), TARGET: pa.array(rng.integers(5, size=len(rows)))}
        for name, shape in SHAPES.items():
            columns[name] = tensor_column(rng.standard_normal((len(rows), *shape), dtype=np.float32))
        table = pa.table(columns)
        shards.append(write_shard(lambda table: table, RawShard(split="train", number=number, table=table), folder))
    found = described(table_specs(table))
    return Manifest(dataset="features", converter=1, options={}, sources=(), splits={"train": tuple(shards)}, **found)


def budget_of(manifest: Manifest) -> Budget:
    """Returns a run of a few epochs."""
    rows = tuple(shard.rows for shard in manifest.splits["train"])
    return Budget(samples=sum(rows), batch_size=BATCH, passes=1, total=4 * sum(rows), window=WINDOW, shard_rows=rows)


def streamed(folder: Path, manifest: Manifest) -> WindowSplit:
    """Opens the split as a set that does not fit into memory."""
    return WindowSplit(folder, manifest, "train", tuple(SHAPES), DEVICE, 0, 512 * MIB, WINDOW)


def plan(manifest: Manifest, epoch: int, rank: int = 0, workers: int = 1, start: int = 0) -> Plan:
    """Returns the batches of a worker."""
    return Plan(budget_of(manifest).order(0, epoch, 0), BATCH, rank, workers, None, start)


def digests(split: Split, parts: Plan, epoch: int) -> list[str]:
    """Returns a checksum of every sample of every batch, in order."""
    return [sample for batch in split.batches(parts, epoch) for sample in sums(batch)]


def sums(batch: Batch) -> list[str]:
    """Returns number and checksum of every sample of a batch; none for a filler."""
    if batch.is_filler:
        return []
    inputs = [batch.inputs[name].numpy() for name in SHAPES]
    rows = zip(batch.index.tolist(), *inputs, strict=True)
    return [f"{row} {hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest()}" for row, *parts in rows]


def bytes_read() -> int:
    """Returns what this process has read by system calls, from files and from sockets."""
    return int(Path("/proc/self/io").read_text().split()[1])


def cold_epoch(folder: Path, manifest: Manifest) -> float:
    """Opens a split and goes through an epoch; returns the seconds."""
    start = time.perf_counter()
    seen = sum(len(batch) for batch in streamed(folder, manifest).batches(plan(manifest, 0), 0))
    assert seen == manifest.rows("train")
    return time.perf_counter() - start


def speeds(sources: dict[str, Split], steps: int, rounds: int, manifest: Manifest) -> dict[str, float]:
    """Returns samples per second of training by source."""
    problem = Problem(shapes=SHAPES, outputs=5)
    config = Config.from_dict({"dataset": "features"}, Config(options=FeatureOptions()))
    net, guides = problem.networks(config)
    task = problem.task()
    with tempfile.TemporaryDirectory() as folder:
        runtime = LocalRuntime(Path(folder), config.run)
        state = new_state(config, net, guides, task, runtime)
        step = TrainingStep(net, state.strategy, "fp32").train()
        found: dict[str, list[float]] = {name: [] for name in sources}
        for number in range(rounds + 1):
            for name, split in sources.items():
                batches = split.batches(plan(manifest, number), number)
                next(batches)
                start = time.perf_counter()
                for taken, batch in enumerate(batches, start=1):
                    train_step(state, step, batch, runtime, accumulate=1, clip=config.optim.clip)
                    if taken == steps:
                        break
                seconds = time.perf_counter() - start
                batches.close()
                if number:
                    found[name].append(steps * BATCH / seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def compare(memory: Split, folder: Path, manifest: Manifest) -> str:
    """Compares an epoch of several workers, and of a run that goes on, with that of one worker in memory."""
    wanted = digests(memory, plan(manifest, 1), 1)
    said = []
    for workers in (1, 2, 3):
        parts = [streamed(folder, manifest).batches(plan(manifest, 1, rank, workers), 1) for rank in range(workers)]
        said.append(f"{workers} workers {same(together(parts), wanted)}")
    begun = random.SystemRandom().randrange(len(wanted) // BATCH) * BATCH
    rest = digests(streamed(folder, manifest), plan(manifest, 1, start=begun), 1)
    return ", ".join([*said, f"on from step {begun // BATCH} {same(iter(rest), wanted[begun:])}"])


def together(parts: list[Iterator[Batch]]) -> Iterator[str]:
    """Yields the checksums of the global batches of several workers."""
    for batches in zip(*parts, strict=True):
        for batch in batches:
            yield from sums(batch)


def same(found: Iterator[str], wanted: list[str]) -> str:
    """Returns 'equal' or the first place that differs."""
    for place, (one, other) in enumerate(zip_longest(found, wanted)):
        if one != other:
            return f"DIFFER at sample {place}"
    return "equal"


def simulate(samples: int) -> str:
    """Measures the first batch of an epoch of a set of which only the rows of the shards exist."""
    rows = 16 * MIB // SAMPLE_BYTES
    budget = Budget(
        samples=samples // rows * rows,
        batch_size=BATCH,
        passes=1,
        total=samples,
        window=WINDOW,
        shard_rows=(rows,) * (samples // rows),
    )
    process = psutil.Process()
    before, seconds = process.memory_info().rss, []
    for epoch in (0, 1, 7):
        start = time.perf_counter()
        next(iter(Plan(budget.order(0, epoch, 0), BATCH, 0, 1)))
        seconds.append(time.perf_counter() - start)
    grown = (process.memory_info().rss - before) / MIB
    return f"{budget.samples} samples: first batch after {max(seconds) * 1000:.0f} ms, {grown:.0f} MiB more memory"


def open_many(root: Path, shards: int) -> str:
    """Measures how a set of many shards is opened, up to the first batch, which is of its first shard."""
    folder = root / "many"
    manifest = write(folder, 16 * MIB // SAMPLE_BYTES)
    (first,) = manifest.splits["train"]
    others = [replace(first, file=f"train-{number:05}.parquet") for number in range(1, shards)]
    for shard in others:
        with (folder / shard.file).open("wb") as file:
            file.truncate(shard.bytes)
    (folder / MANIFEST).write_text(replace(manifest, splits={"train": (first, *others)}).to_json())
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    found = open_set(folder)
    assert found is not None
    split = streamed(folder, found)
    next(iter(split.batches(Plan(InOrder(first.rows), BATCH, 0, 1), 0)))
    seconds, grown = time.perf_counter() - start, (process.memory_info().rss - before) / MIB
    return f"{shards} shards, {len(split)} samples: first batch after {seconds:.1f} s, {grown:.0f} MiB more memory"


def main() -> None:
    """Writes, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(simulate(10**8), flush=True)
    with tempfile.TemporaryDirectory(prefix="stream_small_") as root, s3_server() as endpoint:
        print(open_many(Path(root), 10**5), flush=True)
        folder = Path(root) / "set"
        manifest = write(folder, arguments.samples)
        size = sum(shard.bytes for shard in manifest.splits["train"])
        print(f"{arguments.samples} samples in {len(manifest.splits['train'])} shards of {size / MIB:.0f} MiB")
        before = bytes_read()
        seconds = cold_epoch(folder, manifest)
        print(f"folder, cold epoch: {(bytes_read() - before) / size:.3f} of the bytes of the shards, {seconds:.0f} s")
        os.environ |= {**KEY, "AWS_ENDPOINT_URL": endpoint, cache.FOLDER: str(Path(root) / "cache")}
        url = f"{make_bucket(endpoint)}/set"
        for file in sorted(folder.iterdir()):
            (UrlPath(url) / file.name).upload(file)
        urls._storage.cache_clear()
        with faulty_store(endpoint) as store:
            os.environ["AWS_ENDPOINT_URL"] = store.url
            seconds = cold_epoch(UrlPath(url), manifest)
            print(
                f"bucket, cold epoch: {store.sent / size:.3f} of the bytes of the shards, {seconds:.0f} s", flush=True
            )
            memory = load_split(folder, manifest, "train", tuple(SHAPES), DEVICE)
            print(f"batches from the bucket: {compare(memory, UrlPath(url), manifest)}", flush=True)
            sources: dict[str, Split] = {"memory": memory, "folder": streamed(folder, manifest)}
            sources["cache of the node"] = streamed(UrlPath(url), manifest)
            found = speeds(sources, arguments.steps, arguments.rounds, manifest)
            for name, speed in found.items():
                print(f"{name:<20}{speed:>10.1f} samples/s, {speed / found['memory']:.2f} of memory")


if __name__ == "__main__":
    main()
