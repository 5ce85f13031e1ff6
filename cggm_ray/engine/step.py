"""One optimizer step on a global batch, its gradient taken at once or in several parts.

In parts: everything that the loss, the scores, the coefficients and the direction term take from a batch is a sum, so a first
pass over the parts, without gradient, finds the sums of the global batch. In the second pass every part is treated like a
worker: it knows the global sums and sends back the gradient of its own share. The step is that of the whole batch, but for
batch norm, whose statistics are those of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.reduction import Totals, global_sums
from cggm_ray.core.seeding import seed_torch
from cggm_ray.engine.guards import non_finite
from cggm_ray.engine.optim import clip_by_total_norm
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.state import TrainState
from cggm_ray.models.batchnorm import share_global_batch
from cggm_ray.models.branches import Point, apart
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.rates import rescale

Losses = tuple[Tensor, Tensor, Memo]


class TrainingStep(nn.Module):
    """The forward half of a training step, as one module: what DistributedDataParallel wraps.

    It holds the network and the strategy, so the gradients of the guides are averaged over workers with the others.
    """

    def __init__(self, net: MultimodalNet, strategy: Strategy, precision: str) -> None:
        super().__init__()
        self.net = net
        self.strategy = strategy
        self._half = precision == "bf16"
        self._global_batch = share_global_batch(strategy.reduce, net, strategy)
        self._own_fusion = apart([net, strategy])
        self._compiled: Callable[[Batch], Losses] | None = None

    def compile_whole(self, samples: int, say: Callable[[str], None], backend: str = "inductor") -> None:
        """Has forward and backward pass of a batch compiled at the first one, as one graph without a break.

        The network alone, as evaluation calls it, stays as it is.

        Args:
            samples: of a batch that is compiled; one of another size, such as the last of an epoch, runs eagerly.
            say: gets a line where a graph cannot be made, and steps run eagerly.
            backend: of torch.compile.
        """
        # It imports torch's compiler, which takes a second that other runs need not spend.
        from cggm_ray.engine.compiled import CompiledLosses

        self._compiled = CompiledLosses(self._losses, samples, say, backend)

    def forward(self, batch: Batch, totals: Totals | None = None) -> Losses:
        """Task loss and the strategy's term, both of the global batch, and the strategy's memo of this one.

        Args:
            batch: of this worker.
            totals: the sums of the global batch where they are known, for a batch that is a part of it.
        """
        if self._compiled is not None and totals is None:
            return self._compiled(batch)
        return self._losses(batch, totals)

    def _losses(self, batch: Batch, totals: Totals | None = None) -> Losses:
        head, memo = self._head(batch, totals)
        terms = self.strategy.terms(head, batch, memo, totals)
        return terms.task_loss, terms.extra, memo

    def sums(self, batch: Batch) -> Tensor:
        """Returns the sums over this batch alone, a vector [K], from which the losses are computed (`Strategy.local_sums`)."""
        head, memo = self._head(batch)
        return self.strategy.local_sums(head, batch, memo)

    def _head(self, batch: Batch, totals: Totals | None = None) -> tuple[HeadOutput, Memo]:
        with (
            torch.autocast(batch.target.device.type, torch.bfloat16, enabled=self._half),
            self._global_batch.part(batch.weight),
        ):
            features = self.net.encode(batch)
            encoded = Point.here(features.values(), self.net.buffers())
            features, memo = self.strategy.transform(features, batch, totals)
            fuse = partial(self.net.fuse, features, batch.masks)
            if not (self._own_fusion and self.strategy.beside_fusion):
                return fuse(), memo
            # A recorded step runs the fusion beside the guides, unless it needs what the strategy made of the features.
            return encoded.run(fuse, features.values(), self.net.buffers()), memo


def train_step(
    state: TrainState,
    step: nn.Module,
    batch: Batch,
    runtime: Runtime,
    *,
    accumulate: int,
    clip: float,
    largest: int | None = None,
) -> dict[str, Tensor]:
    """One optimizer step on a global batch: forward, one backward for everything, clip, move.

    A strategy that takes turns gets several on the same batch, one after the other.

    Args:
        state: of the run.
        step: a `TrainingStep`, as the runtime wrapped it.
        batch: this worker's share of the global batch.
        runtime: where the loop runs.
        accumulate: parts in which the share is taken.
        clip: largest L2 norm of the model's gradient; 0 for no clipping.
        largest: samples of the worker with the largest share; None for a single worker.

    Returns:
        Name of the log to a scalar or [M], detached.

    Raises:
        NonFiniteError: on all workers alike, before any parameter moved in this turn.
    """
    values: dict[str, Tensor] = {}
    for turn in range(state.strategy.turns):
        state.strategy.turn = turn
        values = _take_turn(state, step, batch, runtime, accumulate, clip, largest)
    state.strategy.turn = 0
    return values


def _take_turn(
    state: TrainState,
    step: nn.Module,
    batch: Batch,
    runtime: Runtime,
    accumulate: int,
    clip: float,
    largest: int | None,
) -> dict[str, Tensor]:
    state.optimizer.zero_grad(set_to_none=True)
    task_loss, extra, memo = backward(step, batch, accumulate, largest)
    state.strategy.adjust_gradients(memo)
    total, norms_M = clip_by_total_norm(state.net.parameters(), state.net.encoders.values(), clip or None)
    # Loss and norm are those of the global batch, the same on every worker, so all of them stop or none does.
    if state.watch is not None:
        state.watch.note(task_loss, extra, total, ends_step=state.strategy.turn + 1 == state.strategy.turns)
    elif not bool(torch.isfinite(task_loss + extra + total)):
        raise non_finite(state, batch, task_loss, extra, total, runtime)
    if state.strategy.rates_by_step:
        rescale(state.optimizer, state.strategy.rates())
    state.optimizer.step()
    state.strategy.move()
    return {"loss": task_loss, "gradient_norm": total, "grad_norm": norms_M, **state.strategy.diagnostics}


def backward(step: nn.Module, batch: Batch, parts: int, largest: int | None = None) -> tuple[Tensor, Tensor, Memo]:
    """Forward and backward passes of a step; gradients are left in the parameters.

    Args:
        step: a `TrainingStep`, or one under DistributedDataParallel.
        batch: of this worker.
        parts: in which it is taken; 1 for all at once, in a single pass.
        largest: see `Batch.split`. Workers take the same number of parts, because batch norm adds up every part over them.

    Returns:
        Task loss and the strategy's term of the global batch, detached, and the strategy's memo of the last part.
    """
    pieces = [batch] if parts == 1 else batch.split(parts, largest)
    if len(pieces) == 1:
        task_loss, extra, memo = step(batch)
        (task_loss + extra).backward()
        return task_loss.detach(), extra.detach(), memo
    inner: TrainingStep = step.module if isinstance(step, DistributedDataParallel) else step  # type: ignore[assignment]
    strategy = inner.strategy
    # Both passes draw the same dropout masks.
    seeds = torch.randint(2**62, (len(pieces),)).tolist()
    totals = _totals(inner, pieces, seeds)
    memory = [tensor.clone() for tensor in strategy.memory()]
    for number, (piece, seed) in enumerate(zip(pieces, seeds, strict=True), start=1):
        # Every part takes the decision of the step, the same one from the same sums and the same memory.
        for tensor, before in zip(strategy.memory(), memory, strict=True):
            tensor.copy_(before)
        seed_torch(seed)
        last = number == len(pieces)
        with step.no_sync() if isinstance(step, DistributedDataParallel) and not last else nullcontext():
            task_loss, extra, memo = step(piece, totals)
            ((task_loss + extra) / len(pieces)).backward()
    return task_loss.detach(), extra.detach(), memo


@torch.no_grad()
def _totals(inner: TrainingStep, pieces: Sequence[Batch], seeds: Sequence[int]) -> Totals:
    """The sums of the global batch; running statistics stay as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in inner.net.buffers()]
    local = []
    for piece, seed in zip(pieces, seeds, strict=True):
        seed_torch(seed)
        local.append(inner.sums(piece))
    for buffer, before in buffers:
        buffer.copy_(before)
    return global_sums(torch.stack(local).sum(0), inner.strategy.reduce, len(pieces))
