"""Predictions with Ray Data: actors that hold the network take ranges of samples from the shards."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch

from cggm_ray.core.errors import TrainingError
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import INDEX, LABELLED, TARGET, Manifest
from cggm_ray.distributed.cluster import connect, own_error, what_failed
from cggm_ray.distributed.waiting import Arrivals
from cggm_ray.engine.assembly import build_dataset
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.evaluation import PREDICTION, Parts, Predictions, predicted
from cggm_ray.engine.own_code import OwnCode, adopt, own_code
from cggm_ray.runs.finished import FinishedRun, tested_network
from cggm_ray.storage.mirror import mirror_of

START, STOP = "start", "stop"
MOST_BATCHES = 64
"""Batches that an actor predicts at once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings that an actor needs.

    Attributes:
        config: of the run, with the path of the data.
        own: entries from user files.
        shards: folder of the set.
        trained: manifest of the set that the run was trained on, which decides on the network.
        modalities: that the network takes.
        folder: of the run.
        split: whose samples are predicted.
    """

    config: Config
    own: OwnCode
    shards: Path
    trained: Manifest
    modalities: tuple[str, ...]
    folder: Path
    split: str


class Predictor:
    """Holds the network in an actor; a call receives the first sample of a range and predicts the range."""

    def __init__(self, plan: Plan) -> None:
        adopt(plan.own)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        manifest, dataset = open_manifest(plan.shards), build_dataset(plan.config)
        mirror_of(plan.folder).join()
        net = tested_network(plan.folder, plan.config, dataset, plan.trained, plan.modalities)
        self._task = dataset.task(plan.trained)
        self._net, self._config = net.to(self._device).eval(), plan.config
        self._split = dataset.open_split(plan.shards, manifest, plan.split, plan.modalities, self._device)

    @torch.no_grad()
    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns rows of index, target, whether there is a target, and prediction [C], for a block of one range."""
        start, stop = int(block[START][0]), int(block[STOP][0])
        found = Predictions.empty(stop - start, self._task, start)
        plan = [Slice.whole(part) for part in torch.arange(start, stop).split(self._config.train.batch_size)]
        for batch in self._split.batches(plan, epoch=0):
            found.take(batch, predicted(self._config.train.precision, self._net, batch))
        return {
            INDEX: np.arange(start, stop),
            TARGET: found.target.numpy(),
            LABELLED: found.labelled.numpy(),
            PREDICTION: found.logits.numpy(),
        }


def predict_on_ray(run: FinishedRun, folder: Path, split: str, workers: int, parts: Parts) -> None:
    """Predicts a split with `workers` actors, which have one CPU each, and one GPU each if the run used GPUs.

    An actor predicts a range of many batches at once. The batches are those of a local evaluation, so the numbers are the
    same. Ranges that are early wait here for those before them.

    Args:
        run: the run.
        folder: of it, on storage that all nodes share.
        split: of its data.
        workers: actors.
        parts: receives the predictions in the order of the samples.

    Raises:
        CggmError: from an actor, or a TrainingError for what Ray reports.
    """
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    samples, batch_size = len(run.split(split)), run.config.train.batch_size
    plan = Plan(
        config=run.config,
        own=own_code(run.config),
        shards=run.shards,
        trained=run.trained,
        modalities=run.modalities,
        folder=folder,
        split=split,
    )
    # Enough ranges that all actors have work to the end, of at most so many batches.
    batches = max(1, min(MOST_BATCHES, samples // batch_size // (4 * workers)))
    bounds = range(0, samples, batches * batch_size)
    starts = [{START: start, STOP: min(start + batches * batch_size, samples)} for start in bounds]
    early: dict[int, Predictions] = {}
    seen = 0
    try:
        ranges = ray.data.from_items(starts, override_num_blocks=len(starts))
        rows = ranges.map_batches(
            Predictor,
            fn_constructor_args=(plan,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(starts))),
            num_cpus=1,
            num_gpus=1 if run.config.run.use_gpu else 0,
        )
        arrivals = Arrivals("ranges of samples", len(starts))
        with arrivals.beating():
            for block in rows.iter_batches(batch_size=None, batch_format="numpy"):
                arrivals.arrived()
                early[int(block[INDEX][0])] = Predictions(
                    logits=torch.from_numpy(_stacked(block[PREDICTION])),
                    target=torch.from_numpy(_stacked(block[TARGET])),
                    labelled=torch.from_numpy(np.array(block[LABELLED], dtype=bool)),
                )
                while seen in early:
                    part = early.pop(seen)
                    for rows in torch.arange(len(part.target)).split(batch_size):
                        parts.add(seen + rows, part.logits[rows], part.target[rows], part.labelled[rows])
                    seen += len(part.target)
    except Exception as error:
        raise own_error(error) or TrainingError(f"{folder}: the prediction failed: {what_failed(error)}") from error
    if seen != samples:
        raise TrainingError(f"{folder}: {seen} of {samples} samples were predicted in {len(starts)} ranges")


def _stacked(rows: Any) -> np.ndarray:
    """Returns the rows of a column of a block as one array in float64."""
    return np.array(np.stack([np.asarray(row) for row in rows]), dtype=np.float64)
