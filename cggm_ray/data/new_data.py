"""Prepares data to predict: a set of one split for the network of a finished run. No labels are needed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq

from cggm_ray.core.errors import DataError
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.shards.packed import unpack
from cggm_ray.data.shards.publishing import drop, publish, sole_converter, staging_folder
from cggm_ray.data.shards.shards import (
    PREDICT,
    Manifest,
    RawShard,
    WriteShards,
    open_set,
    verify_set,
)
from cggm_ray.data.shards.sources import fingerprint
from cggm_ray.data.shards.specs import described, table_specs


def prepare_new(
    dataset: Dataset,
    path: Path,
    trained: Manifest,
    modalities: Sequence[str],
    split: str | None,
    write: WriteShards,
) -> tuple[Path, list[Path]]:
    """Converts data to predict, or finds its shards, after checking it against the data of the run.

    Args:
        dataset: with the configuration of the run.
        path: of the new data.
        trained: manifest of the set that the run was trained on.
        modalities: that its network takes.
        split: the part of the new data; None for all of it.
        write: runs the conversion.

    Returns:
        The folder of the set, and the raw files.

    Raises:
        DataError: bad input, or other features or classes than the run was trained with; nothing was written.
    """
    paths = some_files(dataset, path, dataset.locate_new)
    sources = dataset.describe(paths)
    options = dataset.shard_options() | {PREDICT: {"split": split, "trained": trained_digest(trained)}}
    name = fingerprint(dataset.name, dataset.converter, options, sources)
    folder = dataset.settings.shard_root / f"{dataset.name}-{name}"
    manifest = open_set(folder)
    if manifest is not None:
        if dataset.settings.data.verify:
            verify_set(folder, manifest)
        return folder, paths
    raw = checked_shards(dataset.read_new(paths, trained, split), path, split)
    notes = dataset.notes()
    check_classes(trained, notes, path)
    draft = Manifest(
        dataset=dataset.name,
        converter=dataset.converter,
        options=options,
        sources=sources,
        splits={PREDICT: ()},
        notes=trained.notes | notes,
        **described(dataset.specs(raw[0])),
    )
    check_fits(dataset, draft, trained, modalities, path)
    with sole_converter(folder) as check_sole:
        if open_set(folder) is not None:
            return folder, paths
        staging = staging_folder(folder)
        try:
            shards = write(dataset.stages(), raw, staging)
            for shard, wanted in zip(shards, raw, strict=True):
                if shard.rows < wanted.table.num_rows:
                    raise DataError(
                        f"{path}: {wanted.table.num_rows} samples became {shard.rows} in {shard.file}; expected a "
                        "prediction for every one"
                    )
            made = described(table_specs(unpack(pq.read_table(staging / shards[0].file))))
            done = replace(draft, splits={PREDICT: tuple(shards)}, **made)
            check_fits(dataset, done, trained, modalities, path)
            check_sole()
            publish(staging, folder, done)
        finally:
            drop(staging, folder)
    return folder, paths


def some_files(dataset: Dataset, path: Path, locate: Callable[[Path], list[Path]]) -> list[Path]:
    """Returns the raw files that a dataset finds under a path.

    Raises:
        DataError: there is none.
    """
    found = locate(path)
    if not found:
        raise DataError(f"{path}: found no file of the dataset {dataset.name}; expected its raw data")
    return found


def trained_digest(trained: Manifest) -> str:
    """Returns the checksum of the parts of the training set on which a conversion of new data may depend."""
    about = asdict(trained)
    kept = [about[name] for name in ("modalities", "target", "notes")]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def checked_shards(raw: Iterable[RawShard], path: Path, split: str | None) -> list[RawShard]:
    """Yields the raw shards of data to predict, of which there must be at least one.

    Raises:
        DataError: there is none, or they are not numbered as they come.
    """
    found = list(raw)
    if not found:
        raise DataError(f"{path}: found no sample{f' of split {split}' if split else ''}; expected at least one")
    for number, shard in enumerate(found):
        if (shard.split, shard.number) != (PREDICT, number):
            raise DataError(
                f"{path}: read_new gave the shard {shard.file}; expected {PREDICT} with the number {number}, as they come"
            )
    return found


def check_fits(dataset: Dataset, manifest: Manifest, trained: Manifest, modalities: Sequence[str], path: Path) -> None:
    """Raises a DataError if the network of a run cannot accept the samples.

    Args:
        dataset: whose `takes` decides.
        manifest: of the new data.
        trained: of the data of the run.
        modalities: that the network takes.
        path: of the new data.

    Raises:
        DataError: names modality, shape found and shape expected.
    """
    for name in modalities:
        wanted, found = trained.modalities[name].shape, manifest.modalities.get(name)
        if found is None:
            raise DataError(
                f"{path}: modality {name} is missing; found {', '.join(manifest.modalities)}; the run was trained with "
                f"{', '.join(modalities)}"
            )
        if not dataset.takes(name, wanted, found.shape):
            raise DataError(
                f"{path}: modality {name}: samples of shape {found.shape}; the run was trained on samples of shape {wanted}"
            )


def check_classes(trained: Manifest, notes: Mapping[str, object], path: Path) -> None:
    """Raises a DataError if the classes differ from those of the run's training data.

    Raises:
        DataError: names the first that differs.
    """
    ours, theirs = trained.notes.get("classes"), notes.get("classes")
    if not isinstance(ours, list | tuple) or not isinstance(theirs, list | tuple):
        return
    for number, (wanted, found) in enumerate(itertools.zip_longest(map(str, ours), map(str, theirs))):
        if wanted != found:
            raise DataError(f"{path}: class {number} is {found!r}; the run was trained with {wanted!r} in its place")
