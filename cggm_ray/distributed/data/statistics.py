"""Statistics of the training split with Ray Data: one task a shard, the results in the order of the shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.data
from safetensors.numpy import load, save

from cggm_ray.core.errors import CggmError, DataError
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.data.statistics import Moments, Statistics
from cggm_ray.distributed.cluster import connect, own_error
from cggm_ray.distributed.data.extract import ERROR, TASK_CPUS
from cggm_ray.distributed.waiting import Arrivals
from cggm_ray.engine.assembly import standardised_kinds
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.inputs import shared_statistics
from cggm_ray.storage.places import as_path

NUMBER, PATH, MOMENTS = "number", "path", "moments"
PARTS = ("count", "mean", "m2")


def map_shards_with_ray(work: Callable[[Path], Statistics], paths: Sequence[Path]) -> Iterator[Statistics]:
    """Yields what `work` gives for each path, in their order.

    Tasks that end early wait here for those before them, so the driver holds the results of a few shards.

    Raises:
        DataError: of `work`.
    """
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    early: dict[int, Statistics] = {}
    expected = 0
    try:
        items = [{NUMBER: number, PATH: str(path)} for number, path in enumerate(paths)]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            lambda row: _row(work, row), num_cpus=TASK_CPUS
        )
        arrivals = Arrivals("statistics of shards", len(items))
        with arrivals.beating():
            for row in dataset.iter_rows():
                arrivals.arrived()
                # The first error stops what still runs.
                if row[ERROR]:
                    raise DataError(row[ERROR])
                early[row[NUMBER]] = _unpacked(row[MOMENTS])
                while expected in early:
                    yield early.pop(expected)
                    expected += 1
    except Exception as failure:
        raise own_error(failure) or failure from failure


def share_statistics(runs: Iterable[tuple[Config, Path]]) -> None:
    """Finds the statistics that these runs need before they start, once for all of them.

    Args:
        runs: the configuration of each, and the folder of its set.

    Raises:
        DataError: a shard cannot be read, or a modality has no standard deviation.
    """
    done: list[tuple[Path, dict[str, str]]] = []
    manifests: dict[Path, Manifest] = {}
    for config, shards in runs:
        if config.inputs.standardises:
            manifest = manifests.get(shards) or manifests.setdefault(shards, open_manifest(shards))
            kinds = standardised_kinds(config, manifest)
            if (shards, kinds) not in done:
                shared_statistics(shards, manifest, kinds, map_shards_with_ray)
                done.append((shards, kinds))


def _row(work: Callable[[Path], Statistics], row: dict[str, Any]) -> dict[str, Any]:
    """Returns the result for one shard as bytes, or the text of an error: an exception can lose its type in Ray Data."""
    try:
        found, error = _packed(work(as_path(row[PATH]))), ""
    except CggmError as failure:
        found, error = b"", str(failure)
    return {NUMBER: row[NUMBER], MOMENTS: found, ERROR: error}


def _packed(statistics: Statistics) -> bytes:
    return save({f"{part}/{name}": getattr(m, part) for name, m in statistics.items() for part in PARTS})


def _unpacked(packed: bytes) -> Statistics:
    tensors = load(packed)
    names = [key.removeprefix("mean/") for key in tensors if key.startswith("mean/")]
    return {name: Moments(**{part: tensors[f"{part}/{name}"] for part in PARTS}) for name in names}
