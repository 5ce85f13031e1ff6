"""Predictions of a finished run for other data, in this process or with Ray Data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cggm_ray.core.errors import StorageError, UsageError
from cggm_ray.data.shards.shards import WriteShards, write_shards_here
from cggm_ray.engine.evaluation import Predictions, evaluate, write_predictions
from cggm_ray.engine.runtime import Record, numbers
from cggm_ray.runs.finished import Finished, open_finished, read_run
from cggm_ray.storage.files import write_folder


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What `predict` left.

    Attributes:
        path: of the predictions.
        metrics: loss and metrics of these samples.
    """

    path: Path
    metrics: Mapping[str, float]


def predict(
    folder: Path,
    data_path: Path | None = None,
    split: str = "test",
    out: Path | None = None,
    workers: int | None = None,
) -> Predicted:
    """Writes what the best checkpoint of a run predicts.

    Index, id, target and prediction of every sample go into a parquet file, maps of a segmentation into a folder.

    The data is read, checked and converted as for training.

    Args:
        folder: of the run.
        data_path: raw data with labels; default the run's own.
        split: of it.
        out: the file, or for a segmentation the folder of maps; default `predictions-<split>-<name of the data>` in the
            folder of the run, with .parquet for a file.
        workers: so many predict at once on Ray; None for this process. Maps are always written by this process.

    Raises:
        UsageError: the folder holds no finished run, or `out` is in the way.
        DataError: the data is not there, bad, or of other classes.
        TrainingError: the checkpoint is damaged, or the data has other features than it was trained on.
        StorageError: the file cannot be written.
    """
    # What needs no data is checked before the data is converted.
    config, _ = read_run(folder.absolute())
    if out is not None and out.is_dir():
        raise UsageError(f"out: {out} is a folder that is there already; expected a file, or a new folder for maps")
    write: WriteShards = write_shards_here
    if workers is not None:
        # Ray is imported here and not above: a local prediction does without it.
        from cggm_ray.distributed.data.ingest import write_shards_with_ray

        write = write_shards_with_ray
    run = open_finished(folder, data_path, write)
    name = f"predictions-{split}-{Path(data_path or config.data.data_path or 'demonstration').stem}"
    if not run.task.dense:
        return predict_values(run, folder.absolute(), split, out or folder.absolute() / f"{name}.parquet", workers)
    if out is not None and out.exists():
        raise UsageError(f"out: {out} is a file; expected a new folder for the maps")
    return predict_maps(run, split, out or folder.absolute() / name)


def predict_values(run: Finished, folder: Path, split: str, out: Path, workers: int | None) -> Predicted:
    """Writes the file of a run whose prediction for a sample is a vector; see `predict`."""
    if workers is None:
        collected = Predictions.empty(len(run.split(split)), run.task.outputs)
        evaluate(run.config.train, run.net, run.task, run.split(split), run.runtime, collected)
    else:
        from cggm_ray.distributed.data.predict import predict_on_ray

        collected = predict_on_ray(run, folder, split, workers)
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(partial, run.split(split).names, collected)
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return Predicted(path=out, metrics=metrics_of(run, collected))


def predict_maps(run: Finished, split: str, out: Path) -> Predicted:
    """Writes the folder of a segmentation, replacing one that is there, in this process; see `predict`."""
    metrics: Record = {}

    def write(partial: Path) -> None:
        modalities, device = run.modalities, run.runtime.device
        whole, maps = run.dataset.open_maps(run.shards, run.manifest, split, modalities, device, partial)
        metrics.update(evaluate(run.config.train, run.net, run.task, whole, run.runtime, maps))

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_folder(out, write)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    return Predicted(path=out, metrics=numbers(metrics))


def metrics_of(run: Finished, collected: Predictions) -> dict[str, float]:
    """Loss and metrics of predictions [samples, C], from the predictions alone."""
    target = collected.target[:, 0]
    target = target.long() if run.task.outputs > 1 else target.float()
    logits = collected.logits.float()
    state = run.task.metrics()
    state.update(logits, target, None, None)
    with torch.no_grad():
        loss = float(run.task.loss(logits, target))
    return {"loss": loss, **state.compute(state.sums)}
