"""Predicts other data with a finished run, in this process or with Ray Data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import StorageError, TrainingError, UsageError
from cggm_ray.core.reduction import Reduce
from cggm_ray.data.loading.collector import Collector
from cggm_ray.data.maps import MAPS, MapPlan
from cggm_ray.data.shards.shards import PREDICT, WriteShards, write_shards_here
from cggm_ray.engine.evaluation import Parts, Predictions, evaluate
from cggm_ray.engine.prediction_file import PredictionFile
from cggm_ray.engine.runtime import Record, numbers
from cggm_ray.runs.finished import FinishedRun, open_finished, open_new, read_run
from cggm_ray.storage.files import whole_file, write_folder
from cggm_ray.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Result of `predict`.

    Attributes:
        path: of the predictions.
        samples: that were predicted, or volumes of a segmentation.
        labelled: those of them that have a label.
        metrics: loss and metrics of the samples that have a label; empty where none has.
    """

    path: Path
    samples: int
    labelled: int
    metrics: Mapping[str, float]


def predict(
    folder: Path,
    data_path: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    workers: int | None = None,
    media_path: Path | None = None,
) -> Predicted:
    """Writes the predictions of a run's best checkpoint.

    `PredictionFile` gets a row for every sample, in a parquet file; maps of a segmentation go into a folder. Other
    data than the run's own needs neither labels nor splits, and may be a single sample; the run's own is not needed then.

    Args:
        folder: of the run.
        data_path: raw data of the same dataset; default the run's own.
        split: the part of it; default everything of other data, and the test split of the run's own.
        out: the file, or for a segmentation the folder of maps; default `predictions[-<split>]-<name of the data>` in the
            folder of the run, with .parquet for a file.
        workers: so many predict at once on Ray; None for this process. Maps are always written by this process.
        media_path: folder of the images, sounds and videos that the data names; default that of the run, or the folder of the
            data where that is gone.

    Raises:
        UsageError: the folder holds no finished run, or `out` is in the way.
        DataError: the data is not there, bad, or of other features or classes than the run was trained with.
        TrainingError: the checkpoint is damaged, or a sample was left out.
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
    name = Path(data_path or config.data.data_path or "demonstration").stem
    if data_path is None:
        if media_path is not None:
            raise UsageError("media_path: given without --data_path; expected both")
        split = "test" if split is None else split
        run = open_finished(folder, write)
    else:
        run = open_new(folder, data_path, split, write, media_path)
    name = f"predictions-{name}" if split is None else f"predictions-{split}-{name}"
    split = PREDICT if data_path is not None else str(split)
    if not run.task.dense:
        return predict_values(run, folder.absolute(), split, out or folder.absolute() / f"{name}.parquet", workers)
    if out is not None and out.exists():
        raise UsageError(f"out: {out} is a file; expected a new folder for the maps")
    return predict_maps(run, split, out or folder.absolute() / name)


def predict_values(run: FinishedRun, folder: Path, split: str, out: Path, workers: int | None) -> Predicted:
    """Writes the parquet file of a run whose prediction for a sample is a vector."""
    samples, scores = run.split(split), Scores(run.task)
    count, as_csv = len(samples), out.suffix.lower() == ".csv"
    names = [getattr(run.dataset, which)(run.trained) for which in ("class_names", "label_names")]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(out) as partial,
            closing(PredictionFile(partial, count, samples.names, *names, as_csv=as_csv)) as file,
        ):

            def give(part: Predictions) -> None:
                file.add(part)
                scores.add(part)

            parts = Parts(count, run.task, run.config.train.batch_size, give)
            if workers is None:
                evaluate(run.config.train, run.net, run.task, samples, run.runtime, parts)
            else:
                from cggm_ray.distributed.data.predict import predict_on_ray

                predict_on_ray(run, folder, split, workers, parts)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    return Predicted(path=out, samples=count, labelled=scores.labelled, metrics=scores.result())


def predict_maps(run: FinishedRun, split: str, out: Path) -> Predicted:
    """Writes the maps of a segmentation in this process, and replaces a folder that exists."""
    metrics: Record = {}
    volumes = labelled = 0

    def write(partial: Path) -> None:
        nonlocal volumes, labelled
        plan = MapPlan(
            dataset=run.dataset,
            shards=run.shards,
            manifest=run.manifest,
            split=split,
            modalities=run.modalities,
            device=run.runtime.device,
            out=partial,
            sources=run.sources,
        )
        whole, maps = MAPS.get(run.dataset.name)(plan)
        counting = LabelledGroups(maps)
        metrics.update(evaluate(run.config.train, run.net, run.task, whole, run.runtime, counting))
        labelled = len(counting.labelled)
        volumes, written = len(run.manifest.splits[split]), len(list(partial.iterdir()))
        if written != volumes:
            raise TrainingError(f"{out}: {written} maps of {volumes} volumes were written; two may have the same name")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_folder(out, write)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    return Predicted(path=out, samples=volumes, labelled=labelled, metrics=numbers(metrics))


class LabelledGroups:
    """Passes the predictions of slices to the writer of maps, and records which volumes have labels.

    Args:
        maps: writes the maps.

    Attributes:
        labelled: numbers of the volumes.
    """

    def __init__(self, maps: Collector) -> None:
        self._maps = maps
        self.labelled: set[int] = set()

    def take(self, batch: Batch, logits: Tensor) -> None:
        """Passes a batch on and records the volumes whose slices have labels."""
        group = batch.index if batch.group is None else batch.group
        self.labelled.update((group if batch.labelled is None else group[batch.labelled.to(group.device)]).tolist())
        self._maps.take(batch, logits)

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Does nothing, because one process writes all maps."""


class Scores:
    """Loss and metrics of the predictions that have a label, from parts.

    Args:
        task: what is predicted.

    Attributes:
        labelled: samples with a label so far.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._state = task, task.metrics()
        self._sums: Tensor | None = None
        self.labelled = 0

    @torch.no_grad()
    def add(self, part: Predictions) -> None:
        """Adds a part."""
        if not bool(part.labelled.any()):
            return
        target = part.target[part.labelled]
        target = target if self._task.values > 1 else target[:, 0]
        target = target.long() if isinstance(self._task, Classification) else target.float()
        logits, batch = part.logits[part.labelled].float(), Batch.of_loop(target)
        self._state.update(logits, batch)
        sums = self._task.sums(logits, batch)
        self._sums = sums if self._sums is None else self._sums.double() + sums.double()
        self.labelled += len(target)

    def result(self) -> dict[str, float]:
        """Returns loss and metrics; the dict is empty if no sample has a label."""
        if self._sums is None:
            return {}
        return {"loss": float(self._task.combine(self._sums)), **self._state.compute(self._state.sums)}
