"""Reads a finished run: its configuration, its data, and the network with the weights of the best epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.data.loading.split import Split
from cggm_ray.data.new_data import prepare_new
from cggm_ray.data.prepare import raw_path
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import Manifest, WriteShards, write_shards_here
from cggm_ray.engine.assembly import (
    build_dataset,
    build_network,
    build_task,
    prepare_data,
    selected_modalities,
    with_batch_size,
    with_strategy,
)
from cggm_ray.engine.checkpoints import check_checkpoint
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.linear_blend import with_linear
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.state import BEST, load_weights
from cggm_ray.models.averaged import AveragedNet
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.outputs import scaled_head
from cggm_ray.runs.ensembles import read_ensemble, tested_checkpoints
from cggm_ray.runs.recorded import import_classes, recorded_manifest
from cggm_ray.runs.result import CONFIG, SUMMARY, Result, read_summary
from cggm_ray.tasks import Classification, Regression, Task


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run in this process.

    Attributes:
        config: of the run.
        result: what it recorded.
        dataset: with that configuration.
        shards: folder of the set.
        manifest: of the set.
        trained: manifest of the set that the run was trained on; the same where the set is the run's own.
        sources: raw files of the set.
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
    trained: Manifest
    sources: Sequence[Path]
    modalities: tuple[str, ...]
    task: Task
    net: MultimodalNet
    runtime: LocalRuntime

    def split(self, name: str) -> Split:
        """Returns the samples of a split.

        Raises:
            DataError: its shards are damaged.
        """
        if name not in self.manifest.splits:
            raise UsageError(f"split: unknown {name!r}; available: {', '.join(self.manifest.splits)}")
        return self.dataset.open_split(self.shards, self.manifest, name, self.modalities, self.runtime.device)


def open_finished(folder: Path, write: WriteShards = write_shards_here, *, gpu: bool = True) -> FinishedRun:
    """Reads a finished run and its data, and converts the data again if the shards are gone.

    Args:
        folder: of the run.
        write: converts its data.
        gpu: whether one may be used.

    Raises:
        UsageError: the folder holds no finished run.
        DataError: the data is not there, or bad.
        TrainingError: the checkpoint is damaged, or of another network than the data needs.
    """
    folder = folder.absolute()
    config, result = read_run(folder)
    _check_checkpoints(folder)
    shards = prepare_data(config, write)
    manifest = open_manifest(shards)
    dataset = build_dataset(config, manifest.dataset)
    sources = dataset.locate(raw_path(dataset))
    return _opened(folder, config, result, dataset, shards, manifest, manifest, sources, gpu=gpu)


def open_on(folder: Path, shards: Path) -> FinishedRun:
    """Reads a finished run with the shards that it was trained on; its raw data is not looked at.

    Args:
        folder: of the run.
        shards: folder of the set.

    Raises:
        UsageError: the folder holds no finished run.
        DataError: the shards are gone.
        TrainingError: the checkpoint is damaged.
    """
    config, result = read_run(folder)
    return opened_on(folder, config, result, shards)


def opened_on(folder: Path, config: Config, result: Result, shards: Path) -> FinishedRun:
    """Opens a run whose configuration and result are known.

    Args:
        folder: of the run.
        config: of the run.
        result: of the run.
        shards: folder of the set that it was trained on.

    Raises:
        DataError: the shards are gone.
        TrainingError: the checkpoint is damaged.
    """
    _check_checkpoints(folder)
    manifest = open_manifest(shards)
    dataset = build_dataset(config, manifest.dataset)
    return _opened(folder, config, result, dataset, shards, manifest, manifest, ())


def open_new(
    folder: Path,
    data_path: Path,
    split: str | None = None,
    write: WriteShards = write_shards_here,
    media_path: Path | None = None,
) -> FinishedRun:
    """Reads a finished run with other data, which is a single split, `PREDICT`. The run's own data is not needed.

    Args:
        folder: of the run.
        data_path: raw data of the same dataset.
        split: the part of it; None for all.
        write: converts it.
        media_path: folder of the files that the data names; None for that of the run, or of the data where that is gone.

    Raises:
        UsageError: the folder holds no finished run, or its dataset takes no folder of media.
        DataError: the data is not there, bad, or of other features or classes than the run was trained with.
        TrainingError: the checkpoint is damaged.
    """
    folder = folder.absolute()
    config, result = read_run(folder)
    _check_checkpoints(folder)
    trained = recorded_manifest(folder)
    if trained is None:
        trained = _converted_again(folder, config, write)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_path=str(data_path)))
    if media_path is not None:
        if not hasattr(config.options, "media_path"):
            raise UsageError(f"media_path: {trained.dataset} reads no files beside its data; leave the flag out")
        if not media_path.is_dir():
            raise DataError(f"media_path: {media_path} is no folder; expected the one below which media lie")
        config = config.replace({"media_path": str(media_path)}, source="flag")
    config = with_classes(config, trained)
    dataset = build_dataset(config, trained.dataset)
    modalities = selected_modalities(config, trained)
    shards, sources = prepare_new(dataset, raw_path(dataset), trained, modalities, split, write)
    return _opened(folder, config, result, dataset, shards, open_manifest(shards), trained, sources)


def open_without_data(folder: Path, *, gpu: bool = True) -> FinishedRun:
    """Reads a finished run to predict samples that come from elsewhere; neither its data nor its shards are needed.

    Args:
        folder: of the run; it stands in the place of the shards, which there are none of.
        gpu: whether one may be used.

    Raises:
        UsageError: the folder holds no finished run, or one that recorded nothing of its data.
        TrainingError: the checkpoint is damaged.
    """
    folder = folder.absolute()
    config, result = read_run(folder)
    _check_checkpoints(folder)
    trained = recorded_manifest(folder)
    if trained is None:
        raise UsageError(f"{folder} is a run of an earlier version, which recorded nothing of its data; train it again")
    config = with_classes(config, trained)
    dataset = build_dataset(config, trained.dataset)
    return _opened(folder, config, result, dataset, folder, trained, trained, (), gpu=gpu)


def _converted_again(folder: Path, config: Config, write: WriteShards) -> Manifest:
    """Returns the manifest of the data of a run of an earlier version, which recorded nothing of it.

    Raises:
        DataError: its raw data is not there any more.
    """
    try:
        return open_manifest(prepare_data(config, write))
    except DataError as error:
        raise DataError(
            f"{error}; {folder} is a run of an earlier version, which recorded nothing of the data that it was trained on, so "
            "put that back, or train the run again"
        ) from error


def _opened(
    folder: Path,
    config: Config,
    result: Result,
    dataset: Dataset,
    shards: Path,
    manifest: Manifest,
    trained: Manifest,
    sources: Sequence[Path],
    *,
    gpu: bool = True,
) -> FinishedRun:
    """Opens the run, or the ensemble, with the network that its own data requires."""
    section = dataclasses.replace(config.run, workers="1", use_gpu=False, no_cuda=config.run.no_cuda or not gpu)
    config = with_batch_size(config, trained)
    runtime = LocalRuntime(folder, section)
    modalities = selected_modalities(config, trained)
    config = with_strategy(config, modalities)
    net = tested_network(folder, config, dataset, trained, modalities).to(runtime.device)
    task = build_task(config, dataset, trained)
    head = scaled_head(net)
    if read_ensemble(folder) is not None:
        # Members may have other options of the loss, so that of an ensemble has none.
        task = dataset.task(trained)
    elif head is not None and isinstance(task, Regression):
        task = task.scaled(head.location, head.unit)
    return FinishedRun(
        config=config,
        result=result,
        dataset=dataset,
        shards=shards,
        manifest=manifest,
        trained=trained,
        sources=sources,
        modalities=modalities,
        task=task,
        net=net.eval(),
        runtime=runtime,
    )


def tested_network(
    folder: Path, config: Config, dataset: Dataset, trained: Manifest, modalities: tuple[str, ...]
) -> MultimodalNet:
    """Builds the network of a finished run with its tested weights, or the mean of the networks of an ensemble.

    Args:
        folder: of the run.
        config: of the run.
        dataset: of the run.
        trained: manifest of the set that it was trained on.
        modalities: that it takes.

    Raises:
        UsageError: a file of the folder is damaged.
        TrainingError: the weights are damaged, or of another network.
    """
    ensemble = read_ensemble(folder)
    if ensemble is None:
        net, _ = build_network(with_strategy(config, modalities), dataset, trained, modalities)
        load_weights(net, folder / BEST)
        return with_linear(net, folder / BEST, dataset, trained)
    members = ensemble.folders(folder)
    nets = [tested_network(member, read_config(member), dataset, trained, modalities) for member in members]
    classes = isinstance(dataset.task(trained), Classification)
    counts = list(members.values())
    return AveragedNet(nets, [count / sum(counts) for count in counts], modalities, classes=classes)


def _check_checkpoints(folder: Path) -> None:
    """Raises a TrainingError if a checkpoint that the run needs is damaged."""
    for checkpoint in tested_checkpoints(folder):
        check_checkpoint(checkpoint)


def with_classes(config: Config, trained: Manifest) -> Config:
    """Returns the configuration with the classes of the run, if its dataset would otherwise use those of the new data."""
    names = trained.notes.get("classes")
    if names and getattr(config.options, "classes", ()) is None:
        return dataclasses.replace(
            config, options=config.options.__class__(**{**vars(config.options), "classes": tuple(names)})
        )
    return config


def read_config(folder: Path) -> Config:
    """Returns the configuration of a run, finished or not.

    Raises:
        UsageError: the file is missing or cannot be read.
    """
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder / CONFIG} does not exist; expected the folder of a run")
    values = read_yaml(folder / CONFIG, "run")
    import_classes(folder, values)
    # The class of the dataset's own options follows from its name.
    data = values.get("data")
    name = data.get("dataset", "mosi") if isinstance(data, dict) else "mosi"
    return Config.from_dict(values, Config(options=DATASETS.get(name).Options()), source=str(folder / CONFIG))


def read_run(folder: Path) -> tuple[Config, Result]:
    """Returns the configuration and the summary of a finished run.

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
