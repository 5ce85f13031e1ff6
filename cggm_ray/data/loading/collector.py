"""Interface of objects that receive the predictions of a split during evaluation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import Reduce


class Collector(Protocol):
    """Receives the predictions of a split during evaluation."""

    def take(self, batch: Batch, logits: Tensor) -> None:
        """Receives the logits [N, C, ...] of a batch. Batches come in the order of the split."""
        ...

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Adds up what the workers received. With several workers it is called once, after the last batch."""
        ...
