"""A run from its configuration: the folder, the data, the loop, the table at the end."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from cggm_ray.config import Config
from cggm_ray.data.dataset import DATASETS, PICTURES, prepare
from cggm_ray.data.shards import write_shards_here
from cggm_ray.errors import UsageError
from cggm_ray.folds import fold_table, save_folds
from cggm_ray.runtime import LocalRuntime, Record
from cggm_ray.state import PREDICTIONS, write_text
from cggm_ray.tracking import METRICS
from cggm_ray.train import BEST, Result, check, fit

CONFIG = "config.yaml"


def run(config: Config) -> Result | None:
    """Prepares the data, trains, tests, and prints the table.

    Args:
        config: of the run; `--local` keeps Ray out of it, and so does torchrun.

    Returns:
        The result; None on torchrun's processes other than the first, and where the configuration stands for several folds,
        whose results lie in their folders.

    Raises:
        CggmError: with one line that says what to do.
    """
    config = named(config)
    folds = DATASETS.get(config.data.dataset)(config).folds()
    if not folds:
        return run_one(config)
    results = {}
    for fold, part in folds.items():
        print(f"fold {fold}")
        result = run_one(dataclasses.replace(part, run=dataclasses.replace(part.run, name=f"{config.run.name}-{fold}")))
        if result is not None:
            results[fold] = result
    if results:
        print(fold_table(results, save_folds(config.run.storage / str(config.run.name), results)))
    return None


def run_one(config: Config) -> Result | None:
    """See `run`; the configuration is one run with a name."""
    folder = run_folder(config)
    if config.run.local or "TORCHELASTIC_RUN_ID" in os.environ:
        result = run_locally(config, folder)
    else:
        # Ray is imported here and not above: the library and local runs do without it.
        from cggm_ray.distributed.launch import run_on_ray

        result = run_on_ray(config, folder)
    if result is not None:
        print(table(result))
    return result


def run_locally(config: Config, folder: Path) -> Result | None:
    """The run in this process, or in the processes that torchrun started."""
    runtime = LocalRuntime(folder, config.run)
    try:
        if runtime.world_size == 1:
            shards = prepare(config, write_shards_here)
            return fit(config, claim(config, folder, shards), runtime, folder)
        if config.train.batch_size < runtime.world_size:
            raise UsageError(f"batch_size: found {config.train.batch_size} for {runtime.world_size} processes")
        # The first process converts; the others find the shards when they pass the barrier.
        if runtime.rank == 0:
            claim(config, folder, prepare(config, write_shards_here))
        dist.barrier()
        result = fit(config, prepare(config, write_shards_here), runtime, folder)
        return result if runtime.rank == 0 else None
    finally:
        runtime.close()


def named(config: Config) -> Config:
    """The configuration with a name for the run.

    Raises:
        UsageError: several torchrun processes without a name, which each would choose for itself.
    """
    if config.run.name is not None:
        return config
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("name: expected one under torchrun, the same for all processes")
    name = f"{config.data.dataset}-{config.modulation.modulation}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))


def run_folder(config: Config) -> Path:
    """The folder of the run; one that is there must have been made with the same configuration.

    Raises:
        UsageError: the folder holds a run of another configuration; the message lists the fields.
    """
    folder = config.run.storage / str(config.run.name)
    try:
        found = yaml.safe_load((folder / CONFIG).read_text())
    except FileNotFoundError:
        return folder
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{folder / CONFIG} cannot be read: {error}") from None
    differing = differences(config, found if isinstance(found, dict) else {})
    if differing:
        raise UsageError(
            f"{folder} holds a run with another configuration: {'; '.join(differing)}; choose another --name"
        )
    return folder


def differences(config: Config, found: dict[str, Any]) -> list[str]:
    """Fields that a continued run may not change and that differ, as 'field: was X, now Y'."""
    now = config.to_dict()
    result = []
    for section, key in config.fields():
        old, new = (found.get(section) or {}).get(key.name), now[section][key.name]
        if not key.metadata["resume"] and old != new:
            result.append(f"{key.name}: was {old!r}, now {new!r}")
    return result


def claim(config: Config, folder: Path, shards: Path) -> Path:
    """Checks the configuration against the data and makes the folder of the run; returns the shards' folder unchanged.

    Raises:
        UsageError: the configuration does not fit the data, or the folder cannot be made.
    """
    check(config, shards)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
    except OSError as error:
        raise UsageError(f"storage_path: {folder} cannot be written: {error.strerror}") from None
    return shards


def table(result: Result) -> str:
    """Metrics of validation and test side by side, and where everything lies."""

    def row(name: str, valid: str, test: str) -> str:
        return f"{name:<22}{valid:>10}{test:>10}"

    def value(record: Record, name: str) -> str:
        return f"{record[name]:.4f}"

    lines = [f"best epoch {result.best_epoch}", row("", "valid", "test")]
    lines += [row(name, value(result.valid, name), value(result.test, name)) for name in result.test]
    places = {
        "configuration": CONFIG,
        "metrics by epoch": METRICS,
        "best checkpoint": BEST,
        "test predictions": PREDICTIONS,
        "pictures": PICTURES,
    }
    lines += [
        f"{what + ':':<18} {result.folder / where}"
        for what, where in places.items()
        if (result.folder / where).exists()
    ]
    return "\n".join(lines)
