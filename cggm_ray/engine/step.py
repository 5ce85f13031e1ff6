"""One optimizer step on a global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.reduction import alone
from cggm_ray.engine.accumulate import backward
from cggm_ray.engine.guards import non_finite
from cggm_ray.engine.optim import clip_by_total_norm, rescale
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.state import TrainState
from cggm_ray.models.batchnorm import global_batch
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Strategy


class TrainingStep(nn.Module):
    """The forward half of a training step, as one module: what DistributedDataParallel wraps.

    It holds the network and the strategy, so the gradients of the guides are averaged over workers with the others.
    """

    def __init__(self, net: MultimodalNet, strategy: Strategy, precision: str) -> None:
        super().__init__()
        self.net = net
        self.strategy = strategy
        self._half = precision == "bf16"

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Task loss and the strategy's term, both of the global batch."""
        return self.strategy.losses(self._head(batch), batch.target, batch.weight)

    def sums(self, batch: Batch) -> Tensor:
        """What the losses are made of, of this batch alone; see `Strategy.local_sums`."""
        return self.strategy.local_sums(self._head(batch), batch.target, batch.weight)

    def _head(self, batch: Batch) -> HeadOutput:
        reduce = self.strategy.reduce
        with (
            torch.autocast(batch.target.device.type, torch.bfloat16, enabled=self._half),
            global_batch(reduce, batch.weight, alone=reduce is alone),
        ):
            self.strategy.see(batch.inputs, batch.masks)
            features = self.net.encode(batch.inputs, batch.masks)
            features = self.strategy.modulate(features, batch.target, batch.present, batch.weight, batch.masks)
            return self.net.fuse(features, batch.masks)


def train_step(
    state: TrainState, step: nn.Module, batch: Batch, runtime: Runtime, *, accumulate: int, clip: float
) -> dict[str, Tensor]:
    """One optimizer step on a global batch: forward, one backward for everything, clip, move.

    Args:
        state: of the run.
        step: a `TrainingStep`, as the runtime wrapped it.
        batch: this worker's share of the global batch.
        runtime: where the loop runs.
        accumulate: parts in which the share is taken.
        clip: largest L2 norm of the model's gradient; 0 for no clipping.

    Returns:
        Name of the log to a scalar or [M], detached.

    Raises:
        NonFiniteError: on all workers alike, before any parameter moved.
    """
    state.optimizer.zero_grad(set_to_none=True)
    task_loss, extra = backward(step, batch, accumulate)
    state.strategy.adjust()
    total, norms_M = clip_by_total_norm(state.net.parameters(), state.net.encoders.values(), clip or None)
    # Loss and norm are those of the global batch, the same on every worker, so all of them stop or none does.
    if state.watch is not None:
        state.watch.note(state.step, batch.index, task_loss, extra, total)
    elif not bool(torch.isfinite(task_loss + extra + total)):
        raise non_finite(state, batch, task_loss, extra, total, runtime)
    if state.strategy.rates_by_step:
        rescale(state.optimizer, state.strategy.rates())
    state.optimizer.step()
    state.strategy.step()
    return {"loss": task_loss, "gradient_norm": total, "grad_norm": norms_M, **state.strategy.diagnostics}
