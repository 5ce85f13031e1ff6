"""Memory and speed of training on Food-101-shaped feature shards that are ten times larger than the memory budget.

    python benchmarks/scale/stream_food101.py                          # about 400 MiB of features, a budget of 40 MiB
    python benchmarks/scale/stream_food101.py --samples 3000 --budget 100 --steps 50

Writes shards of random features, image [197, 768] and text [50, 768], as the extraction in half precision leaves them. Then
reads all of them in the order of an epoch and trains some steps of the next: streamed within the budget, and with everything
in memory. Each is a process of its own, whose resident memory is sampled every 5 ms. From the peak of opening and reading,
what there was before is subtracted; from the peak of training, the peak of the same steps on random input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.core.reduction import SINGLE_WORKER
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.loading.split import set_bytes
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import (
    INDEX,
    MANIFEST,
    TARGET,
    Manifest,
    RawShard,
    TensorSpec,
    open_set,
    tensor_column,
    write_shard,
)
from cggm_ray.engine.assembly import build_dataset, build_network, build_strategy
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import model_optimizer
from cggm_ray.models.settings import ModelConfig

SHAPES = {"image": (197, 768), "text": (50, 768)}
CLASSES = 101
MIB = 2**20
T = TypeVar("T")


def write_features(folder: Path, samples: int) -> None:
    """Writes a set with a train split of that many samples."""
    rng = np.random.default_rng(0)
    sample_bytes = sum(2 * int(np.prod(shape)) for shape in SHAPES.values())
    shards = []
    for number, part in chunks(samples, sample_bytes):
        rows = np.arange(part.start, part.stop)
        columns = {INDEX: pa.array(rows), TARGET: pa.array(rng.integers(CLASSES, size=len(rows)))}
        for name, shape in SHAPES.items():
            values = rng.standard_normal((len(rows), *shape), dtype=np.float32).astype(np.float16)
            columns[name] = tensor_column(values)
        raw = RawShard(split="train", number=number, table=pa.table(columns))
        shards.append(write_shard(lambda table: table, raw, folder))
    manifest = Manifest(
        dataset="food101",
        converter=1,
        options={},
        sources=(),
        modalities={name: TensorSpec(shape=shape, dtype="float16") for name, shape in SHAPES.items()},
        target=TensorSpec(shape=(), dtype="int64"),
        splits={"train": tuple(shards)},
        notes={"classes": list(map(str, range(CLASSES))), "widths": {name: s[-1] for name, s in SHAPES.items()}},
    )
    (folder / MANIFEST).write_text(manifest.to_json())


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def watched(work: Callable[[], T]) -> tuple[T, float]:
    """Returns the result of `work`, and the largest resident memory in MiB while it ran."""
    peak, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return result, peak[0]


def measure(folder: Path, budget: int, batch_size: int, steps: int) -> dict[str, float | str]:
    """Measures an epoch of reading and some steps, with the memory beyond that before the split was opened."""
    config = Config(model=ModelConfig(nlevels=4), options=Food101Options())
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="food101", memory_budget=budget))
    manifest = open_set(folder)
    assert manifest is not None
    dataset = build_dataset(config, "food101")
    modalities = tuple(SHAPES)
    net, guides = build_network(config, dataset, manifest, modalities)
    task = dataset.task(manifest)
    strategy = build_strategy(config, net, guides, task, SINGLE_WORKER)
    optimizer = model_optimizer(config.optim, net.parameters())

    def step(inputs: dict[str, torch.Tensor], target: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        head = net.fuse(strategy.modulate(net.encode(inputs), target))
        sum(strategy.losses(head, target)).backward()
        optimizer.step()
        strategy.step()

    def random_steps() -> None:
        for _ in range(3):
            inputs = {name: torch.randn(batch_size, *shape) for name, shape in SHAPES.items()}
            step(inputs, torch.zeros(batch_size).long())

    _, step_peak = watched(random_steps)
    before = resident()
    split, open_peak = watched(lambda: dataset.open_split(folder, manifest, "train", modalities, torch.device("cpu")))
    start = time.perf_counter()
    everything = slices(epoch_order(len(split), 0, 0), batch_size, 0, 1)
    _, read_peak = watched(lambda: sum(len(batch) for batch in split.batches(everything, 0)))
    reading = time.perf_counter() - start
    plan = list(slices(epoch_order(len(split), 0, 1), batch_size, 0, 1))[:steps]
    start = time.perf_counter()

    def train() -> None:
        for batch in split.batches(plan, 1):
            step(batch.inputs, batch.target)

    _, train_peak = watched(train)
    training = time.perf_counter() - start
    return {
        "split": type(split).__name__,
        "set_mib": set_bytes(folder, manifest, modalities) / MIB,
        "open_mib": open_peak - before,
        "read_mib": read_peak - before,
        "train_mib": train_peak - step_peak,
        "read_samples_per_second": len(split) / reading,
        "train_samples_per_second": sum(len(part.index) for part in plan) / training,
    }


def main() -> None:
    """Writes the shards, measures both ways in fresh processes, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1100)
    parser.add_argument("--budget", type=int, default=40, help="MiB")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="training steps that are measured")
    parser.add_argument("--folder", type=Path, help="of shards that are there already; one process measures and prints")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        print(json.dumps(measure(arguments.folder, arguments.budget, arguments.batch_size, arguments.steps)))
        return
    folder = Path(tempfile.mkdtemp(prefix="stream_food101_"))
    try:
        write_features(folder, arguments.samples)
        manifest = open_set(folder)
        assert manifest is not None
        everything = int(set_bytes(folder, manifest, tuple(SHAPES)) / MIB) + 1
        for budget in (arguments.budget, everything):
            command = [sys.executable, __file__, "--folder", str(folder), "--budget", str(budget)]
            command += ["--batch_size", str(arguments.batch_size), "--steps", str(arguments.steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
            measured = json.loads(output.splitlines()[-1])
            print(
                f"{measured['split']:<12} set {measured['set_mib']:.0f} MiB, budget {budget} MiB: resident memory grew by "
                f"{measured['open_mib']:.0f} MiB opening, {measured['read_mib']:.0f} MiB reading, "
                f"{measured['train_mib']:.0f} MiB training; {measured['read_samples_per_second']:.0f} samples/s read, "
                f"{measured['train_samples_per_second']:.0f} trained"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
