"""A whole run: trained, tested once with its best checkpoint, and summed up in its folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import torch
from torch import Tensor, nn
from cggm_ray.accumulate import backward
from cggm_ray.balance import MOST_AT_THE_END, leave_contributions
from cggm_ray.batch import Batch, HeadOutput
from cggm_ray.checkpoints import agree, check_checkpoint, storage_errors
from cggm_ray.config import Config
from cggm_ray.data.dataset import DATASETS, Dataset, build_network, check_configuration, selected_modalities
from cggm_ray.data.sampler import epoch_order, slices
from cggm_ray.data.shards import Manifest, open_set
from cggm_ray.data.split import Split
from cggm_ray.errors import DataError, StoppedError, TrainingError
from cggm_ray.evaluation import Observer, Predictions, evaluate, write_predictions
from cggm_ray.files import copy_files, write_folder, write_text
from cggm_ray.finite import DeviceWatch
from cggm_ray.guards import look, non_finite, step_or_skip
from cggm_ray.models.batchnorm import global_batch
from cggm_ray.models.net import MultimodalNet, compile_parts
from cggm_ray.modulation.base import STRATEGIES, Strategy, alone
from cggm_ray.optim import build_schedule, clip_by_total_norm, model_optimizer, rescale
from cggm_ray.runtime import Record, Runtime, numbers
from cggm_ray.seeding import derive_seed, make_deterministic, seed_all
from cggm_ray.state import BEST, PREDICTIONS, Best, Position, TrainState, load_weights
from cggm_ray.stopping import Notice
from cggm_ray.tasks import Task
from cggm_ray.tracking import Console, Tracker, check_trackers, default_trackers


def fit(config: Config, shards: Path, runtime: Runtime, folder: Path) -> Result:
    """Trains, keeps the best checkpoint by validation, and tests it once.

    See `open_training` for the arguments and `train` for what it raises.
    """
    with storage_errors(runtime.checkpoints):
        training = open_training(config, shards, runtime, folder)
        train(training)
        return finish(training)


def finish(training: Training) -> Result:
    """Tests the best checkpoint, and leaves its weights, its predictions and a summary in the folder of the run.

    Raises:
        TrainingError: that checkpoint is gone or damaged.
    """
    config, state, runtime, folder = training.config, training.state, training.runtime, training.folder
    task, splits = training.task, training.splits
    if not state.best.epoch:
        raise TrainingError(
            f"{folder}: the validation loss or {state.best.metric} was not a number after each of {state.epoch} epochs, so "
            "there is no best checkpoint to test; try a smaller --lr"
        )
    checkpoint = runtime.checkpoints.of(Position(state.best.epoch))
    if checkpoint is None:
        raise TrainingError(f"{folder}: the checkpoint of the best epoch, {state.best.epoch}, is gone")
    check_checkpoint(checkpoint)
    load_weights(state.net, checkpoint)
    valid = evaluate(config, state.net, task, splits["valid"], runtime)
    collected = None if task.dense else Predictions.empty(len(splits["test"]), task.outputs)
    test = evaluate(config, state.net, task, splits["test"], runtime, collected)
    result = Result(folder=folder, best_epoch=state.best.epoch, valid=numbers(valid), test=numbers(test))
    if runtime.rank == 0:
        write_folder(folder / BEST, lambda partial: copy_files(checkpoint, partial))
        if collected is not None:
            write_predictions(folder / PREDICTIONS, splits["test"].names, collected)
        training.dataset.finish(folder, state.net, splits["test"])
        summary = {"best_epoch": result.best_epoch, "epochs": state.epoch, "valid": result.valid, "test": result.test}
        write_text(folder / SUMMARY, json.dumps(summary, indent=1))
    if config.run.report and len(training.modalities) <= MOST_AT_THE_END:
        leave_contributions(
            config, state.net, task, splits["valid"], runtime, folder, metric=state.best.metric, epoch=state.best.epoch
        )
    return result
