"""Samples per second out of shards, against tensors in memory and a torch DataLoader.

    python benchmarks/speed/ingest.py                       # Food-101-shaped features, 350 MiB, a budget of 40 MiB

Three sources of the same shuffled epoch: everything in memory, streamed from the parquet shards within the budget, and a
DataLoader over a memory-mapped array with one worker process. `read` takes batches and does nothing else; `train` takes CGGM
steps of the Food-101 head on them. The sources take turns, an epoch (of `--steps` batches when training) each; medians over
the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from problems import PROBLEMS
from stream_food101 import CLASSES, SHAPES, write_features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cggm_ray.core.batch import Batch
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.loading.split import Split, TensorSplit
from cggm_ray.data.shards.shards import open_set
from cggm_ray.engine.assembly import build_dataset, new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.step import TrainingStep, train_step

EVERYTHING = 2**20
"""MiB: a budget that any set fits."""


class Mapped(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """What people write first: one sample a row of a memory-mapped array."""

    def __init__(self, folder: Path, split: TensorSplit) -> None:
        self.target = split.target
        self.files = {name: folder / f"{name}.npy" for name in split.inputs}
        for name, values in split.inputs.items():
            np.save(self.files[name], values.numpy())
        self.arrays = {name: np.load(file, mmap_mode="r") for name, file in self.files.items()}

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs = {name: torch.from_numpy(np.array(array[row])).float() for name, array in self.arrays.items()}
        return inputs, self.target[row]


def main() -> None:
    """Writes the set, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=960)
    parser.add_argument("--budget", type=int, default=40, help="MiB")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(tempfile.mkdtemp(prefix="ingest_"))
    try:
        measure(folder, arguments)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Measures reading and training from memory, from shards and from a DataLoader, in turns, and prints the speeds."""
    write_features(folder, arguments.samples)
    manifest = open_set(folder)
    assert manifest is not None
    config = Config.from_dict({"dataset": "food101", **PROBLEMS["food101"].settings}, Config(options=Food101Options()))

    def opened(budget: int) -> Split:
        limited = dataclasses.replace(config, data=dataclasses.replace(config.data, memory_budget=budget))
        dataset = build_dataset(limited, "food101")
        return dataset.open_split(folder, manifest, "train", tuple(SHAPES), torch.device("cpu"))

    memory, streamed = opened(EVERYTHING), opened(arguments.budget)
    assert isinstance(memory, TensorSplit)
    mapped = Mapped(folder, memory)

    def loader() -> Iterable[Batch]:
        found = DataLoader(mapped, batch_size=arguments.batch_size, shuffle=True, num_workers=1, drop_last=True)
        for inputs, target in found:
            yield Batch(inputs=inputs, target=target, index=torch.arange(len(target)))

    def planned(split: Split) -> Callable[[], Iterable[Batch]]:
        return lambda: split.batches(slices(epoch_order(len(split), 0, 0), arguments.batch_size, 0, 1), 0)

    sources = {"memory": planned(memory), "shards, streamed": planned(streamed), "DataLoader": loader}

    torch.manual_seed(0)
    net, guides = PROBLEMS["food101"].networks(config)
    task = build_dataset(config, "food101").task(manifest)
    assert task.outputs == CLASSES
    runtime = LocalRuntime(folder, config.run)
    state = new_state(config, net, guides, task, runtime)
    step = TrainingStep(net, state.strategy, "fp32").train()

    speeds: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.rounds + 1):
        for name, source in sources.items():
            for what in ("read", "train"):
                samples, start = 0, time.perf_counter()
                for taken, batch in enumerate(source(), start=1):
                    samples += len(batch)
                    if what == "train":
                        train_step(
                            state, step, batch, runtime, accumulate=config.train.accumulate, clip=config.optim.clip
                        )
                        if taken == arguments.steps:
                            break
                if number:
                    speeds.setdefault((what, name), []).append(samples / (time.perf_counter() - start))
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    for (what, name), speed in medians.items():
        print(json.dumps({"what": what, "source": name, "samples_per_second": speed}))
    print(f"{'':<20}{'read':>12}{'train':>12}{'of memory':>12}   samples/s")
    for name in sources:
        ratio = medians["train", name] / medians["train", "memory"]
        print(f"{name:<20}{medians['read', name]:>12.1f}{medians['train', name]:>12.1f}{ratio:>12.2f}")


if __name__ == "__main__":
    main()
