"""Memory of a training run on Ray whose set is ten times larger than the object store that the cluster may have.

    python benchmarks/scale/stream_on_ray.py                             # about 800 MiB of features, an object store of 80 MiB
    python benchmarks/scale/stream_on_ray.py --samples 300 --held_out 16 # seconds, to see that it works

Starts a cluster of its own on this machine and goes the way of every pipeline: Ray Data writes the shards, a TorchTrainer
trains an epoch on one worker, streamed within the budget; then once more with everything in memory. The features are those of
Food-101 in half precision, image [197, 768] and text [50, 768], but random: the tasks that write the shards draw them.

The raylet reports every 0.2 s what its object store holds and has spilled. The worker samples its own resident memory every
5 ms, from the moment before it opens the first split to the end of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address  # what `ray memory` asks

from cggm_ray.commands.train import run
from cggm_ray.config.fields import option
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.loading.split import Split, set_bytes
from cggm_ray.data.settings import DataConfig, DatasetOptions
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import INDEX, TARGET, Manifest, RawShard, open_set, tensor_column
from cggm_ray.distributed.data.ingest import write_shards_with_ray
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.settings import ModelConfig
from cggm_ray.tasks import Classification, Task

SHAPES = {"image": (197, 768), "text": (50, 768)}
CLASSES = 101
MIB = 2**20
MEMORY = "memory.json"
SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class RandomOptions(DatasetOptions):
    """Size of the set."""

    samples: int = option(2200, "training samples")
    held_out: int = option(64, "samples of validation and of test")


@DATASETS.register("random-features")
class RandomFeatures(Dataset):
    """Features in the shapes of Food-101, and a worker that watches its own memory."""

    name = "random-features"
    converter = 1
    network = "sequence"
    Options = RandomOptions

    def locate(self, path: Path) -> list[Path]:
        """Returns the file that says how many samples there are."""
        return [path]

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Rows to draw."""
        sample_bytes = sum(2 * int(np.prod(shape)) for shape in SHAPES.values())
        seed = 0
        for split, samples in json.loads(sources[0].read_text()).items():
            for number, part in chunks(samples, sample_bytes):
                rows = np.arange(part.start, part.stop)
                columns = {INDEX: pa.array(rows), SEED: pa.array(np.full(len(rows), seed))}
                yield RawShard(split=split, number=number, table=pa.table(columns))
                seed += 1

    def transform(self, table: pa.Table) -> pa.Table:
        """Draws labels and features."""
        random = np.random.default_rng(table.column(SEED)[0].as_py())
        table = table.drop_columns([SEED]).append_column(
            TARGET, pa.array(random.integers(CLASSES, size=table.num_rows))
        )
        for name, shape in SHAPES.items():
            values = random.standard_normal((table.num_rows, *shape), dtype=np.float32).astype(np.float16)
            table = table.append_column(name, tensor_column(values))
        return table

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Returns the number of samples of every split."""
        options = self.settings.options
        assert isinstance(options, RandomOptions)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "random.json"
        path.write_text(json.dumps(dict(zip(SPLITS, (options.samples, *[options.held_out] * 2), strict=True))))
        return path

    def task(self, manifest: Manifest) -> Task:
        """As many classes as Food-101 has."""
        return Classification(CLASSES)

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """As every dataset; the first time the watch begins."""
        if not hasattr(self, "_peak"):
            self._before = self._peak = resident()
            threading.Thread(target=self._watch, daemon=True).start()
        opened = super().open_split(folder, manifest, split, modalities, device)
        self._kind = type(opened).__name__
        return opened

    def finish(self, folder: Path, net: MultimodalNet, test: Split) -> None:
        """Leaves what was seen in the folder of the run."""
        seen = {"split": self._kind, "before": self._before, "peak": self._peak}
        (folder / MEMORY).write_text(json.dumps(seen))

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, resident())
            time.sleep(0.005)


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


class Store:
    """What the object store holds and has spilled, in MiB: now, and at its peak since the last `restart`."""

    def __init__(self) -> None:
        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self.restart()

    def restart(self) -> None:
        """Forgets the peak; what was spilled before does not count."""
        self.used, self._spilled_before = 0.0, self._ask()[1]
        self.spilled = 0.0

    def sample(self) -> None:
        """Takes a sample."""
        used, spilled = self._ask()
        self.used = max(self.used, used)
        self.spilled = max(self.spilled, spilled - self._spilled_before)

    def __str__(self) -> str:
        return f"object store {self.used:.1f} MiB at its peak, {self.spilled:.1f} MiB spilled"

    def _ask(self) -> tuple[float, float]:
        stats = get_memory_info_reply(self._state).store_stats
        return stats.object_store_bytes_used / MIB, stats.spilled_bytes_total / MIB


@contextmanager
def sampled(sample: Callable[[], None]) -> Iterator[None]:
    """Calls `sample` every 0.2 s in a thread while the block runs."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            sample()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def main() -> None:
    """Runs both and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2200)
    parser.add_argument("--held_out", type=int, default=64, help="samples of validation and of test")
    parser.add_argument("--object_store", type=int, default=80, help="MiB; Ray takes no less than 75")
    parser.add_argument("--budget", type=int, default=40, help="MiB that the worker may hold of the set")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    ray.init(
        address="local",
        object_store_memory=arguments.object_store * MIB,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    store = Store()
    with tempfile.TemporaryDirectory(prefix="stream_on_ray_") as folder:
        config = configuration(arguments, Path(folder))
        with sampled(store.sample):
            shards = prepare_data(config, write_shards_with_ray)
        manifest = open_set(shards)
        assert manifest is not None
        whole = int(set_bytes(shards, manifest, tuple(SHAPES)) / MIB) + 1
        print(f"set of {whole} MiB, object store of {arguments.object_store} MiB")
        print(f"writing the shards: {store}")
        for name, budget in (("streamed", arguments.budget), ("in memory", whole)):
            store.restart()
            with sampled(store.sample):
                result = run(config.replace({"memory_budget": budget, "name": name.replace(" ", "-")}))
            assert result is not None
            seen = json.loads((result.folder / MEMORY).read_text())
            (epoch,) = read_metrics(result.folder)
            print(
                f"{name} ({seen['split']}, budget {budget} MiB): {store}; worker {seen['before']:.0f} MiB before, "
                f"{seen['peak']:.0f} MiB at its peak; {epoch['step']:.0f} steps, {epoch['samples_per_second']:.0f} samples/s"
            )


def configuration(arguments: argparse.Namespace, folder: Path) -> Config:
    """Returns a configuration of one epoch on one worker, with a network that is small enough for minutes."""
    return Config(
        data=DataConfig(dataset="random-features"),
        model=ModelConfig(nlevels=3, cls_layers=1, proj_dim=8, num_heads=1),
        train=TrainConfig(batch_size=arguments.batch_size, num_epochs=1),
        run=RunConfig(storage_path=str(folder), cpus_per_worker=1),
        options=RandomOptions(samples=arguments.samples, held_out=arguments.held_out),
    )


if __name__ == "__main__":
    main()
