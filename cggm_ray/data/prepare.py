"""Converts raw data to a folder of shards once, and finds it again afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError, reason
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.new_data import some_files
from cggm_ray.data.shards.opening import print_notes
from cggm_ray.data.shards.packed import unpack
from cggm_ray.data.shards.publishing import drop, publish, sole_converter, staging_folder
from cggm_ray.data.shards.shards import (
    Manifest,
    RawShard,
    WriteShards,
    open_set,
    verify_set,
)
from cggm_ray.data.shards.sources import fingerprint
from cggm_ray.data.shards.specs import described, table_specs
from cggm_ray.data.split_names import SPLITS as SPLITS
from cggm_ray.storage.cache import cache_folder
from cggm_ray.storage.places import is_local, place
from cggm_ray.storage.urls import UrlPath


def prepare(dataset: Dataset, write: WriteShards, check: Callable[[Manifest], object]) -> Path:
    """Converts the data of a run, or finds its shards, after checking the run against the data.

    Args:
        dataset: with the settings of the run, which name the raw data; without a path the demonstration set is made first.
        write: runs the conversion. It is not called when the shards are there already, the input is bad, or the run does
            not fit it.
        check: raises a UsageError where the run does not fit what a manifest says of the data.

    Returns:
        The folder of the set.

    Raises:
        DataError: bad input; nothing was written.
        UsageError: of `check`; nothing was written.
    """
    paths = some_files(dataset, raw_path(dataset), dataset.locate)
    sources = dataset.describe(paths)
    mark = fingerprint(dataset.name, dataset.converter, dataset.shard_options(), sources)
    folder = dataset.settings.shard_root / f"{dataset.name}-{mark}"
    manifest = open_set(folder)
    if manifest is None:
        raw = list(dataset.read(paths))
        draft = Manifest(
            dataset=dataset.name,
            converter=dataset.converter,
            options=dataset.shard_options(),
            sources=sources,
            splits=dict.fromkeys(SPLITS, ()),
            notes=dataset.notes(),
            **described(dataset.specs(raw[0])),
        )
        check(draft)
        with sole_converter(folder) as check_sole:
            manifest = open_set(folder)
            if manifest is None:
                print_notes(folder, draft)
                convert(dataset, raw, draft, write, folder, check_sole)
                return folder
    if dataset.settings.data.verify:
        verify_set(folder, manifest)
    dataset.accept(folder, manifest)
    check(manifest)
    return folder


def convert(
    dataset: Dataset,
    raw: Sequence[RawShard],
    draft: Manifest,
    write: WriteShards,
    folder: Path,
    check_sole: Callable[[], None],
) -> None:
    """Converts the whole set, or writes nothing.

    Args:
        dataset: after `read`.
        raw: what it read.
        draft: the manifest without shards.
        write: runs the conversion.
        folder: of the set.
        check_sole: of `sole_converter`.
    """
    staging = staging_folder(folder)
    try:
        shards = write(dataset.stages(), raw, staging)
        splits = {
            split: tuple(done for done, wanted in zip(shards, raw, strict=True) if wanted.split == split)
            for split in SPLITS
        }
        made = described(table_specs(unpack(pq.read_table(staging / shards[0].file))))
        notes = draft.notes | dataset.inspect(staging, raw, shards)
        check_sole()
        publish(staging, folder, dataclasses.replace(draft, splits=splits, notes=notes, **made))
    finally:
        drop(staging, folder)


def raw_path(dataset: Dataset) -> Path:
    """Returns the path of a run's raw data: the user's path, or the demonstration set, which is made if necessary.

    Raises:
        DataError: there is nothing at the path.
    """
    settings = dataset.settings
    if settings.data.data_path is None:
        return _demonstration(dataset)
    path = place("data_path", settings.data.data_path)
    try:
        if isinstance(path, UrlPath):
            path.hold_listing()
        there = path.exists()
    except OSError as error:
        if is_local(path):
            raise
        raise DataError(f"data_path: {path} cannot be read: {reason(error)}") from None
    if not there:
        raise DataError(f"data_path: {path} does not exist; expected the raw data of {dataset.name}")
    return path


def _demonstration(dataset: Dataset) -> Path:
    """Makes the demonstration set of a run beside its shards; in a store it is put there from a local copy."""
    settings = dataset.settings
    folder = settings.shard_root.parent / "demonstration"
    if not isinstance(folder, UrlPath):
        return dataset.demonstration(folder, settings.seed)
    made = dataset.demonstration(cache_folder() / "demonstration", settings.seed)
    place = folder / made.name
    try:
        there = {entry.key: entry.size for entry in place.entries()}
        for file in [made] if made.is_file() else sorted(file for file in made.rglob("*") if file.is_file()):
            target = place / file.relative_to(made) if file != made else place
            if there.get(target.key) != file.stat().st_size:
                target.upload(file)
        place.hold_listing()
    except OSError as error:
        raise DataError(f"shard_path: {place} cannot be written: {reason(error)}") from None
    return place
