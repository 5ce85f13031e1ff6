"""A finished run, read back: its configuration, its data, and the network with the weights of the best epoch."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import Manifest, WriteShards, write_shards_here
from cggm_ray.engine.assembly import build_dataset, build_network, prepare_data, selected_modalities
from cggm_ray.engine.checkpoints import check_checkpoint
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.state import BEST, load_weights
from cggm_ray.models.net import MultimodalNet
from cggm_ray.runs.confusion import CONFUSION
from cggm_ray.runs.folder import CONFIG
from cggm_ray.runs.result import SUMMARY, Result, read_summary
from cggm_ray.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run in this process.

    Attributes:
        config: of the run.
        result: what it recorded.
        dataset: with that configuration.
        shards: folder of the set.
        manifest: of the set.
        modalities: that the network takes.
        task: what it predicts.
        net: with the best weights, in evaluation mode, without guides.
        runtime: one process.
    """

    config: Config
    result: Result
    dataset: Dataset
    shards: Path
    manifest: Manifest
    modalities: tuple[str, ...]
    task: Task
    net: MultimodalNet
    runtime: LocalRuntime

    def split(self, name: str) -> Split:
        """The samples of a split.

        Raises:
            DataError: its shards are damaged.
        """
        return self.dataset.open_split(self.shards, self.manifest, name, self.modalities, self.runtime.device)


def open_finished(
    folder: Path, data_path: Path | None = None, write: WriteShards = write_shards_here, *, gpu: bool = True
) -> Finished:
    """Reads a finished run; its data is converted again if the shards are gone.

    Args:
        folder: of the run.
        data_path: other raw data of the same dataset, instead of the run's own.
        write: converts it.
        gpu: whether one may be used.

    Raises:
        UsageError: the folder holds no finished run.
        DataError: the data is not there, or bad.
        TrainingError: the checkpoint is damaged, or of another network than the data asks for.
    """
    folder = folder.absolute()
    config, result = read_run(folder)
    check_checkpoint(folder / BEST)
    if data_path is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_path=str(data_path)))
        config = with_classes(config, folder)
    section = dataclasses.replace(config.run, workers="1", use_gpu=False, no_cuda=config.run.no_cuda or not gpu)
    runtime = LocalRuntime(folder, section)
    shards = prepare_data(config, write)
    manifest = open_manifest(shards)
    if data_path is not None:
        check_classes(manifest, folder, data_path)
    dataset, modalities = build_dataset(config, manifest.dataset), selected_modalities(config, manifest)
    net, _ = build_network(config, dataset, manifest, modalities)
    load_weights(net.to(runtime.device), folder / BEST)
    return Finished(
        config=config,
        result=result,
        dataset=dataset,
        shards=shards,
        manifest=manifest,
        modalities=modalities,
        task=dataset.task(manifest),
        net=net.eval(),
        runtime=runtime,
    )


def with_classes(config: Config, folder: Path) -> Config:
    """The configuration with the classes of the run, where its dataset would take those of the new data instead."""
    names = class_names(folder)
    if names and getattr(config.options, "classes", ()) is None:
        return dataclasses.replace(
            config, options=config.options.__class__(**{**vars(config.options), "classes": names})
        )
    return config


def check_classes(manifest: Manifest, folder: Path, data_path: Path) -> None:
    """Refuses data whose classes are others than those that a run was trained on.

    Raises:
        DataError: names the first that differs.
    """
    trained, found = class_names(folder), manifest.notes.get("classes")
    if not trained or found is None:
        return
    for number, (ours, theirs) in enumerate(itertools.zip_longest(trained, map(str, found))):
        if ours != theirs:
            raise DataError(
                f"{data_path}: class {number} is {theirs!r}; the run was trained with {ours!r} in its place"
            )


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of a run's classes, from the head of the `confusion.csv` that some datasets leave; empty where there is none."""
    try:
        with (folder / CONFUSION).open(newline="") as file:
            return tuple(next(csv.reader(file), [])[1:])
    except (OSError, ValueError, csv.Error):
        return ()


def read_config(folder: Path) -> Config:
    """Configuration of a run, finished or not.

    Raises:
        UsageError: the file is missing or cannot be read.
    """
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder / CONFIG} does not exist; expected the folder of a run")
    values = read_yaml(folder / CONFIG, "run")
    # The class of the dataset's own options follows from its name.
    data = values.get("data")
    name = data.get("dataset", "mosi") if isinstance(data, dict) else "mosi"
    return Config.from_dict(values, Config(options=DATASETS.get(name).Options()), source=str(folder / CONFIG))


def read_run(folder: Path) -> tuple[Config, Result]:
    """Configuration and summary of a finished run.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    for name in (CONFIG, SUMMARY):
        if not (folder / name).exists():
            raise UsageError(f"{folder / name} does not exist; expected the folder of a finished run")
    config = read_config(folder)
    try:
        result = read_summary(folder)
        if not all(isinstance(record, dict) for record in (result.valid, result.test)):
            raise ValueError("'valid' and 'test' are no mappings")
        return config, result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / SUMMARY} cannot be read: {error}") from None
