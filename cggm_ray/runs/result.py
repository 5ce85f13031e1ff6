"""The result of a finished run."""

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


SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run is worth.

    Attributes:
        folder: of the run.
        best_epoch: the epoch whose checkpoint was tested, counted from 1.
        valid: its validation metrics.
        test: the test metrics.
    """

    folder: Path
    best_epoch: int
    valid: Record
    test: Record


def read_summary(folder: Path) -> Result:
    """The result that `finish` left in the folder of a run."""
    summary = json.loads((folder / SUMMARY).read_text())
    return Result(folder=folder, best_epoch=summary["best_epoch"], valid=summary["valid"], test=summary["test"])
