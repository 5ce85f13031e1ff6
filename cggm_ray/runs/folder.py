"""The folder of a run: its owner, and the configuration that it belongs to."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import UsageError
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.statistics import MapShards, map_shards_here
from cggm_ray.engine.assembly import check, standardised_kinds
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.header import opening
from cggm_ray.engine.inputs import write_statistics
from cggm_ray.engine.tracking import Console
from cggm_ray.runs.recorded import record_data
from cggm_ray.runs.result import CONFIG
from cggm_ray.storage.files import clear_partials, write_text
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.storage.work import shown


def named(config: Config, kind: str | None = None) -> Config:
    """Returns the configuration with a name for the run.

    A missing name is made from dataset, strategy (or another `kind`) and time.

    Raises:
        UsageError: several torchrun processes without a name, which each would choose for itself.
    """
    if config.run.name is not None:
        return config
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("name: expected one under torchrun, the same for all processes")
    name = f"{config.data.dataset}-{kind or config.modulation.modulation}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))


def run_folder(config: Config) -> Path:
    """Returns the folder of the run, after checking that an existing one has the same configuration.

    With `--allow_config_change` differing fields are printed and accepted; with `--fresh` an existing folder is ignored.

    Raises:
        UsageError: the folder holds a run of another configuration; the message lists the fields.
    """
    folder = config.run.storage / str(config.run.name)
    if config.run.fresh:
        return folder
    look(folder, CONFIG)
    if not (folder / CONFIG).exists():
        return folder
    differing = differences(config, read_yaml(folder / CONFIG, "name"))
    if differing and config.run.allow_config_change:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"{shown(folder)} goes on with another configuration: {'; '.join(differing)}")
    elif differing:
        raise UsageError(
            f"{shown(folder)} holds a run with another configuration: {'; '.join(differing)}; choose another --name, or "
            "--allow_config_change to go on with it, or --fresh to start over"
        )
    return folder


def look(folder: Path, name: str) -> None:
    """Makes one file of a folder the one that the storage has, where the folder mirrors a URL.

    Raises:
        UsageError: the storage cannot be read.
    """
    try:
        mirror_of(folder).look(name)
    except OSError as error:
        raise UsageError(f"storage_path: {shown(folder)} cannot be read: {error.strerror or error}") from None


def differences(config: Config, found: dict[str, Any]) -> list[str]:
    """Returns the fields that differ but may not change in a continued run, as 'field: was X, now Y'.

    Field names are unique over all sections, so a field is found although an earlier version kept it in another section. A
    field that the earlier version did not have held what is the default today.

    Args:
        config: of the run that shall continue.
        found: sections of the configuration that the run has.
    """
    now = config.to_dict()
    was = {name: value for part in found.values() if isinstance(part, dict) for name, value in part.items()}
    result = []
    for section, key in config.fields():
        if section not in now:
            continue
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        old, new = was.get(key.name, default), now[section][key.name]
        if not key.metadata["resume"] and old != new:
            result.append(f"{key.name}: was {old!r}, now {new!r}")
    return result


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Holds the folder of a run or a study while the block runs, so that no other command can write there.

    Raises:
        UsageError: another command holds it, or the folder of all runs cannot be written.
    """

    def busy(holder: str) -> None:
        raise UsageError(
            f"name: {shown(folder)} belongs to {holder} while that runs; wait for it, or choose another --name"
        )

    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(mirror_of(folder).owned(busy))
        except OSError as error:
            raise UsageError(f"storage_path: {shown(folder)} cannot be written: {error.strerror}") from None
        yield


def prepare_run_folder(config: Config, folder: Path, shards: Path, map_shards: MapShards = map_shards_here) -> Path:
    """Checks the configuration against the data and makes the folder of the run; returns `shards`.

    Args:
        config: of the run.
        folder: of the run.
        shards: folder of the converted set.
        map_shards: reads the training split, where inputs are standardised.

    Raises:
        DataError: a modality has no standard deviation.
        UsageError: the configuration does not fit the data, or the folder cannot be made.
    """
    manifest = open_manifest(shards)
    check(config, manifest)
    open_folder(config, folder)
    try:
        Console(folder).keep(opening(config, folder))
        record_data(folder, manifest, config)
        if config.inputs.standardises:
            write_statistics(folder, shards, manifest, standardised_kinds(config, manifest), map_shards)
    except OSError as error:
        raise UsageError(f"storage_path: {folder} cannot be written: {error.strerror}") from None
    return shards


def open_folder(config: Config, folder: Path) -> None:
    """Makes the folder of a run or a study and writes its configuration; with `--fresh` an existing one is moved aside.

    Raises:
        UsageError: it cannot be written.
    """
    config = start_over(config, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_partials(folder)
        # The flag of a single start is left out, so that the file can be given to --config.
        kept = dataclasses.replace(config, run=dataclasses.replace(config.run, allow_config_change=False))
        write_text(folder / CONFIG, yaml.safe_dump(kept.to_dict(), sort_keys=False))
    except OSError as error:
        raise UsageError(f"storage_path: {folder} cannot be written: {error.strerror}") from None


def start_over(config: Config, folder: Path) -> Config:
    """Moves an existing folder aside if `--fresh` is set; returns the configuration without that flag.

    Raises:
        UsageError: it cannot be moved.
    """
    if not config.run.fresh:
        return config
    try:
        aside = mirror_of(folder).set_aside()
    except OSError as error:
        raise UsageError(f"fresh: {folder} cannot be moved aside: {error.strerror}") from None
    if aside is not None:
        print(f"starting over; what was there is kept in {aside}")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, fresh=False))
