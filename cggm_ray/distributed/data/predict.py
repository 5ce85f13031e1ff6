"""Predictions with Ray Data: actors that hold the network take ranges of samples from the shards."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray.data
import torch

from cggm_ray.core.errors import TrainingError
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import INDEX, LABELLED, TARGET, Manifest
from cggm_ray.distributed.cluster import connect, own_error
from cggm_ray.engine.assembly import build_dataset
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.evaluation import PREDICTION, Predictions, predicted
from cggm_ray.engine.own_code import Entry, adopt, entries
from cggm_ray.runs.finished import FinishedRun, tested_network
from cggm_ray.storage.mirror import mirror_of

START = "start"


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
    own: tuple[Entry, ...]
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
        self._net, self._config = net.to(self._device).eval(), plan.config
        self._split = dataset.open_split(plan.shards, manifest, plan.split, plan.modalities, self._device)

    @torch.no_grad()
    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns rows of index, target, whether there is a target, and prediction [C], for a block of one range."""
        start = int(block[START][0])
        stop = min(start + self._config.train.batch_size, len(self._split))
        part = Slice.whole(torch.arange(start, stop))
        (batch,) = self._split.batches([part], epoch=0)
        logits = predicted(self._config.train.precision, self._net, batch).double().cpu().numpy()
        labelled = torch.ones(len(batch), dtype=torch.bool) if batch.labelled is None else batch.labelled.cpu()
        return {
            INDEX: batch.index.numpy(),
            TARGET: batch.target.double().reshape(len(batch), -1).cpu().numpy(),
            LABELLED: labelled.numpy(),
            PREDICTION: logits,
        }


def predict_on_ray(run: FinishedRun, folder: Path, split: str, workers: int) -> Predictions:
    """Predicts a split with `workers` actors, which have one CPU each, and one GPU each if the run used GPUs.

    The ranges are the batches of a local evaluation, so the numbers are the same.

    Args:
        run: the run.
        folder: of it, on storage that all nodes share.
        split: of its data.
        workers: actors.

    Raises:
        CggmError: from an actor, or a TrainingError for what Ray reports.
    """
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    samples = len(run.split(split))
    collected = Predictions.empty(samples, run.task)
    plan = Plan(
        config=run.config,
        own=entries(run.config),
        shards=run.shards,
        trained=run.trained,
        modalities=run.modalities,
        folder=folder,
        split=split,
    )
    starts = [{START: start} for start in range(0, samples, run.config.train.batch_size)]
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
        for block in rows.iter_batches(batch_size=None, batch_format="numpy"):
            index = torch.from_numpy(np.array(block[INDEX], dtype=np.int64))
            logits = np.stack([np.asarray(row) for row in block[PREDICTION]])
            collected.logits[index] = torch.from_numpy(np.array(logits, dtype=np.float64))
            target = np.stack([np.asarray(row) for row in block[TARGET]])
            collected.target[index] = torch.from_numpy(np.array(target, dtype=np.float64))
            collected.labelled[index] = torch.from_numpy(np.array(block[LABELLED], dtype=bool))
            seen += len(index)
    except Exception as error:
        raise own_error(error) or TrainingError(f"{folder}: the prediction failed: {error}") from error
    if seen != samples:
        raise TrainingError(f"{folder}: {seen} of {samples} samples were predicted in {len(starts)} ranges")
    return collected
