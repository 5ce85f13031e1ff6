"""A run on Ray: conversion by Ray Data, the loop on the workers of a TorchTrainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer

from cggm_ray.config import Config
from cggm_ray.data.dataset import DATASETS, prepare
from cggm_ray.distributed.cluster import connect, cpus_per_worker, own_error
from cggm_ray.distributed.ingest import write_shards_with_ray
from cggm_ray.distributed.runtime import RayRuntime
from cggm_ray.errors import TrainingError
from cggm_ray.run import claim
from cggm_ray.tracking import following
from cggm_ray.train import SUMMARY, Result, fit


def run_on_ray(config: Config, folder: Path) -> Result:
    """Prepares the data and trains on a cluster.

    Input is checked before the cluster is touched. The folder of the run is also Ray Train's, which is how a run of the
    same name finds its checkpoints.

    Raises:
        CggmError: a worker's own error, or a TrainingError for what Ray reports.
    """
    shards = prepare(config, write_shards_with_ray)
    connect()
    cpus = cpus_per_worker(config.run)
    claim(config, folder, shards)
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={
            "config": config,
            # A dataset that a person registered in a file of their own is not known to a worker; it travels along.
            "dataset": DATASETS.get(config.data.dataset),
            "shards": str(shards),
            "folder": str(folder),
            "threads": cpus,
        },
        scaling_config=ScalingConfig(
            num_workers=config.run.workers,
            use_gpu=config.run.use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if config.run.use_gpu else {})},
        ),
        run_config=RayRunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="best_score", checkpoint_score_order="max"
            ),
        ),
    )
    try:
        with following(folder):
            trainer.fit()
    except Exception as error:
        raise own_error(error) or TrainingError(f"{folder}: the run failed: {error}") from error
    summary = json.loads((folder / SUMMARY).read_text())
    return Result(folder=folder, best_epoch=summary["best_epoch"], valid=summary["valid"], test=summary["test"])


def train_on_worker(arguments: dict[str, Any]) -> None:
    """The loop on one worker."""
    torch.set_num_threads(arguments["threads"])
    DATASETS.adopt(arguments["config"].data.dataset, arguments["dataset"])
    fit(arguments["config"], Path(arguments["shards"]), RayRuntime(), Path(arguments["folder"]))
