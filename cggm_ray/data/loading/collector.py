"""What takes the predictions of a split while it is evaluated."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import Reduce


class Collector(Protocol):
    """Takes the predictions of a split while it is evaluated."""

    def take(self, batch: Batch, logits: Tensor) -> None:
        """The logits [N, C, ...] of a batch. Batches come in the order of the split."""
        ...

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Adds up what the workers took; called once, after the last batch, where there are several."""
        ...
