"""How much better one configuration validates than another, and how certain that is.

Runs of a choice end with predictions of the validation split. Two configurations are compared seed by seed on the same
samples, so the standard error of their difference counts both the chance of the seeds and that of the samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cggm_ray.core.errors import UsageError
from cggm_ray.data.shards.shards import TARGET, column_values
from cggm_ray.engine.evaluation import PREDICTION
from cggm_ray.runs.finishing import LINEAR_CHOICE, VALID_PREDICTIONS, VALIDATION
from cggm_ray.studies.headroom import Candidate as Compared
from cggm_ray.studies.headroom import Gain, Measure
from cggm_ray.tasks import Classification, Task

MOST_SAMPLES = 100_000
"""Validation samples up to which their chance is computed; with more it is small beside that of the seeds."""


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The validation of a run.

    Attributes:
        value: of the metric, of the network as it would be tested.
        logits: [N, C]; None where predictions are maps, or too many.
        target: [N], or [N, C] of several labels; None with them.
        linear: weights of the network and of its linear model, and the strength of that; None without one.
    """

    value: float
    logits: Tensor | None = field(default=None, repr=False)
    target: Tensor | None = field(default=None, repr=False)
    linear: tuple[float, float, float] | None = None


def read_validated(folder: Path, task: Task, metric: str) -> Validated | None:
    """Returns the validation that the folder of a run holds, or None if there is none, or no number.

    Raises:
        UsageError: a file is damaged.
    """
    try:
        value = json.loads((folder / VALIDATION).read_text())[metric]
        if value is None:
            return None
        path, linear = folder / VALID_PREDICTIONS, None
        if (folder / LINEAR_CHOICE).exists():
            found = json.loads((folder / LINEAR_CHOICE).read_text())
            network, share = found["shares"]
            linear = (float(network), float(share), float(found["strength"]))
        if not path.exists() or pq.read_metadata(path).num_rows > MOST_SAMPLES:
            return Validated(value=float(value), linear=linear)
        table = pq.read_table(path, columns=[TARGET, PREDICTION])
        logits = torch.from_numpy(column_values(table.column(PREDICTION))).double()
        target = torch.from_numpy(np.array(table.column(TARGET).to_pylist(), np.float64))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / VALIDATION} cannot be read: {error}; remove {folder} to run it again") from None
    target = target.long() if isinstance(task, Classification) else target
    logits = logits if logits.ndim > 1 else logits[:, None]
    return Validated(value=float(value), logits=logits, target=target, linear=linear)


def lead(task: Task, metric: str, one: Mapping[int, Validated], other: Mapping[int, Validated]) -> Gain | None:
    """Returns how much better one configuration is than another, whatever the direction of the metric.

    Args:
        task: what is predicted.
        metric: that decides.
        one, other: their runs, by seed.

    Returns:
        The mean over the seeds that both have, and its standard error; None without any such seed.
    """
    truth = {str(seed): run.target for seed, run in other.items() if run.target is not None}
    measure = Measure(task=task, metric=metric, better=task.better(metric), truth=truth)
    return measure.gain(_compared(one), _compared(other))


def _compared(runs: Mapping[int, Validated]) -> Compared:
    return Compared(
        label="",
        kind="",
        valid={},
        test={str(seed): run.value for seed, run in runs.items()},
        logits={str(seed): run.logits for seed, run in runs.items() if run.logits is not None},
    )
