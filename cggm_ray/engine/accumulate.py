"""The gradient of a step, taken in several parts where the whole batch does not fit.

Everything that the loss, the scores, the coefficients and the direction term take from a batch is a sum, so a first pass
over the parts, without gradient, finds the sums of the global batch. In the second pass every part is treated like a worker:
it knows the global sums and sends back the gradient of its own share. The step is that of the whole batch, but for batch
norm, whose statistics are those of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import Totals, alone

if TYPE_CHECKING:
    from cggm_ray.engine.step import TrainingStep


def backward(step: nn.Module, batch: Batch, parts: int) -> tuple[Tensor, Tensor]:
    """Forward and backward passes of a step; gradients are left in the parameters.

    Args:
        step: a `TrainingStep`, or one under DistributedDataParallel.
        batch: of this worker.
        parts: in which it is taken; 1 for all at once, in a single pass.

    Returns:
        Task loss and the strategy's term of the global batch, detached.
    """
    if parts == 1 or len(batch) == 1:
        task_loss, extra = step(batch)
        (task_loss + extra).backward()
        return task_loss.detach(), extra.detach()
    inner: TrainingStep = step.module if isinstance(step, DistributedDataParallel) else step  # type: ignore[assignment]
    strategy = inner.strategy
    pieces = batch.split(parts)
    # Both passes draw the same dropout masks.
    seeds = torch.randint(2**62, (len(pieces),)).tolist()
    totals = _totals(inner, pieces, seeds)
    memory = [tensor.clone() for tensor in strategy.memory()]
    strategy.totals = totals
    try:
        for number, (piece, seed) in enumerate(zip(pieces, seeds, strict=True), start=1):
            # Every part takes the decision of the step, the same one from the same sums and the same memory.
            for tensor, before in zip(strategy.memory(), memory, strict=True):
                tensor.copy_(before)
            torch.manual_seed(seed)
            last = number == len(pieces)
            with step.no_sync() if isinstance(step, DistributedDataParallel) and not last else nullcontext():
                task_loss, extra = step(piece)
                ((task_loss + extra) / len(pieces)).backward()
    finally:
        strategy.totals = None
    return task_loss.detach(), extra.detach()


@torch.no_grad()
def _totals(inner: TrainingStep, pieces: Sequence[Batch], seeds: Sequence[int]) -> Totals:
    """The sums of the global batch; running statistics stay as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in inner.net.buffers()]
    local = []
    for piece, seed in zip(pieces, seeds, strict=True):
        torch.manual_seed(seed)
        local.append(inner.sums(piece))
    for buffer, before in buffers:
        buffer.copy_(before)
    sums = torch.stack(local).sum(0)
    reduce = inner.strategy.reduce
    if reduce is alone:
        return Totals(sums, float(len(pieces)))
    total = reduce(torch.cat([sums, sums.new_ones(1)]))
    return Totals(total[:-1], total[-1] * len(pieces))
