"""One row of numbers a sample, for models that know neither time nor images.

A sequence becomes its values one after the other, or the mean and the maximum over its valid steps. An image becomes its
pixels, after averaging where it is large. Each number is standardised on the training split; a modality that a sample lacks is
zeros after that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.kinds import FRAMES, IMAGE, SEQUENCE
from cggm_ray.core.optional import require
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.split import Split

FLAT, POOLED = "flattened", "mean and max"
LAYOUTS = (FLAT, POOLED)
MOST_VALUES = 5000
"""Largest number of values of a sequence that is flattened; longer ones are pooled."""
LARGEST_SIDE = 32
"""Pixels of the longer side of an image; larger ones are averaged."""
MOST_SAMPLES = 20_000
"""Samples of training and validation that simple models are fitted on."""
LIMIT = 5.0
"""Standardised values are cut at plus and minus this, because a linear model follows a single outlier far."""
BATCH = 256
EXTRA, PURPOSE = "baselines", "headroom"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Samples of a split as rows of numbers.

    Attributes:
        inputs: modality to float32 [N, D], NaN where the sample lacks the modality.
        target: [N].
        available: number of samples in the split, of which N are here.
    """

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray
    available: int


def layouts(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str], most: int = MOST_VALUES) -> list[str]:
    """Returns the layouts that differ for samples of these shapes: one where there are no sequences."""
    sequences = [math.prod(shape) for name, shape in shapes.items() if kinds[name] == SEQUENCE]
    if not sequences:
        return [FLAT]
    return list(LAYOUTS) if min(sequences) <= most else [POOLED]


def read_rows(
    split: Split, kinds: Mapping[str, str], layout: str, samples: int = MOST_SAMPLES, most: int = MOST_VALUES
) -> Rows:
    """Reads a split in its order, or samples that are drawn from it where it has too many.

    Args:
        split: to read.
        kinds: one of `core.kinds.KINDS` by modality.
        layout: `FLAT` or `POOLED`.
        samples: at most.
        most: largest number of values of a sequence that is flattened.
    """
    order = torch.arange(len(split))
    if len(split) > samples:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:samples].sort().values
    parts: dict[str, list[Tensor]] = {name: [] for name in kinds}
    targets = []
    for batch in split.batches(slices(order, BATCH, 0, 1), epoch=0):
        for name, kind in kinds.items():
            parts[name].append(_rows(batch, name, kind, layout, most).cpu())
        targets.append(batch.target.cpu())
    inputs = {name: torch.cat(found).numpy() for name, found in parts.items()}
    return Rows(inputs=inputs, target=torch.cat(targets).flatten().numpy(), available=len(split))


def _rows(batch: Batch, name: str, kind: str, layout: str, most: int) -> Tensor:
    """Returns a modality of a batch as float32 [N, D]."""
    values = batch.inputs[name].float()
    mask = None if batch.masks is None else batch.masks.get(name)
    if kind == IMAGE:
        rows = pixels(values).flatten(1)
    elif kind == FRAMES:
        rows = pixels(values.flatten(1, 2)).flatten(1)
    elif kind == SEQUENCE and (layout == POOLED or math.prod(values.shape[1:]) > most):
        rows = pooled(values, mask)
    elif kind == SEQUENCE and mask is not None and mask.shape[1] == values.shape[1]:
        rows = torch.where(mask[:, :, None], values, 0.0).flatten(1)
    else:
        rows = values.flatten(1)
    if mask is not None:
        rows = torch.where(mask.any(1, keepdim=True), rows, math.nan)
    return rows


def pooled(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns mean and maximum over the valid steps.

    Args:
        values: [N, T, D].
        mask: bool [N, T], or [N, 1] where only presence is known; None where all steps are valid.

    Returns:
        [N, 2 D]; zeros for a sample without a valid step.
    """
    if mask is None:
        return torch.cat([values.mean(1), values.amax(1)], 1)
    valid = mask.expand(-1, values.shape[1])[:, :, None]
    mean = torch.where(valid, values, 0.0).sum(1) / valid.sum(1).clamp(min=1)
    largest = torch.where(valid, values, -math.inf).amax(1)
    return torch.cat([mean, torch.where(valid.any(1), largest, 0.0)], 1)


def pixels(values: Tensor) -> Tensor:
    """Returns images [N, H, W], [N, C, H, W] or [N, H, W, C] with a longer side of at most `LARGEST_SIDE`, by averaging."""
    last = values.ndim == 4 and values.shape[-1] in (1, 3, 4) and values.shape[1] not in (1, 3, 4)
    images = values.movedim(-1, 1) if last else values[:, None] if values.ndim == 3 else values
    height, width = images.shape[-2:]
    shrink = max(height, width) / LARGEST_SIDE
    if shrink <= 1:
        return images
    return F.adaptive_avg_pool2d(images, (max(1, round(height / shrink)), max(1, round(width / shrink))))


def standardised(splits: Sequence[Rows]) -> list[np.ndarray]:
    """Returns all modalities side by side, standardised with the mean and deviation of the first split and cut at `LIMIT`.

    Args:
        splits: the training split first.

    Returns:
        float64 [N, D] for each.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    scaler: Any = require("sklearn.preprocessing", extra=EXTRA, purpose=PURPOSE).StandardScaler()
    raw = [np.concatenate([*rows.inputs.values()], axis=1).astype(np.float64) for rows in splits]
    # A column that nobody in training has says nothing.
    known = ~np.isnan(raw[0]).all(0)
    scaler.fit(raw[0][:, known])
    return [np.nan_to_num(np.clip(scaler.transform(values[:, known]), -LIMIT, LIMIT)) for values in raw]
